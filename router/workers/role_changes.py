"""Tells workers that can take either role which to take, as the load asks: the planner's eyes and hands."""

import asyncio
import logging
import time
from collections.abc import Sequence

from router.admission.admission import Admission
from router.workers.roles import Side, Thought, think
from router.workers.roster import Roster, candidates
from router.workers.worker import Worker
from xgr_runtime.wire.messages import Role, TakeRole

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds


class RoleChanges:
    """One router of a fleet has this: two would pull the same workers to and fro."""

    def __init__(self, roster: Roster, admission: Admission, router: int) -> None:
        """`router`: this one's incarnation."""
        self._roster = roster
        self._admission = admission
        self._router = router
        self._thought = Thought()

    async def run(self) -> None:
        """For ever. What goes wrong costs a look and nothing else."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                self.look(time.monotonic())
            except Exception:
                log.exception("roles could not be planned")

    def look(self, now: float) -> None:
        """Tell one worker to change, if that is better."""
        prompts, beams = self._admission.offered.rates(now)
        prefill, decode = self._side(self._roster.prefill, prompts), self._side(self._roster.decode, beams)
        changing = any(worker.alive and worker.changing for worker in self._roster)
        self._thought, role = think(self._thought, prefill, decode, now, changing)
        if role is not None:
            self._tell(role, prefill.busy(), decode.busy())

    def _side(self, workers: Sequence[Worker], rate: float) -> Side:
        usable = [worker for worker in workers if not self._roster.problem(worker)]
        devices = {candidate.device for candidate in candidates(usable)}
        waiting = sum(self._admission.waiting(device) for device in devices)
        return Side(len(usable), sum(worker.flexible for worker in usable), rate, waiting)

    def _tell(self, role: Role, prefill: float, decode: float) -> None:
        """The one with the least under way."""
        others = self._roster.decode if role == "prefill" else self._roster.prefill
        able = [worker for worker in others if worker.flexible and not self._roster.problem(worker)]
        worker = min(able, key=lambda one: (one.in_flight, one.address))
        log.info(
            "%s is told to be a %s worker: prefill workers are busy for %.2f of their time, decode for %.2f",
            *(worker.address, role, prefill, decode),
        )
        worker.send(TakeRole(self._router, worker.incarnation, role))
