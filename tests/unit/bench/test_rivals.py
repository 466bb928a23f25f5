"""The contest of rivals: what is not measured says why, and what is measured is told apart rightly."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from until import until

from xgr_runtime.catalog import Catalog

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


FAKE = f"""
import contextlib, sys, time
sys.path.insert(0, {str(BENCH / "rival")!r})
from speak import talk

class Fake:
    def facts(self): return {{"versions": {{}}, "cannot": ["do much"]}}
    def ask(self, prompts, width, at_a_time):
        print("what libraries print")
        if width == 13: raise ValueError("not this width")
        if width == 14: sys.exit(7)
        if width == 15: time.sleep(60)
        return [[([0, 10, 20 + rank], -float(rank)) for rank in range(width)] for _ in prompts]

@contextlib.contextmanager
def start(settings):
    print("noise")
    if settings.get("broken"): raise ImportError("no such engine")
    yield Fake()

talk(start)
"""


@pytest.fixture
def rival(tmp_path: Path) -> Iterator[Any]:
    """Makes a rival of the fake script; it is ended afterwards."""
    from rival_process import RivalProcess

    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    with ExitStack() as stack, (tmp_path / "log").open("w") as log:

        def make(python: str = sys.executable, **settings: Any) -> RivalProcess:
            made = RivalProcess(str(script), python, settings, log)
            stack.callback(made.close)
            return made

        yield make


def not_measured(call: Callable[[], object]) -> str:
    from rival_process import NotMeasuredError

    with pytest.raises(NotMeasuredError) as caught:
        call()
    return str(caught.value)


def test_a_rival_answers_whatever_its_libraries_print(rival: Any, tmp_path: Path) -> None:
    process = rival()
    assert process.start(60)["cannot"] == ["do much"]
    answer = process.ask([[1, 2], [3, 4]], 3, 2, 60)
    assert answer["seconds"] > 0
    assert answer["beams"] == [[[[0, 10, 20 + rank], -rank] for rank in range(3)]] * 2
    process.close()
    assert "what libraries print" in (tmp_path / "log").read_text()


def test_what_keeps_a_rival_from_starting_is_its_reason(rival: Any) -> None:
    assert not_measured(lambda: rival(broken=True).start(60)) == "ImportError: no such engine"
    assert "does not run" in not_measured(lambda: rival(python="/nowhere/python").start(60))


@pytest.mark.parametrize(
    ("width", "reason"), [(13, "ValueError: not this width"), (14, "status 7"), (15, "no answer within 1 s")]
)
def test_what_keeps_a_rival_from_answering_is_its_reason(rival: Any, width: int, reason: str) -> None:
    process = rival()
    process.start(60)
    assert reason in not_measured(lambda: process.ask([[1]], width, 1, 1.0))
    if width != 13:  # it is gone, and says so
        assert "ended" in not_measured(lambda: process.ask([[1]], 3, 1, 60))


def test_a_width_that_fails_leaves_the_others_to_be_measured(rival: Any, catalog: Catalog) -> None:
    from rival_arena import Arena

    wanted = {"warm_up": 1, "requests": 4, "seconds": 5.0, "patience": 60.0, "at_a_time": 2}
    arena = Arena(SimpleNamespace(**wanted), catalog, iter([[number] for number in range(10_000)]))
    arena.up = {"ours": rival(), "other": rival()}
    for process in arena.up.values():
        process.start(60)
    arena.absent = {"third": "no --third-python was given"}
    ours, other, third = arena.measure(6)
    assert len(ours.seconds) == len(other.seconds) == other.same_as_ours == 4
    assert ours.in_catalog == other.of_ours == 1.0 and ours.per_second is not None
    assert third.of_ours is None
    assert (third.why, third.median) == ("no --third-python was given", None)
    assert arena.measure(7)[0].in_catalog == pytest.approx(6 / 7)  # the seventh SID is not in the catalog
    assert {cell.why for cell in arena.measure(13)[:2]} == {"ValueError: not this width"}
    assert arena.measure(2)[0].median is not None


def test_a_connection_that_the_server_ended_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH / "rival"))
    from caller import Caller

    class Impatient(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which keeps a connection
        timeout = 0.05  # seconds, until the next request
        opened = ended = 0

        def setup(self) -> None:
            super().setup()
            Impatient.opened += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

        def finish(self) -> None:
            super().finish()
            Impatient.ended += 1

    with ThreadingHTTPServer(("127.0.0.1", 0), Impatient) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        caller = Caller(f"http://127.0.0.1:{server.server_port}")
        for number in (1, 2):
            assert caller.post("/generate", [number]) == [number]
            until(lambda: Impatient.ended == Impatient.opened, "the server ends the connection")
        server.shutdown()
    assert Impatient.opened == 2


def test_the_same_beams_are_those_that_differ_by_ties_alone() -> None:
    from same_beams import same_beams

    ours = [([1], -1.0), ([2], -2.0), ([3], -2.00002), ([4], -3.0)]
    tied = [([1], -1.0), ([3], -2.00001), ([2], -2.00001), ([4], -3.00005)]
    assert same_beams(ours, tied)
    assert not same_beams(ours, tied[:3])
    assert not same_beams(ours, [([2], -1.0), ([1], -2.0), *ours[2:]])
    assert not same_beams(ours, [*ours[:3], ([4], -3.001)])


def test_of_our_sids_those_are_counted_that_they_found_for_the_same_prompt() -> None:
    from same_beams import share_found

    ours = [([1, 2], -1.0), ([1, 3], -2.0)]
    theirs = [([1, 3], -2.0), ([1, 4], -2.5), ([1, 5], -3.0)]
    assert share_found([(ours, theirs), (ours, [])]) == 0.25
    assert share_found([(ours, ours)]) == 1.0
    assert share_found([]) is share_found([([], theirs)]) is None


def test_a_grammar_holds_every_sid_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH / "rival"))
    from vllm_offline import grammar_of

    (file := tmp_path / "sids.json").write_text("[[3, 7], [3, 9]]")
    tokenizer = SimpleNamespace(decode=lambda tokens: f'<a"{tokens[0]}>')
    want = r'root ::= "<a\"3><a\"7>" | "<a\"3><a\"9>"'
    assert grammar_of(tokenizer, file) == want


def test_the_floor_counts_every_multiplication() -> None:
    from floor import Shape

    from xgr_runtime.wire.messages import ModelIdentity

    model = ModelIdentity("", "float32", 3, 2, 8, hidden=16, vocab=50, tp_size=1)
    shape = Shape(model, q_heads=4, matrices=1000)
    # Per row: each weight once, and per key, layer and head the products of q with k and of p with v.
    assert shape.forward_flop(7, 5) == 2 * 7 * (1000 + 2 * 3 * 4 * 8 * 5)
    assert shape.head_flop(7) == 2 * 7 * 16 * 50
    prompt = shape.forward_flop(11, 6) + shape.head_flop(1)
    step = shape.forward_flop(2, 12) + shape.head_flop(2) + shape.forward_flop(5, 13) + shape.head_flop(5)
    assert shape.request_flop(11, [2, 5]) == prompt + step
