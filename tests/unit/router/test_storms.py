"""Storms over the roster: workers are added, removed, restarted, change roles and die, while requests live.

Whatever comes in whatever order: every request ends, none wrongly, and nothing of it or of a worker is left.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace
from puppet_workers import Puppet, Theatre

from router.job import Outcome
from router.workers import roster
from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.errors import ConfigError, DuplicateWorker, RequestError
from xgr_runtime.wire.messages import Role, TakeRole, WorkerHello

NAMES = st.integers(0, 5)
ROLES = st.sampled_from(["prefill", "decode"])
CHOICE = st.integers(0, 1 << 16)


class Shifting(Puppet):
    """A puppet that can take either role, if its address says so, and drains before it does."""

    wanted: Role | None = None

    def meet(self, hello: WorkerHello) -> None:
        change = "no" if "any" not in self.address else "under way" if self.wanted else "can"
        super().meet(replace(hello, change=change))

    def send(self, message: Any) -> bool:
        if isinstance(message, TakeRole) and message.worker == self.incarnation and self.alive:
            self.wanted = message.role
            assert self.hello is not None
            self.meet(self.hello)
        return self.alive

    def change(self) -> None:
        """It has finished what it had: from now on it is another run, in the other role."""
        assert self.wanted is not None and self.hello is not None
        hello = replace(self.hello, role=self.wanted, incarnation=self.hello.incarnation + 1_000_000)
        self.wanted = None
        self.meet(hello)

    def revive(self) -> None:
        self.wanted = None
        super().revive()


@pytest.fixture(autouse=True, scope="module")
def puppets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            roster.Roster, "_worker", lambda self, address, role: Shifting(address, role, *self._told)
        )
        # No time passes: who leaves is looked at in every turn of the loop.
        patch.setattr(roster, "LOOK", 0.0)
        yield


class Storm(RuleBasedStateMachine):
    """Two workers stay named by the settings; others come, go, change and die."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.asked: list[asyncio.Task[Outcome]] = []
        self.t: Theatre = self.do(self._begin())

    async def _begin(self) -> Theatre:
        return Theatre(0, prefill=1, decode=1)

    def do(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    async def _settled(self, act: Any = None) -> Any:
        found = act() if act is not None else None
        await self.t.settle()
        return found

    def act(self, act: Any = None) -> Any:
        return self.do(self._settled(act))

    def pick(self, number: int) -> Shifting:
        return self.t.workers[number % len(self.t.workers)]  # type: ignore[no-any-return]

    @rule()
    def ask(self) -> None:
        number = len(self.asked)
        self.asked.append(self.act(lambda: self.t.ask(f"r{number}", (number + 1,))))

    @rule(number=NAMES, role=ROLES, flexible=st.booleans())
    def add(self, number: int, role: Role, flexible: bool) -> None:
        named = WorkerAddress(role, f"ipc:///{'any' if flexible else role[0]}{number}")
        there = {worker.address: worker for worker in self.t.workers}.get(named.address)
        if there is not None and there.role != role and not there.flexible:
            with pytest.raises((DuplicateWorker, ConfigError)):
                self.act(lambda: self.t.dispatcher.add_worker(named))
        else:
            state = self.act(lambda: self.t.dispatcher.add_worker(named))
            assert not state.leaving and (state.flexible or state.role == role)

    @precondition(lambda self: len(self.t.workers) > 2)
    @rule(number=CHOICE)
    def remove(self, number: int) -> None:
        worker = self.pick(number)
        held = {attempt for attempt in self.t.live if worker in (attempt.prefill, attempt.decode)}
        assert self.act(lambda: self.t.dispatcher.remove_worker(worker.address)).leaving
        assert held <= set(self.t.live), "what it has it finishes"

    @rule(number=CHOICE)
    def die(self, number: int) -> None:
        self.act(lambda: self.pick(number).lost("killed"))

    @rule(number=CHOICE)
    def restart(self, number: int) -> None:
        """Also of one that lives: the router never saw the end of the run before."""
        self.act(self.pick(number).revive)

    @rule(number=CHOICE, role=ROLES)
    def told(self, number: int, role: Role) -> None:
        worker = self.pick(number)
        if worker.flexible and worker.alive and role != worker.role:
            self.act(lambda: worker.send(TakeRole(0, worker.incarnation, role)))
            assert worker.changing and worker.problem

    @rule(number=CHOICE, early=st.booleans())
    def change(self, number: int, early: bool) -> None:
        """Once drained, as it should be, or with requests, as after a time-out."""
        worker = self.pick(number)
        if worker.wanted and worker.alive and (early or not worker.in_flight):
            role = worker.wanted
            self.act(worker.change)
            assert worker.role == role and not worker.changing

    @precondition(lambda self: self.t.live)
    @rule(number=CHOICE, event=st.sampled_from(["commit", "answer", "fail", "abort"]))
    def attempt(self, number: int, event: str) -> None:
        attempt = self.t.live[number % len(self.t.live)]
        if event == "abort":
            self.act(lambda: self.t.dispatcher.abort(attempt.request.job.rid))
        elif event == "fail":
            self.act(lambda: self.t.fail(attempt))
        else:
            self.act(lambda: self.t.commit(attempt))
            if event == "answer":
                self.act(lambda: self.t.answer(attempt))

    @invariant()
    def requests_are_on_workers_that_are_there_in_the_roles_that_they_have(self) -> None:
        members = {worker: worker.incarnation for worker in self.t.workers}
        for attempt in self.t.live:
            if attempt.outcome is not None:
                continue
            for worker, incarnation in (
                (attempt.prefill, None if attempt.committed else attempt.id.prefill),
                (attempt.decode, attempt.id.decode),
            ):
                if incarnation is not None:
                    assert members.get(worker) == incarnation and worker.alive
            assert attempt.decode.role == "decode"
            assert attempt.committed or attempt.prefill.role == "prefill"

    @invariant()
    def loads_are_those_of_the_attempts(self) -> None:
        for worker in self.t.workers:
            held = sum(
                (attempt.prefill is worker and not attempt.committed) + (attempt.decode is worker)
                for attempt in self.t.live
            )
            assert worker.in_flight == held

    def teardown(self) -> None:
        try:
            self.do(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        """From now on all goes well: whoever was asked is answered, and whoever leaves is forgotten."""
        t = self.t
        for role, name in (("prefill", "ipc:///p-last"), ("decode", "ipc:///d-last")):
            t.dispatcher.add_worker(WorkerAddress(role, name))  # type: ignore[arg-type]
        for _ in range(40 * (len(self.asked) + 1)):
            for worker in t.workers:
                if not worker.alive:
                    worker.revive()
            for attempt in t.live:
                t.commit(attempt)
                t.answer(attempt)
            await t.settle()
            if all(task.done() for task in self.asked):
                break
        assert all(task.done() for task in self.asked), "a request hangs"
        for outcome in await asyncio.gather(*self.asked, return_exceptions=True):
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, RequestError), outcome
            else:
                assert outcome.leaves.tolist() == [5, 3]
        attempts = t.dispatcher._attempts
        assert not (attempts._live or attempts._alone or attempts.admission.backlogs or t.dispatcher._tries)
        assert not any(worker.load or worker.in_flight for worker in t.workers)
        await t.settle()
        assert not [worker.address for worker in t.workers if worker.leaving]
        assert not t.dispatcher.roster._drains
        await t.dispatcher.stop()


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
