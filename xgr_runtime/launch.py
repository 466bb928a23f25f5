"""The launcher: one router and the workers behind it, from one configuration to a clean end.

It starts the processes by `python -m` and imports none of them. What can be wrong with the configuration is
found out before any port opens, and reaches the user as one line.
"""

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from xgr_runtime.catalog import load_catalog
from xgr_runtime.catalog.file import is_built_file
from xgr_runtime.child import Program
from xgr_runtime.config import DecodeConfig, PrefillConfig, RouterConfig, ServeConfig, flag, to_argv
from xgr_runtime.errors import ConfigError
from xgr_runtime.model.checkpoint import read_config
from xgr_runtime.run_folder import run_folder
from xgr_runtime.supervisor import Stage, StopRequest, Supervisor

log = logging.getLogger(__name__)

ROUTER = "router"
WORKER_GRACE = 10.0  # seconds; workers stop after the forward that is under way
ROUTER_GRACE = 5.0  # seconds on top of --drain-timeout

AnyConfig = PrefillConfig | DecodeConfig | RouterConfig
C = TypeVar("C", PrefillConfig, DecodeConfig, RouterConfig)


class Deployment:
    """A running topology: `with Deployment(config) as d: d.url`, or `run_forever()` for a foreground command.

    Both raise `StartupError` when it cannot start, and leave no process, socket or folder behind.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.url = ""  # of the HTTP server, once ready
        self._supervisor: Supervisor | None = None
        self._stop_request = StopRequest()
        self._over = threading.Event()  # started, or failed to
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run_in_thread, name="deployment", daemon=True)

    def run_forever(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, then drain; a second signal kills. Main thread only."""
        with _handling_signals(self._on_signal), contextlib.suppress(KeyboardInterrupt):
            self._run()

    def __enter__(self) -> "Deployment":
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
        config = self.config
        check(config)
        with run_folder() as folder:
            catalog = shared_catalog(config, folder)
            stages = plan(config, folder, catalog, len(os.sched_getaffinity(0)))
            self._supervisor = Supervisor(stages, config.start_timeout, self._stop_request)
            self._supervisor.run(self._on_started)

    def _run_in_thread(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()

    def _on_started(self, infos: Mapping[str, dict[str, Any]]) -> None:
        assert self._supervisor
        config, port = self.config, int(infos[ROUTER]["port"])
        router = self._supervisor.programs[ROUTER]
        # A restarted router comes back where its clients know it, also if any free port was asked for.
        self._supervisor.programs[ROUTER] = replace(router, argv=[*router.argv, f"{flag('port')}={port}"])
        self.url = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{port}"
        log.info(
            "ready at %s (%d prefill, %d decode)", self.url, config.prefill_workers, config.decode_workers
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


def check(config: ServeConfig) -> None:
    """What can be said before anything is started. Raises `StartupError`."""
    _check_port(config.host, config.port)
    read_config(Path(config.model_path))
    if not config.api_key and not _is_loopback(config.host):
        log.warning("--host %s is open to other machines and no --api-key is set", config.host)


def shared_catalog(config: ServeConfig, folder: Path) -> str:
    """The built catalog file that all processes map: the given one, or one made in `folder` from the source.

    Raises `CatalogError`.
    """
    path = Path(config.catalog)
    if is_built_file(path):
        return str(path)
    built = folder / "catalog.xgr"
    load_catalog(path, config.model_path).save(built)
    return str(built)


def plan(config: ServeConfig, folder: Path, catalog: str, cores: int) -> list[Stage]:
    """The processes of the deployment; their sockets lie in `folder`.

    The router is a stage of its own: no port opens before every worker has found its model and catalog good.
    """
    threads = config.threads or max(1, cores // (config.prefill_workers + config.decode_workers))
    prefill = [
        _derive(PrefillConfig, config, name=name, control_address=_socket(folder, name), threads=threads)
        for name in _names("prefill", config.prefill_workers)
    ]
    decode = [
        _derive(
            DecodeConfig,
            config,
            name=name,
            control_address=_socket(folder, name),
            data_address=_socket(folder, f"{name}.data"),
            catalog=catalog,
            threads=threads,
        )
        for name in _names("decode", config.decode_workers)
    ]
    router = _derive(
        RouterConfig,
        config,
        catalog=catalog,
        prefill=[worker.control_address for worker in prefill],
        decode=[worker.control_address for worker in decode],
    )
    workers = [_worker("prefill_worker", c) for c in prefill] + [_worker("decode_worker", c) for c in decode]
    return [
        Stage(workers, WORKER_GRACE),
        Stage([_router(router)], config.drain_timeout + ROUTER_GRACE),
    ]


def _derive(kind: type[C], config: ServeConfig, **own: Any) -> C:
    """A process's configuration: its own values, and the launcher's for every other field they share."""
    shared = {name: getattr(config, name) for name in kind.__struct_fields__ if hasattr(config, name)}
    return kind(**(shared | {"ready_fd": -1} | own))


def _worker(module: str, config: PrefillConfig | DecodeConfig) -> Program:
    # Also for the OpenMP pools that torch's own thread setting does not reach.
    return Program(config.name, module, to_argv(config), {"OMP_NUM_THREADS": str(config.threads)})


def _router(config: RouterConfig) -> Program:
    """The key travels in the environment: everybody on the machine can read a process's arguments."""
    argv = [arg for arg in to_argv(config) if not arg.startswith(f"{flag('api_key')}=")]
    return Program(ROUTER, "router", argv, {"XGR_API_KEY": config.api_key} if config.api_key else {})


def _names(stage: str, count: int) -> list[str]:
    return [f"{stage}-{number}" for number in range(count)]


def _socket(folder: Path, name: str) -> str:
    return f"ipc://{folder / name}"


def _check_port(host: str, port: int) -> None:
    """Raises `ConfigError` where the router could not bind; what changes meanwhile it finds out itself."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host} is not an address of this machine: {error.strerror}") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError(
                f"cannot use port {port} of {host}, {error.strerror}: choose another --port or --host"
            ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
