"""Children that wait take the places of children that are lost, alone or several together."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supervised import Running
from until import until

from xgr_runtime.config import AnyConfig, PrefillConfig, ServeConfig, parse
from xgr_runtime.errors import ConfigError
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.supervisor import StartGroup
from xgr_runtime.launcher.topology import check, plan
from xgr_runtime.process.orders import Order, Orders, order_line

Tiny = Callable[..., Any]
PLACE = Order("decode_worker", ["--name=decode-0"])


def reserve(tiny: Tiny, names: list[str], places: list[list[str]]) -> StartGroup:
    """Whoever takes a place says as its name what the place's first argument is."""
    waiting = [tiny(name, act="waiting") for name in names]
    return StartGroup(waiting, 5.0, [[program(name) for name in place] for place in places])


def program(name: str) -> Program:
    return Program(name, "tiny_process", [name])


def waits(running: Running, *names: str) -> None:
    until(lambda: all(running.infos.get(name, {}).get("waits") for name in names), f"{names} wait", 30)


def pid(running: Running, name: str) -> int:
    found = running.supervisor.pid(name)
    assert found is not None
    return found


def test_one_that_waits_takes_the_place_and_another_waits_then(
    tiny: Tiny, supervise: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    running = supervise(StartGroup([tiny("a"), tiny("b")], 5.0), reserve(tiny, ["spare"], [["a"], ["b"]]))
    waits(running, "spare")
    spare, other = pid(running, "spare"), running.infos["b"]["pid"]
    os.kill(running.infos["a"]["pid"], signal.SIGKILL)
    until(lambda: running.infos["a"]["pid"] == spare, "the spare one has the place", 30)
    assert running.infos["a"]["name"] == "a" and running.infos["b"]["pid"] == other
    assert "a was killed by SIGKILL; taken over by spare" in caplog.text
    until(lambda: running.supervisor.pid("spare") not in (None, spare), "another one waits", 30)
    again = pid(running, "spare")
    until(lambda: running.supervisor._waits("spare"), "it is ready", 30)
    os.kill(other, signal.SIGKILL)
    until(lambda: running.infos["b"]["pid"] == again, "that has the other place", 30)


def test_a_place_of_two_is_taken_by_two(tiny: Tiny, supervise: Callable[..., Running]) -> None:
    """The half that is left goes: what it shares with the other is gone."""
    group = StartGroup([tiny("a"), tiny("b")], 5.0)
    running = supervise(group, reserve(tiny, ["spare-a", "spare-b"], [["a", "b"]]))
    waits(running, "spare-a", "spare-b")
    spares, old = [pid(running, f"spare-{name}") for name in "ab"], running.infos["a"]["pid"]
    os.kill(running.infos["b"]["pid"], signal.SIGKILL)
    until(lambda: [running.infos[name]["pid"] for name in "ab"] == spares, "both have their places", 30)
    assert [running.infos[name]["name"] for name in "ab"] == ["a", "b"]
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)


def test_a_reserve_of_two_that_loses_one_starts_again_as_a_whole(
    tiny: Tiny, supervise: Callable[..., Running]
) -> None:
    group = StartGroup([tiny("a"), tiny("b")], 5.0)
    running = supervise(group, reserve(tiny, ["spare-a", "spare-b"], [["a", "b"]]))
    waits(running, "spare-a", "spare-b")
    before = {pid(running, name) for name in ("spare-a", "spare-b")}
    os.kill(pid(running, "spare-a"), signal.SIGKILL)

    def anew() -> bool:
        now = {running.supervisor.pid(name) for name in ("spare-a", "spare-b")}
        return None not in now and not now & before

    until(anew, "both are others", 30)


def test_who_was_never_ready_gets_no_reserve(
    tiny: Tiny, supervise: Callable[..., Running], tmp_path: Path
) -> None:
    """What keeps one from starting would cost the reserve, too."""
    gate = tmp_path / "gate"
    group = StartGroup([tiny("bad", act="once", marks=tmp_path / "marks")], 5.0)
    waiting = StartGroup([tiny("spare", act="waiting", gate=gate)], 5.0, [[program("bad")]])
    running = supervise(group, waiting)
    os.kill(running.infos["bad"]["pid"], signal.SIGKILL)
    until(lambda: running.supervisor.restarts >= 1, "it fails to start", 30)
    gate.touch()
    waits(running, "spare")
    spare, restarts = pid(running, "spare"), running.supervisor.restarts
    until(lambda: running.supervisor.restarts >= restarts + 2, "it fails again and again", 60)
    assert pid(running, "spare") == spare


def test_an_order_comes_whole_or_not_at_all() -> None:
    read, write = os.pipe()
    line = order_line(PLACE)
    asked = iter([False, False, True])
    os.write(write, line[:7])
    orders = Orders(read)
    assert orders.next(lambda: next(asked)) is None  # half a line, and the process shall end
    os.write(write, line[7:])
    assert orders.next(lambda: False) == PLACE
    os.close(write)
    began = time.monotonic()
    assert orders.next(lambda: False) is None  # the launcher is gone
    assert time.monotonic() - began < 5.0
    orders.close()


SERVE = ServeConfig(model_path="m", catalog="c", prefill_workers=2, decode_workers=2, standby=2)


def test_a_standby_is_warmed_for_any_place_of_workers_with_memory_of_their_own() -> None:
    workers, _, *reserves = plan(SERVE, Path("/run/x"), "cat", cores=8)
    assert [[program.name for program in group.programs] for group in reserves] == [
        ["standby-0"],
        ["standby-1"],
    ]
    for group in reserves:
        assert group.places == [[program] for program in workers.programs]
        (waiting,) = group.programs
        config = parse(AnyConfig, [*waiting.argv, "--orders-fd=9"], {})
        assert waiting.waits and waiting.module == "any_worker" and config.role == "any"
        assert (config.catalog, config.threads, config.control_address) == ("cat", 2, "")


def test_a_pair_waits_for_a_pair_that_shares_memory() -> None:
    serve = ServeConfig(model_path="m", catalog="c", layout="colocated", standby=1)
    workers, _, reserve = plan(serve, Path("/run/x"), "cat", cores=8)
    assert reserve.places == [list(workers.programs)]
    prefill, decode = [parse(AnyConfig, program.argv, {}) for program in reserve.programs]
    assert (prefill.role, decode.role) == ("prefill", "decode")
    assert prefill.publish_memory == decode.memory_of != ""
    theirs = parse(PrefillConfig, workers.programs[0].argv, {})
    assert prefill.publish_memory != theirs.publish_memory
    assert theirs.turns_file == prefill.turns_file != ""


def test_a_standby_has_a_gpu_of_its_own_where_there_is_one() -> None:
    serve = ServeConfig(model_path="m", catalog="c", device="cuda", standby=2)
    groups = plan(serve, Path("/run/x"), "cat", cores=8, gpus=3)
    configs = [parse(AnyConfig, group.programs[0].argv, {}) for group in groups[2:]]
    assert [config.device for config in configs] == ["cuda:2", "cuda:0"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_backend": "sglang"}, "--standby .* use --model-backend transformers"),
        ({"standby": 200}, "--standby are 202, .* at most .*: lower them"),
    ],
)
def test_what_no_standby_can_be_for(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(ServeConfig(**{"model_path": "m", "catalog": "c", "standby": 1, **settings}))
