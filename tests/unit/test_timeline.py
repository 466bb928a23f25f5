"""The ring of spans, and what becomes of it in a Chrome trace and in the facts read off one."""

import msgspec
import pytest
from trace_rules import check_trace, end_of, slices

from xgr_runtime.trace.chrome import ATTEMPT, ProcessSpans, chrome_trace
from xgr_runtime.trace.facts import last_request, overlaps, process_uses
from xgr_runtime.trace.timeline import CAPACITY, FORWARD, KV_IN, LAUNCH, REQUEST, Timeline
from xgr_runtime.transport import CONTROL_MAX_BYTES
from xgr_runtime.wire.messages import AttemptId, Span, Spans, ToRouter, TraceAsk

BIG = (1 << 62) - 1


def attempt_id(request: int, attempt: int = 1) -> AttemptId:
    return AttemptId(BIG, request, attempt, 2, 3)


def life(n: int, at: float, attempt: int = 1) -> list[ProcessSpans]:
    """A request in a router, a prefill and a decode worker: 10 s, of which 2 to 4 in a forward."""
    id, rid = attempt_id(n, attempt), f"r{n}"
    router = [
        Span(REQUEST, "intake", at, 1.0, None, rid),
        Span(REQUEST, ATTEMPT, at + 1, 8.0, id, rid),
        Span(REQUEST, "compose", at + 9, 1.0, None, rid),
        Span(REQUEST, "request", at, 10.0, None, rid, {"status": 200}),
    ]
    prefill = [
        Span(REQUEST, "wait", at + 1.5, 0.5, id),
        Span(FORWARD, "layer 0", at + 2, 1.0),
        Span(FORWARD, "layer 1", at + 3, 1.0),
        Span(FORWARD, "forward", at + 2, 2.0),
        Span(REQUEST, "prefill", at + 2, 2.0, id),
        Span(REQUEST, "prompt", at + 1.5, 4.0, id),
    ]
    decode = [
        Span(KV_IN, "frames", at + 3, 0.5, id, numbers={"bytes": 100}),
        Span(KV_IN, "frames", at + 3.75, 0.5, id, numbers={"bytes": 300}),
        Span(LAUNCH, "launch", at + 5, 3.0),
        Span(REQUEST, "request", at + 1.5, 7.0, id),
        Span(REQUEST, "receive KV", at + 2, 2.5, id),
        Span(REQUEST, "search", at + 4.5, 4.0, id),
    ]
    return [
        ProcessSpans("router", "router", router),
        ProcessSpans("prefill", "prefill-0", prefill),
        ProcessSpans("decode", "decode-0", decode),
    ]


def merged(*lives: list[ProcessSpans]) -> list[ProcessSpans]:
    return [
        ProcessSpans(parts[0].kind, parts[0].name, [span for part in parts for span in part.spans])
        for parts in zip(*lives, strict=True)
    ]


def test_the_ring_keeps_the_newest() -> None:
    timeline = Timeline(capacity=3)
    assert timeline.whole_since == 0.0
    for n in range(5):
        timeline.add("t", str(n), n, n + 0.5)
    assert [span.name for span in timeline.since(0.0)] == ["2", "3", "4"]
    assert timeline.whole_since == 2.5


def test_since_counts_from_the_end_of_a_span() -> None:
    timeline = Timeline()
    timeline.add("t", "early", 0.0, 1.0)
    timeline.add("t", "reaches in", 0.0, 2.0)
    timeline.add("t", "late", 3.0, 4.0)
    assert [span.name for span in timeline.since(1.0)] == ["reaches in", "late"]
    answer = timeline.answer(TraceAsk(7, 1.5), "w", now=4.5)
    assert (answer.number, answer.worker, [span.name for span in answer.spans]) == (7, "w", ["late"])


def test_a_full_ring_is_far_from_the_limit_of_a_control_message() -> None:
    timeline = Timeline()
    id = AttemptId(BIG, BIG, BIG, BIG, BIG)
    for n in range(CAPACITY + 1):
        timeline.add("a long track", "a long name", n, n + 1.0, id, layers=BIG, tokens=BIG, bytes=BIG)
    answer = timeline.answer(TraceAsk(1, CAPACITY), "worker", now=CAPACITY)
    body = msgspec.msgpack.encode(answer)
    assert len(answer.spans) == CAPACITY and len(body) < CONTROL_MAX_BYTES / 8
    assert msgspec.msgpack.decode(body, type=ToRouter) == answer
    assert isinstance(answer, Spans)


