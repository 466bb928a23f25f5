"""The launcher: one router and the workers behind it, from one configuration to a clean end.

It starts the processes, forked from templates or by `python -m`, and imports none of them. What can be wrong
with the configuration is found out before any port opens, and reaches the user as one line.
"""

import contextlib
import http.client
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO

import msgspec

from xgr_runtime.cache.records import Records
from xgr_runtime.catalog import PromptTemplate, load_catalog, seal_catalog
from xgr_runtime.catalog.sealed import inherited_path
from xgr_runtime.catalog.store import Store, begin
from xgr_runtime.catalog.verify import VerifiedBefore
from xgr_runtime.catalog.watch import SourceWatch
from xgr_runtime.config import ServeConfig, flag
from xgr_runtime.config.machine import cores
from xgr_runtime.errors import CatalogError
from xgr_runtime.launcher.kernels_first import cache_for_all, check_tools, compile_first
from xgr_runtime.launcher.mps import mps
from xgr_runtime.launcher.run_folder import run_folder
from xgr_runtime.launcher.supervisor import StopRequest, Supervisor, parts_of_start
from xgr_runtime.launcher.template import Starter
from xgr_runtime.launcher.topology import ROUTER, check, layout_of, plan, templates
from xgr_runtime.launcher.whole import whole
from xgr_runtime.prompts import Prompts
from xgr_runtime.tokenizer import read_tokenizer

log = logging.getLogger(__name__)

CHECKED_CATALOGS = "catalogs"  # in the cache folder: which files were verified
CHECKED_KEPT = 256
PROBE_EVERY = 0.2  # seconds between looks at /readiness while starting
# Seconds. FlashInfer compiles its kernels when a model first runs on a machine.
START_TIMEOUTS = {"cpu": 180.0, "cuda": 900.0}


