"""When a missing pair is said to be back."""

import asyncio
import time

import msgspec
import pytest
from played_workers import LOAD, MODEL, VIEW
from puppet_workers import Puppet, Theatre

from router.job import WorkerState
from router.workers import roster
from router.workers.returns import seconds_to_a_pair, seconds_to_start
from xgr_runtime.errors import Draining, NoWorkers
from xgr_runtime.wire.messages import PROTOCOL, START_SECONDS, Limits, Role, WorkerHello


def state(role: Role, here: bool = True, away: float = 0.0, start: float = 20.0) -> WorkerState:
    return WorkerState("", role, here, here, "" if here else "it is gone", None, 0, away, start)


HERE = state("prefill")


@pytest.fixture(autouse=True)
def puppets(monkeypatch: pytest.MonkeyPatch) -> None:
    def puppet(self: roster.Roster, address: str, role: Role) -> Puppet:
        return Puppet(address, role, *self._told)

    monkeypatch.setattr(roster.Roster, "_worker", puppet)


@pytest.mark.parametrize(
    ("decode", "seconds"),
    [
        ([state("decode")], 0.0),
        ([state("decode", False, 5.0)], 15.0),
        ([state("decode", False, 50.0)], 0.0),
        ([state("decode", False, 5.0, start=0.0)], 0.0),
        ([state("decode", False, 5.0), state("decode")], 0.0),
        ([state("decode", False, 5.0), state("decode", False, 12.0)], 8.0),
        ([state("decode", False, 1.0), state("decode", False, 2.0, start=0.0)], 18.0),
        ([], 0.0),
    ],
    ids=["here", "lost", "overdue", "never seen", "another is here", "two", "one never seen", "none"],
)
def test_a_pair_is_there_when_the_first_of_each_role_is_back(
    decode: list[WorkerState], seconds: float
) -> None:
    assert seconds_to_a_pair([HERE, *decode]) == seconds


@pytest.mark.parametrize("said", [-1.0, 0.0, 1e30])
def test_what_no_start_takes_is_not_believed(said: float) -> None:
    puppet = Puppet("p", "prefill", lambda *_: None, lambda *_: None)
    puppet.revive()
    announce(puppet, said)
    assert 0.0 <= puppet.start_seconds <= 3600.0


def test_both_roles_have_to_be_back() -> None:
    assert seconds_to_a_pair([state("prefill", False, 1.0), state("decode", False, 1.0, start=7.0)]) == 19.0
    assert seconds_to_start([state("prefill", start=9.0), state("decode", start=7.0)]) == 9.0


def announce(puppet: Puppet, seconds: float) -> None:
    """Let it say how long its start took."""
    load = msgspec.structs.replace(LOAD, counters={START_SECONDS: seconds})
    hello = WorkerHello(
        PROTOCOL, puppet.role, "w", puppet.incarnation, MODEL, "", [VIEW.version], Limits(64, 8), load
    )
    puppet.meet(hello)


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("seconds", [2.5, 20.0, 300.0])
def test_a_refusal_says_how_long_the_lost_worker_needs(role: Role, seconds: float) -> None:
    async def play() -> None:
        theatre = Theatre(1, 1, 1)
        for worker in theatre.workers:
            announce(worker, seconds if worker.role == role else 1.0)
        (lost,) = (worker for worker in theatre.workers if worker.role == role)
        lost.lost("it was killed")
        with pytest.raises(NoWorkers) as refused:
            await theatre.ask("a", (1, 2, 3))
        assert seconds - 1 < refused.value.retry_after <= seconds
        lost.away_since = time.monotonic() - seconds / 2
        with pytest.raises(NoWorkers) as refused:
            await theatre.ask("b", (1, 2, 3))
        assert seconds / 2 - 1 < refused.value.retry_after <= seconds / 2
        theatre.dispatcher.draining = True
        with pytest.raises(Draining) as stopping:
            await theatre.ask("c", (1, 2, 3))
        assert stopping.value.retry_after == seconds
        await theatre.dispatcher.stop()

    asyncio.run(play())