def test_one_request_is_drawn_from_router_to_workers_and_back() -> None:
    trace = chrome_trace(life(1, 100.0), {}, 100.0)
    check_trace(trace)
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == ["router", "prefill prefill-0", "decode decode-0"]
    arrow = [e for e in trace["traceEvents"] if e["ph"] in "stf"]
    assert [(e["ph"], e["pid"]) for e in arrow] == [("s", 1), ("t", 2), ("t", 3), ("f", 1)]
    assert [e["ts"] for e in arrow] == sorted(e["ts"] for e in arrow)
    assert arrow[0]["ts"] == pytest.approx(1e6, abs=2) and arrow[2]["ts"] == pytest.approx(2e6, abs=2)
    for name in ("wait", "prefill", "receive KV", "search"):
        assert slices(trace, name, rid="r1", request=1), "workers do not know the rid, the trace does"


def test_requests_that_overlap_lie_in_rows_of_their_own() -> None:
    trace = chrome_trace(merged(life(1, 0.0), life(2, 4.0), life(3, 20.0)), {}, 0.0)
    check_trace(trace)
    rows = {rid: slices(trace, ATTEMPT, rid=rid)[0]["tid"] for rid in ("r1", "r2", "r3")}
    assert rows["r1"] != rows["r2"] and rows["r3"] == rows["r1"]
    for name in ("intake", "compose"):
        assert slices(trace, name, rid="r2")[0]["tid"] == rows["r2"]


def test_a_request_that_was_tried_twice_has_two_arrows() -> None:
    first, second = life(1, 0.0, attempt=1), life(1, 20.0, attempt=2)
    trace = chrome_trace(merged(first, second), {}, 0.0)
    check_trace(trace)
    begins = [e for e in trace["traceEvents"] if e["ph"] == "s"]
    assert len(begins) == 2 and begins[0]["id"] != begins[1]["id"]


def test_half_a_request_has_no_arrow() -> None:
    router, prefill, decode = life(1, 0.0)
    for some in ([prefill, decode], [router]):
        trace = chrome_trace(some, {}, 0.0)
        check_trace(trace)
        assert not [e for e in trace["traceEvents"] if e["ph"] in "stf"]


def test_what_sticks_out_of_a_request_is_cut() -> None:
    """A refused duplicate carries the name of the live request, and neither lies inside the other."""
    spans = [Span(REQUEST, "request", 0.0, 2.0, None, "r"), Span(REQUEST, "request", 1.0, 2.0, None, "r")]
    trace = chrome_trace([ProcessSpans("router", "router", spans)], {}, 0.0)
    check_trace(trace)
    assert [end_of(event) for event in slices(trace, "request")] == [2e6, 2e6]


def test_cohorts_that_overlap_lie_in_rows_of_their_own() -> None:
    spans = [Span(LAUNCH, "a", 0.0, 2.0), Span(LAUNCH, "b", 1.0, 2.0), Span(LAUNCH, "c", 1.5, 0.5)]
    trace = chrome_trace([ProcessSpans("decode", "d", spans)], {}, 0.0)
    check_trace(trace)
    assert slices(trace, "a")[0]["tid"] != slices(trace, "b")[0]["tid"] == slices(trace, "c")[0]["tid"]


def test_who_is_missing_and_what_was_forgotten_is_said() -> None:
    processes = [ProcessSpans("router", "router", [], 0.0), ProcessSpans("decode", "d", [], 12.0)]
    about = chrome_trace(processes, {"ipc:///x": "no answer"}, 10.0)["otherData"]
    assert about["missing"] == {"ipc:///x": "no answer"} and about["forgotten_before_seconds"] == {"d": 2.0}


def test_busy_time_is_that_of_the_union() -> None:
    router, prefill, decode = process_uses(chrome_trace(life(1, 0.0), {}, 0.0))
    assert router.busy is None and router.spans == 4
    assert prefill.busy == pytest.approx(2.0) and prefill.seconds == pytest.approx(10.0)
    assert decode.busy == pytest.approx(4.0)


def test_the_last_request_in_phases() -> None:
    found = last_request(chrome_trace(merged(life(1, 0.0), life(2, 4.0)), {}, 0.0))
    assert found is not None and (found.rid, found.seconds) == ("r2", pytest.approx(10.0))
    assert {(p.process, p.name) for p in found.phases} >= {
        ("router", "intake"),
        ("prefill prefill-0", "prefill"),
        ("decode decode-0", "search"),
    }
    assert last_request(chrome_trace([ProcessSpans("router", "router", [])], {}, 0.0)) is None


def test_kv_counts_as_hidden_while_prefill_runs() -> None:
    (found,) = overlaps(chrome_trace(life(1, 0.0), {}, 0.0))
    assert (found.rid, found.chunks, found.chunks_inside) == ("r1", 2, 1)
    assert (found.bytes, found.bytes_inside, found.share) == (400, 100, 0.25)
    assert found.seconds == pytest.approx(1.0) and found.seconds_inside == pytest.approx(0.75)
    assert found.tail == pytest.approx(0.125), "a quarter of a second after a forward of two"