class Deployment:
    """A running topology: `with Deployment(config) as d: d.url`, or `run_forever()` for a foreground command.

    Both raise `StartupError` when it cannot start, and leave no process, socket or folder behind.
    """

    def __init__(self, config: ServeConfig, starter: Starter | None = None) -> None:
        """`starter`: one that has begun and serves other deployments too; by default one of our own."""
        self.config = config
        self._starter = starter
        self.url = ""  # of the HTTP server, once ready
        self._supervisor: Supervisor | None = None
        self._began = 0.0
        self._stop_request = StopRequest()
        self._over = threading.Event()  # started, or failed to
        self._error: BaseException | None = None
        self._reason = "the router has not been asked yet"
        self._next_probe = 0.0
        self._signals = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._run_in_thread, name="deployment", daemon=True)

    def run_forever(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, then drain; a second signal kills. Main thread only."""
        with _handling_signals(self._on_signal), contextlib.suppress(KeyboardInterrupt):
            self._run()

    def __enter__(self) -> "Deployment":
        """Wait until it serves. In a main thread SIGTERM now acts as Ctrl-C does, so that `__exit__` runs."""
        if threading.current_thread() is threading.main_thread():
            self._signals.enter_context(_handling_signals(signal.default_int_handler))
        self._thread.start()
        try:
            self._over.wait()
            if self._error:
                raise self._error
        except BaseException:  # also a Ctrl-C while starting
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def pid(self, name: str) -> int | None:
        """The process called `name` (prefill-0, decode-0, ..., router), None while there is none."""
        return self._supervisor.pid(name) if self._supervisor else None

    def _run(self) -> None:
        """Everything from the checks to the clean end, in one thread: children die with theirs."""
        config, found = self.config, cores()
        log.info("%d cores, by %s", found.count, found.limit)
        self._began = time.monotonic()
        check(config)
        with run_folder() as folder, contextlib.ExitStack() as held:
            config = msgspec.structs.replace(config, cache_folder=cache_for_all(config, folder.path))
            config = held.enter_context(whole(config))
            check_tools(config)
            self._starter = starter = self._starter or held.enter_context(_own_starter(config, found.count))
            catalog = held.enter_context(self._sealed_catalog(config))
            compile_first(config, self._stop_request)
            shared = held.enter_context(mps(config, folder.path))
            groups = plan(config, folder.path, inherited_path(catalog), found.count, environ=shared.environ)

            def chore() -> None:
                folder.keep()
                shared.keep()

            timeout = config.start_timeout or START_TIMEOUTS[config.device.split(":")[0]]
            self._supervisor = Supervisor(
                groups,
                timeout,
                self._stop_request,
                config.stuck_timeout,
                inherited=[catalog.fileno()],
                chore=chore,
                starter=starter,
            )
            self._supervisor.run(self._missing)

    @contextlib.contextmanager
    def _sealed_catalog(self, config: ServeConfig) -> Iterator[BinaryIO]:
        """What all processes map, also later ones, whatever becomes of the file that it was read from.

        Memory rather than a copy in the run folder: nobody can write to it, and nobody clears it away. A file
        is verified once per machine, and its checksums are read each time.
        """
        kept = Records(Path(config.cache_folder) / CHECKED_CATALOGS, CHECKED_KEPT)
        source = self._source(config.model_path, kept)
        try:
            watch = SourceWatch(source)
            known = VerifiedBefore() if config.catalog_store else kept
            memory, version = seal_catalog(source, config.model_path, known)
        except CatalogError as error:
            setting = f"{flag('catalog')} " if str(error).startswith(str(source)) else ""
            raise CatalogError(f"{setting}{error}") from error
        with memory, watch.looking(version):
            log.info("catalog %s is served as it is now, version %s", source, version)
            _check_templates(memory, Path(config.model_path))
            yield memory

    def _source(self, model_path: str, kept: Records) -> Path:
        """The catalog that processes start with; edits of a store are for its router to tell."""
        config = self.config
        if not config.catalog_store:
            return Path(config.catalog)
        with Store(Path(config.catalog_store), config.catalog_keep) as store:
            return begin(store, config.catalog, model_path, kept).file

    def _run_in_thread(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()

    def _missing(self, infos: Mapping[str, dict[str, Any]]) -> str:
        """Why the deployment does not serve yet; announces it as soon as it does."""
        config, port = self.config, int(infos[ROUTER]["port"])
        if time.monotonic() < self._next_probe:
            return self._reason
        reason = probe(config.host, port)
        if reason != self._reason and reason:
            log.info("not serving yet: %s", reason)
        self._reason = reason
        self._next_probe = time.monotonic() + PROBE_EVERY
        if not self._reason:
            self._announce(port, infos)
        return self._reason

    def _announce(self, port: int, infos: Mapping[str, dict[str, Any]]) -> None:
        assert self._supervisor and self._starter
        config, router = self.config, self._supervisor.programs[ROUTER]
        # A restarted router comes back where its clients know it, also if any free port was asked for.
        self._supervisor.programs[ROUTER] = replace(router, argv=[*router.argv, f"{flag('port')}={port}"])
        self.url = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{port}"
        workers = f"{config.prefill_workers} prefill, {config.decode_workers} decode"
        if layout_of(config) == "colocated":
            workers += " that reads its memory"
        workers += f", {config.any_workers} of either role" if config.any_workers else ""
        workers += f", {config.standby} standby" if config.standby else ""
        if config.sglang_prefill:
            workers += f", prompts also to {', '.join(config.sglang_prefill)}"
        parts = _slowest(infos)
        parts["imports"] = parts.get("imports", 0.0) + self._starter.seconds
        log.info(
            "ready at %s (%s) after %.1f s; templates and the slowest worker took %s",
            *(self.url, workers, time.monotonic() - self._began, parts_of_start(parts)),
        )
        self._over.set()

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self._stop_request.ask()
        if self._supervisor is None:  # nothing runs yet, so there is nothing to drain
            raise KeyboardInterrupt

    def _stop(self) -> None:
        """Drain, stop, and wait for it; a Ctrl-C meanwhile kills."""
        while self._thread.is_alive():
            with contextlib.suppress(KeyboardInterrupt):
                self._stop_request.ask()
                self._thread.join()
        self._signals.close()


def _check_templates(memory: BinaryIO, checkpoint: Path) -> None:
    """As a router does it, before minutes go to workers. Raises CatalogError."""
    catalog = load_catalog(inherited_path(memory), checkpoint)
    if any(not isinstance(one, PromptTemplate) for one in catalog.templates.named.values()):
        Prompts.read(read_tokenizer(checkpoint), checkpoint).check(catalog)


def _slowest(infos: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """The parts of the longest start, in seconds."""
    starts = [dict(info.get("start", {})) for info in infos.values()]
    return max(starts, key=lambda parts: sum(parts.values()), default={})


def probe(host: str, port: int) -> str:
    """Why the router at that address takes no requests, empty when it does."""
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", "/readiness")
        answer = connection.getresponse()
        body = answer.read()
        return "" if answer.status == 200 else str(json.loads(body)["error"]["message"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return f"the router does not answer /readiness ({type(error).__name__})"
    finally:
        connection.close()


@contextlib.contextmanager
def _own_starter(config: ServeConfig, cores: int) -> Iterator[Starter]:
    """Its templates import already: that is most of a start, and the rest goes on beside them."""
    starter = Starter(templates(config, cores))
    try:
        starter.begin()
        yield starter
    finally:
        starter.close()


@contextlib.contextmanager
def _handling_signals(handler: Any) -> Iterator[None]:
    """SIGTERM and SIGINT go to `handler`; so does SIGHUP, unless `nohup` asked to ignore it."""
    numbers = [
        n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
