"""What can be read off a Chrome trace of ours.

How busy the processes were, where a request's time went, and how much of its KV moved while its prompt was
still computed.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from xgr_runtime.trace.chrome import ATTEMPT
from xgr_runtime.trace.timeline import KV_IN, REQUEST

Json = dict[str, Any]
Interval = tuple[float, float]


class ProcessUse(NamedTuple):
    """One process. `busy` is the time in which it worked for any request; None where that is not recorded."""

    name: str
    spans: int
    busy: float | None  # seconds
    seconds: float  # that the trace covers


class TracePhase(NamedTuple):
    """Part of a request's life in one process."""

    process: str
    name: str
    seconds: float


class RequestLife(NamedTuple):
    """A request, from its first byte in the router until its answer is on its way."""

    rid: str
    seconds: float
    phases: list[TracePhase]  # in order of their begin


class Overlap(NamedTuple):
    """KV of one prompt on its way into a decode worker, beside the forwards that made it.

    `inside` counts what was there before the last of these forwards ended.
    """

    rid: str
    chunks: int
    chunks_inside: int
    bytes: int
    bytes_inside: int
    seconds: float  # in which a chunk was taken in
    seconds_inside: float
    tail: float  # how long after that end it was whole, as a part of the time from the first forward's begin

    @property
    def share(self) -> float:
        """Of the bytes, those that prefill hid."""
        return self.bytes_inside / self.bytes if self.bytes else 0.0


def process_uses(trace: Json) -> list[ProcessUse]:
    """All processes, in the order of the trace."""
    work: dict[int, list[Interval]] = defaultdict(list)
    counts: dict[int, int] = defaultdict(int)
    slices = _slices(trace)
    for event in slices:
        counts[event["pid"]] += 1
        if event["cat"] != REQUEST:
            work[event["pid"]].append(_interval(event))
    first = min((event["ts"] for event in slices), default=0.0)
    last = max((event["ts"] + event["dur"] for event in slices), default=0.0)
    return [
        ProcessUse(name, counts[pid], _length(work[pid]) / 1e6 if work[pid] else None, (last - first) / 1e6)
        for pid, name in _processes(trace).items()
    ]


def last_request(trace: Json) -> RequestLife | None:
    """The request that was answered last, of those that went through workers."""
    slices = [event for event in _slices(trace) if event["cat"] == REQUEST]
    attempted = {event["args"].get("rid") for event in slices if event["name"] == ATTEMPT}
    ended = [e for e in slices if e["name"] == "request" and "status" in e["args"]]
    ended = [event for event in ended if event["args"].get("rid") in attempted]
    if not ended:
        return None
    whole = max(ended, key=lambda event: float(event["ts"] + event["dur"]))
    rid, processes = whole["args"]["rid"], _processes(trace)
    parts = [e for e in slices if e["args"].get("rid") == rid and e is not whole and _within(e, whole)]
    phases = [TracePhase(processes[e["pid"]], e["name"], e["dur"] / 1e6) for e in sorted(parts, key=_begin)]
    return RequestLife(rid, whole["dur"] / 1e6, phases)


def overlaps(trace: Json) -> list[Overlap]:
    """Every prompt that a decode worker took in, in order of time."""
    forwards: dict[object, list[Interval]] = defaultdict(list)
    arrivals: dict[object, list[Json]] = defaultdict(list)
    for event in _slices(trace):
        if event["cat"] == REQUEST and event["name"] == "prefill":
            forwards[_key(event)].append(_interval(event))
        elif event["cat"] == KV_IN:
            arrivals[_key(event)].append(event)
    return [_overlap(chunks, forwards[key]) for key, chunks in arrivals.items() if key in forwards]


def _overlap(chunks: Sequence[Json], forwards: Sequence[Interval]) -> Overlap:
    begin, end = min(begin for begin, _ in forwards), max(end for _, end in forwards)
    inside = [event for event in chunks if event["ts"] + event["dur"] <= end]
    return Overlap(
        rid=chunks[0]["args"].get("rid", ""),
        chunks=len(chunks),
        chunks_inside=len(inside),
        bytes=int(sum(event["args"]["bytes"] for event in chunks)),
        bytes_inside=int(sum(event["args"]["bytes"] for event in inside)),
        seconds=sum(event["dur"] for event in chunks) / 1e6,
        seconds_inside=sum(max(0.0, min(event["ts"] + event["dur"], end) - event["ts"]) for event in chunks)
        / 1e6,
        tail=max(0.0, max(event["ts"] + event["dur"] for event in chunks) - end) / (end - begin),
    )


def _slices(trace: Json) -> list[Json]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def _processes(trace: Json) -> dict[int, str]:
    """Names by pid."""
    named = (event for event in trace["traceEvents"] if event["name"] == "process_name")
    return {event["pid"]: event["args"]["name"] for event in named}


def _key(event: Json) -> object:
    args = event["args"]
    return args["router"], args["request"], args["attempt"]


def _interval(event: Json) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def _begin(event: Json) -> tuple[float, float]:
    return event["ts"], -event["dur"]


def _within(event: Json, whole: Json) -> bool:
    """Whether it began during `whole`: a name may come again."""
    return bool(whole["ts"] <= event["ts"] <= whole["ts"] + whole["dur"])


def _length(intervals: Iterable[Interval]) -> float:
    """Of their union."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
