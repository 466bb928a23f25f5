"""A supervisor in a thread of a test's own process."""

import threading
from collections.abc import Callable
from typing import Any

from xgr_runtime.errors import StartupError
from xgr_runtime.launcher.supervisor import StartGroup, StopRequest, Supervisor


class Running:
    """A supervisor in a thread of its own, and how it ended."""

    def __init__(
        self,
        groups: list[StartGroup],
        start_timeout: float = 30.0,
        stuck_timeout: float = 0.0,
        chore: Callable[[], None] = lambda: None,
    ) -> None:
        self.stop = StopRequest()
        self.supervisor = Supervisor(groups, start_timeout, self.stop, stuck_timeout, chore=chore)
        self.started = threading.Event()
        self.error: BaseException | None = None
        self.infos: dict[str, dict[str, Any]] = {}
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.supervisor.run(self._missing)
        except StartupError as error:
            self.error = error
        self.started.set()

    def _missing(self, infos: Any) -> str:
        self.infos = infos
        self.started.set()
        return ""

    def end(self) -> None:
        self.stop.ask()
        self.thread.join(60.0)
        assert not self.thread.is_alive()
