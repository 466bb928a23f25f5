"""What a Chrome trace of ours must keep to, whatever it shows."""

from collections import defaultdict
from typing import Any

Json = dict[str, Any]


def check_trace(trace: Json) -> None:
    """Every event is complete, rows are named and properly nested, arrows have a begin and an end."""
    events = trace["traceEvents"]
    for event in events:
        assert event["ph"] in {"X", "M", "s", "t", "f"}
        assert {"name", "ts", "pid", "tid"} <= event.keys()
        assert event["ts"] >= 0 or event["ph"] != "M"
    _check_names(events)
    rows: dict[Any, list[Json]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0 and event["cat"]
            rows[event["pid"], event["tid"]].append(event)
    for row in rows.values():
        _check_nesting(row)
    _check_arrows(events, rows)


def slices(trace: Json, name: str, **args: Any) -> list[Json]:
    """Complete events of that name and with these arguments, in order of time."""
    found = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["name"] == name]
    return sorted(
        (e for e in found if all(e["args"].get(key) == value for key, value in args.items())),
        key=lambda event: float(event["ts"]),
    )


def end_of(event: Json) -> float:
    return float(event["ts"] + event["dur"])


def _check_names(events: list[Json]) -> None:
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    processes = {e["pid"] for e in events if e["name"] == "process_name"}
    tids = [tid for _, tid in named]
    assert len(tids) == len(set(tids)), "a row's number is used once"
    for event in events:
        assert event["pid"] in processes
        if event["ph"] != "M":
            assert (event["pid"], event["tid"]) in named


def _check_nesting(row: list[Json]) -> None:
    """In the order of the file, as viewers read it: outer ones first."""
    open_until: list[float] = []
    last = float("-inf")
    for event in row:
        assert event["ts"] >= last, "a row is in order of time"
        last = event["ts"]
        while open_until and open_until[-1] <= event["ts"]:
            open_until.pop()
        assert not open_until or end_of(event) <= open_until[-1], f"{event['name']} sticks out"
        open_until.append(end_of(event))


def _check_arrows(events: list[Json], rows: dict[Any, list[Json]]) -> None:
    arrows: dict[int, list[Json]] = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            arrows[event["id"]].append(event)
            row = rows[event["pid"], event["tid"]]
            assert any(e["ts"] <= event["ts"] <= end_of(e) for e in row), "an arrow hangs on a slice"
    for points in arrows.values():
        phases = "".join(point["ph"] for point in points)
        assert phases in {"stf", "sttf"}, "a begin, one or two workers, an end"
        assert points[-1]["bp"] == "e"
