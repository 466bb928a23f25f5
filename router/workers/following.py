"""Keeps the roster as discovery has it: whom the settings name, and whom a file names as it changes."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from router.workers.roster import Roster
from xgr_runtime.config import RouterConfig
from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.discovery.file import FileList
from xgr_runtime.discovery.static import StaticList
from xgr_runtime.discovery.watch import Tell, Watch
from xgr_runtime.errors import ConfigError


class Following:
    """Who is newly named joins, who is no longer named leaves.

    A worker that was removed by hand stays away while the file goes on naming it, and one that was added by
    hand, or is named by the settings, stays whatever the file says.
    """

    def __init__(self, roster: Roster, config: RouterConfig) -> None:
        self._roster = roster
        self._settings = StaticList(config.prefill, config.decode)
        self._file = FileList(Path(config.workers_file)) if config.workers_file else None
        self._named: Sequence[WorkerAddress] = ()  # by the file
        self._again = config.ready_fd >= 0  # a launcher has read the file before, and may start us again
        self._watch: Watch | None = None

    def start(self) -> None:
        """Add who is named now, and follow the file. Inside a running loop. Raises `ConfigError`."""
        for named in self._settings.look():
            self._roster.add(named, kept=True)
        if self._file is not None:
            self._watch = Watch(self._file, self._first(self._file), self._teller())
            self._watch.start()

    def stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    @property
    def problem(self) -> str:
        """Why the file counts as it was before, or an empty string."""
        return self._watch.problem if self._watch is not None else ""

    def follow(self, named: Sequence[WorkerAddress]) -> None:
        """`named` are all that the file names now. Raises `ConfigError`: then nobody leaves."""
        new = [worker for worker in named if worker not in self._named]
        gone = [worker for worker in self._named if worker not in named and not self._roster.keeps(worker)]
        for worker in new:
            self._roster.check(worker)
        self._check_rest(new, gone)
        for worker in gone:
            self._roster.discard(worker)
        for worker in new:
            self._roster.add(worker)
        self._named = named

    def _check_rest(self, new: Sequence[WorkerAddress], gone: Sequence[WorkerAddress]) -> None:
        """Whoever wrote an empty list may have lost its own source. Raises `ConfigError`."""
        here = [WorkerAddress(w.role, w.address) for w in self._roster if not w.leaving]
        before = {worker.role for worker in here}
        after = {worker.role for worker in [*here, *new] if worker not in gone}
        for role in sorted(before - after):
            raise ConfigError(
                f"{self._file} would leave no {role} worker: name one, or remove the last by DELETE /workers"
            )

    def _first(self, file: FileList) -> Sequence[WorkerAddress] | None:
        """Follow it for the first time; None where a router that was started again can go on without."""
        try:
            named = file.look()
            self.follow(named)
            return named
        except ConfigError:
            if not (self._again and self._roster.prefill and self._roster.decode):
                raise
            return None  # the watch says why

    def _teller(self) -> Tell:
        """`follow`, for another thread."""
        loop = asyncio.get_running_loop()

        async def follow(named: Sequence[WorkerAddress]) -> None:
            self.follow(named)

        return lambda named: asyncio.run_coroutine_threadsafe(follow(named), loop).result()


def check_named(config: RouterConfig) -> None:
    """Raises `ConfigError` where a role has no worker and no file could name one."""
    for setting, addresses in (("--prefill", config.prefill), ("--decode", config.decode)):
        if not addresses and not config.workers_file:
            raise ConfigError(f"{setting} names no worker: name one, or a file that does: --workers-file")
