"""Requests whose condition has to be evaluated first: that goes on while their prompts are computed."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from decode_worker.aside import Aside
from xgr_runtime.catalog import Catalogs, Lease
from xgr_runtime.wire.messages import AttemptId, DecodeRequest

AT_ONCE = 1 << 15  # items over which a condition is evaluated in a moment


@dataclass(eq=False)
class _Waiting:
    request: DecodeRequest
    arrived: float
    lease: Lease  # of the version that its condition is evaluated on
    work: "Future[object]"


class Conditions:
    """Those that wait, by attempt. A condition that several wait for is evaluated once."""

    def __init__(self, catalogs: Catalogs) -> None:
        self.aside = Aside("conditions")
        self._catalogs = catalogs
        self._waiting: dict[AttemptId, _Waiting] = {}

    def __contains__(self, id: AttemptId) -> bool:
        return id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def ids(self) -> list[AttemptId]:
        return list(self._waiting)

    def hold(self, request: DecodeRequest, now: float) -> bool:
        """Whether it waits now. One about a version that is not here does not."""
        view = self._catalogs.get(request.catalog)
        if not request.where or view is None or view.catalog.items <= AT_ONCE:
            return False
        if request.where in view.filters:
            return False
        evaluate: Callable[[], object] = lambda: view.filters.left_by(request.where)  # noqa: E731
        work = self.aside.submit(evaluate)
        self._waiting[request.id] = _Waiting(request, now, self._catalogs.lease(request.catalog), work)
        return True

    def done(self) -> Iterator[tuple[DecodeRequest, float]]:
        """Those whose condition is known, or found to be none, and when they came."""
        self.aside.woken()
        for id, waiting in list(self._waiting.items()):
            if waiting.work.done():
                yield waiting.request, waiting.arrived
                self.drop(id)

    def late(self, now: float) -> list[AttemptId]:
        """Those whose time is over."""
        return [id for id, one in self._waiting.items() if now >= one.arrived + one.request.timeout]

    def drop(self, id: AttemptId) -> bool:
        """It waits no more; whether it did."""
        waiting = self._waiting.pop(id, None)
        if waiting is None:
            return False
        waiting.work.cancel()
        waiting.lease.end()
        return True

    def close(self) -> None:
        for id in self.ids:
            self.drop(id)
        self.aside.close()
