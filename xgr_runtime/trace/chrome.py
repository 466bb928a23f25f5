"""Spans of several processes as one Chrome trace, the JSON object format, which Perfetto opens.

All spans are complete events (`X`). A viewer wants those of one row nested, so requests that overlap lie in
rows of their own, and arrows lead from a router's attempt to its prefill worker, its decode worker and back.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from xgr_runtime.trace.timeline import REQUEST
from xgr_runtime.wire.messages import AttemptId, Span

Json = dict[str, Any]

ATTEMPT = "attempt"  # where arrows begin and end
_ROUTER_FIRST = {"router": 0, "prefill": 1, "decode": 2}


class ProcessSpans(NamedTuple):
    """What one process did."""

    kind: str  # router, prefill, decode
    name: str
    spans: list[Span]
    whole_since: float = 0.0


class _Slice(NamedTuple):
    """A span and where it is drawn. Times in microseconds of the trace, whole ones: so sums are exact."""

    span: Span
    pid: int
    tid: int
    start: int
    end: int


def chrome_trace(processes: Sequence[ProcessSpans], missing: dict[str, str], origin: float) -> Json:
    """The trace of `processes`, at times since `origin`; `missing` says who is not in it, and why."""
    rids = {s.id: s.rid for process in processes for s in process.spans if s.id and s.rid}
    ordered = sorted(processes, key=lambda process: (_ROUTER_FIRST[process.kind], process.name))
    events: list[Json] = []
    slices: list[_Slice] = []
    tids = iter(range(1, 1 << 30))  # of no two processes the same: some viewers take them for names
    for pid, process in enumerate(ordered, 1):
        name = process.kind if process.kind == process.name else f"{process.kind} {process.name}"
        events.append(_named("process_name", pid, 0, name))
        events.append(_meta("process_sort_index", pid, 0, {"sort_index": pid}))
        for row, spans in _rows(process.spans):
            tid = next(tids)
            events.append(_named("thread_name", pid, tid, row))
            events.append(_meta("thread_sort_index", pid, tid, {"sort_index": tid}))
            slices += _nested(spans, pid, tid, origin)
    events += [_complete(piece, rids) for piece in slices]
    events += _arrows(slices)
    cut = {p.name: round(p.whole_since - origin, 6) for p in processes if p.whole_since > origin}
    about = {
        "missing": missing,
        "forgotten_before_seconds": cut,
        "clock": "CLOCK_MONOTONIC",
        "origin": origin,
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


# --- rows ------------------------------------------------------------------------------------------------


def _rows(spans: Iterable[Span]) -> Iterator[tuple[str, list[Span]]]:
    """Every row of a process: its name, and spans of which any two are nested or apart."""
    tracks: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        tracks[span.track].append(span)
    for track, own in sorted(tracks.items(), key=lambda item: (item[0] != REQUEST, item[0])):
        families = _requests(own) if track == REQUEST else _blocks(own)
        lanes = _lanes(families)
        for number, lane in enumerate(lanes, 1):
            yield (track if len(lanes) == 1 else f"{track} {number}"), lane


def _requests(spans: list[Span]) -> list[list[Span]]:
    """What belongs to one request is drawn in one row. A router's spans go by the client's name of it."""
    families: dict[object, list[Span]] = defaultdict(list)
    for span in spans:
        families[span.rid or span.id].append(span)
    return [sorted(family, key=_outer_first) for family in families.values()]


def _blocks(spans: list[Span]) -> list[list[Span]]:
    """A span and all that lies inside of it."""
    blocks: list[list[Span]] = []
    for span in sorted(spans, key=_outer_first):
        if blocks and _end(span) <= _end(blocks[-1][0]):
            blocks[-1].append(span)
        else:
            blocks.append([span])
    return blocks


def _lanes(families: list[list[Span]]) -> list[list[Span]]:
    """Families that overlap in time apart, in as few rows as it takes."""
    lanes: list[list[Span]] = []
    free_at: list[float] = []
    for family in sorted(families, key=lambda family: family[0].start):
        lane = next((i for i, free in enumerate(free_at) if free <= family[0].start), len(lanes))
        if lane == len(lanes):
            lanes.append([])
            free_at.append(0.0)
        lanes[lane] += family
        free_at[lane] = max(map(_end, family))
    return lanes


def _nested(spans: list[Span], pid: int, tid: int, origin: float) -> Iterator[_Slice]:
    """The spans of a row; one that outlasts what it lies in is cut there, as two clocks' readings may be."""
    open_ends: list[int] = []
    for span in spans:
        start, end = _micros(span.start - origin), _micros(_end(span) - origin)
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        end = min([end, *open_ends[-1:]])
        open_ends.append(end)
        yield _Slice(span, pid, tid, start, end)


# --- events ----------------------------------------------------------------------------------------------


def _complete(piece: _Slice, rids: dict[AttemptId, str]) -> Json:
    span = piece.span
    args: Json = dict(span.numbers)
    if span.id is not None:
        args |= {
            "request": span.id.request,
            "attempt": span.id.attempt,
            "router": f"{span.id.router:x}",  # JSON numbers do not hold 64 bits everywhere
        }
    if rid := span.rid or (rids.get(span.id, "") if span.id else ""):
        args["rid"] = rid
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.track,
        "ts": piece.start,
        "dur": piece.end - piece.start,
        "pid": piece.pid,
        "tid": piece.tid,
        "args": args,
    }


def _arrows(slices: list[_Slice]) -> Iterator[Json]:
    """For every attempt that is over: router, prefill worker, decode worker once KV may come, router."""
    by_attempt: dict[AttemptId, list[_Slice]] = defaultdict(list)
    for piece in slices:
        if piece.span.track == REQUEST and piece.span.id is not None:
            by_attempt[piece.span.id].append(piece)
    for number, pieces in enumerate(by_attempt.values(), 1):
        attempt = next((piece for piece in pieces if piece.span.name == ATTEMPT), None)
        first: dict[int, _Slice] = {}
        for piece in pieces:
            if piece is not attempt and (piece.pid not in first or piece.span.name == "receive KV"):
                first[piece.pid] = piece
        if attempt is None or not first:
            continue
        yield _arrow("s", number, attempt, attempt.start + _inside(attempt))
        for piece in sorted(first.values(), key=lambda piece: piece.pid):
            yield _arrow("t", number, piece, piece.start + _inside(piece))
        yield _arrow("f", number, attempt, attempt.end - _inside(attempt))


def _arrow(phase: str, number: int, piece: _Slice, at: float) -> Json:
    """One point of an arrow. It belongs to the slice that is open at that moment in that row."""
    point = {"ph": phase, "id": number, "name": "request", "cat": "flow", "ts": at}
    return point | {"pid": piece.pid, "tid": piece.tid} | ({"bp": "e"} if phase == "f" else {})


def _inside(piece: _Slice) -> float:
    """How far from its edge a point surely lies in a slice, and in no neighbour."""
    return min(1.0, (piece.end - piece.start) / 2)


def _named(what: str, pid: int, tid: int, name: str) -> Json:
    return _meta(what, pid, tid, {"name": name})


def _meta(what: str, pid: int, tid: int, args: Json) -> Json:
    return {"ph": "M", "name": what, "ts": 0, "pid": pid, "tid": tid, "args": args}


def _outer_first(span: Span) -> tuple[float, float]:
    return span.start, -span.seconds


def _end(span: Span) -> float:
    return span.start + span.seconds


def _micros(seconds: float) -> int:
    """Rounding keeps the order of moments, and so what is nested in what."""
    return round(seconds * 1e6)
