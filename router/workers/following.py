"""Keeps the roster as discovery has it: whom the settings name, and whom a file or cluster names by now."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from router.workers.roster import Roster
from xgr_runtime.config import RouterConfig
from xgr_runtime.discovery import Source, WorkerAddress
from xgr_runtime.discovery.file import FileList
from xgr_runtime.discovery.kubernetes import Account, Api, Follower, PodSource
from xgr_runtime.discovery.static import StaticList
from xgr_runtime.discovery.watch import Tell, Watch
from xgr_runtime.errors import ConfigError


class Following:
    """Who is newly named joins, who is no longer named leaves.

    A worker that was removed by hand stays away while the source goes on naming it, and one that was added by
    hand, or is named by the settings, stays whatever the source says.
    """

    def __init__(self, roster: Roster, config: RouterConfig) -> None:
        """Raises `ConfigError` for a source that cannot be."""
        self._roster = roster
        self._settings = StaticList(config.prefill, config.decode)
        self._source = source_of(config)
        self._named: Sequence[WorkerAddress] = ()  # by the source
        self._again = config.ready_fd >= 0  # a launcher has read the file before, and may start us again
        self._watch: Watch | None = None

    def start(self) -> None:
        """Add who is named now, and follow the source. Inside a running loop. Raises `ConfigError`."""
        for named in self._settings.look():
            self._roster.add(named, kept=True)
        if self._source is not None:
            self._watch = Watch(self._source, self._first(self._source), self._teller())
            self._watch.start()

    def stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        if isinstance(self._source, PodSource):
            self._source.stop()

    @property
    def problem(self) -> str:
        """Why the source counts as it was before, or an empty string."""
        return self._watch.problem if self._watch is not None else ""

    def follow(self, named: Sequence[WorkerAddress]) -> None:
        """`named` are all that the source names now. Raises `ConfigError`: then nobody leaves."""
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
        going = {worker.address for worker in gone}  # their roles may be others by now
        after = {worker.role for worker in here if worker.address not in going} | {w.role for w in new}
        for role in sorted(before - after):
            raise ConfigError(
                f"{self._source} would leave no {role} worker: name one, or remove the last by "
                "DELETE /workers"
            )

    def _first(self, source: Source) -> Sequence[WorkerAddress] | None:
        """Follow it for the first time; None where a router can go on without."""
        try:
            named = source.look()
            self.follow(named)
            return named
        except ConfigError:
            # Pods come when they come, and a router must survive its cluster's API. A file is there, or was.
            started_again = self._again and self._roster.prefill and self._roster.decode
            if not (started_again or isinstance(source, PodSource)):
                raise
            return None  # the watch says why

    def _teller(self) -> Tell:
        """`follow`, for another thread."""
        loop = asyncio.get_running_loop()

        async def follow(named: Sequence[WorkerAddress]) -> None:
            self.follow(named)

        return lambda named: asyncio.run_coroutine_threadsafe(follow(named), loop).result()


def source_of(config: RouterConfig) -> Source | None:
    """Who names workers besides the settings. Raises `ConfigError`."""
    if not config.kubernetes_selector:
        return FileList(Path(config.workers_file)) if config.workers_file else None
    if config.workers_file:
        raise ConfigError("--workers-file and --kubernetes-selector both name workers: leave one out")
    api = Api(config.kubernetes_api, Account(Path(config.kubernetes_account)))
    selector = config.kubernetes_selector
    return PodSource(Follower(api, config.kubernetes_namespace, selector), selector)


def check_named(config: RouterConfig) -> None:
    """Raises `ConfigError` where a role has no worker and nothing could name one later."""
    later = config.workers_file or config.kubernetes_selector
    for setting, addresses in (("--prefill", config.prefill), ("--decode", config.decode)):
        if not addresses and not later:
            raise ConfigError(
                f"{setting} names no worker: name one, or a file that does, --workers-file, or pods: "
                "--kubernetes-selector"
            )
