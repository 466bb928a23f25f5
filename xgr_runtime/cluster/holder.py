"""An actor that owns one process of a deployment: it starts it, keeps it alive, and ends with it.

The process is a launcher's child like any other. What the actor says of it, `Facts`, is all that the
controller knows of it; nothing of a request passes here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from xgr_runtime.client import XgrClient
from xgr_runtime.cluster.plan import ClusterPlan, bracketed, router_of, tcp, worker_program, write_keys
from xgr_runtime.cluster.ports import free_ports
from xgr_runtime.cluster.scaling import decode_load, prefill_load
from xgr_runtime.config import flag
from xgr_runtime.discovery.ray import Directory
from xgr_runtime.discovery.watch import LOOK_EVERY
from xgr_runtime.errors import ConfigError, XgrError
from xgr_runtime.files import write_whole
from xgr_runtime.launcher.deployment import START_TIMEOUTS
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.run_folder import run_folder
from xgr_runtime.launcher.supervisor import StartGroup, StopRequest, Supervisor
from xgr_runtime.launcher.topology import ROUTER_GRACE, WORKER_GRACE
from xgr_runtime.process.lifecycle import one_line
from xgr_runtime.process.log import configure
from xgr_runtime.wire.messages import Load

log = logging.getLogger(__name__)

ROUTER = "router"
ASK_SECONDS = 5.0  # that the router on this machine has for an answer


@dataclass(frozen=True)
class Facts:
    """What a holder says of its process."""

    name: str
    role: str
    node: str
    address: str = ""  # of a worker, with the name of its key; of a router, its URL
    ready: bool = False
    over: bool = False  # it has ended, and nobody starts it again
    error: str = ""  # why, if nobody asked for it
    pid: int = 0
    # Of a router: whether it takes requests, and of each worker that it sees alive the role and the load.
    serves: bool = False
    loads: Mapping[str, tuple[str, float]] = field(default_factory=dict)


class ProcessHolder:
    """One process, from the constructor to `stop`. Made into an actor by the controller."""

    def __init__(self, plan: ClusterPlan, role: str, name: str, node: str, host: str = "") -> None:
        """`host`: the node's address, empty for what Ray says it is."""
        configure(f"ray {name}", plan.serve.log_level)
        self._plan = plan
        self._role = role
        self._host = host or _node_address()
        self._stop = StopRequest()
        self._supervisor: Supervisor | None = None
        self._port = 0  # of a router's HTTP server, once known
        self._facts = Facts(name, role, node)
        threading.Thread(target=self._run, name="supervisor", daemon=True).start()

    def facts(self) -> Facts:
        """The state of now."""
        supervisor = self._supervisor
        pid = supervisor.pid(self._facts.name) if supervisor else None
        return replace(self._facts, pid=pid or 0)

    def stop(self) -> None:
        """Let it finish what it has, and end it; `facts` says when it is over."""
        self._stop.ask()

    def _run(self) -> None:
        try:
            with run_folder() as folder:
                program = self._program(folder.path)
                if program is not None:
                    self._supervise(program, folder.keep)
        except XgrError as error:
            self._tell(error=one_line(error))
        except Exception as error:
            log.exception("%s failed", self._facts.name)
            self._tell(error=f"{type(error).__name__}: {one_line(error)}")
        finally:
            self._tell(over=True, ready=False, serves=False)

    def _program(self, folder: Path) -> Program | None:
        """None where it was asked to stop before there was one. Raises `StartupError`."""
        name = self._facts.name
        keys = write_keys(self._plan, self._role, folder)
        if self._role != ROUTER:
            control, data = free_ports(self._host, 2)
            self._tell(address=f"{tcp(self._host, control)}#{self._role}")
            return worker_program(self._plan, self._role, name, self._host, (control, data), **keys)
        workers_file = folder / "workers.json"
        follower = _Follower(self._plan.cluster.name, workers_file)
        while not follower.look():
            time.sleep(LOOK_EVERY)
            if self._stop.drain:
                return None
        threading.Thread(target=self._follow, args=[follower], name="follower", daemon=True).start()
        return router_of(self._plan, name, workers_file, **keys)

    def _supervise(self, program: Program, keep: Any) -> None:
        serve = self._plan.serve
        grace = serve.drain_timeout + (ROUTER_GRACE if self._role == ROUTER else WORKER_GRACE)
        timeout = serve.start_timeout or START_TIMEOUTS[serve.device.split(":")[0]]
        self._supervisor = Supervisor(
            [StartGroup([program], grace)], timeout, self._stop, serve.stuck_timeout, chore=keep
        )
        self._supervisor.run(self._on_ready)

    def _on_ready(self, infos: Mapping[str, dict[str, Any]]) -> str:
        """What the process said when it was ready first. See `Supervisor.run`."""
        if self._role == ROUTER:
            name = self._facts.name
            self._port = int(infos[name]["port"])
            assert self._supervisor is not None
            program = self._supervisor.programs[name]  # comes back where its clients know it
            again = replace(program, argv=[*program.argv, f"{flag('port')}={self._port}"])
            self._supervisor.programs[name] = again
            self._tell(
                address=f"http://{bracketed(_outside(self._plan.serve.host, self._host))}:{self._port}"
            )
        self._tell(ready=True)
        return ""

    def _follow(self, follower: _Follower) -> None:
        """Keep the router's file as the controller has it, and know what the router sees."""
        serve = self._plan.serve
        key = serve.admin_api_key or serve.api_key or None
        while not self._facts.over:
            follower.look()
            if self._port:
                with XgrClient(self._inside(), key, timeout=ASK_SECONDS) as client:
                    self._look_at(client)
            time.sleep(LOOK_EVERY)

    def _inside(self) -> str:
        """The URL for this machine."""
        host = self._plan.serve.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{bracketed(host)}:{self._port}"

    def _look_at(self, client: XgrClient) -> None:
        loads: dict[str, tuple[str, float]] = {}
        try:
            serves = client.ready()
            for worker in client.workers():
                if worker.alive and worker.worker and worker.load is not None:
                    loads[worker.worker] = (worker.role, self._load_of(worker.role, worker.load))
        except Exception as error:  # it restarts, or is busy: the next look may fare better
            log.debug("the router does not say what it sees (%s)", error)
            serves = False
        self._tell(serves=serves, loads=loads)

    def _load_of(self, role: str, load: Load) -> float:
        cluster = self._plan.cluster
        if role == "prefill":
            return prefill_load(load)
        return decode_load(load, cluster.decode_target, cluster.decode_wait)

    def _tell(self, **changed: Any) -> None:
        with _TELLING:
            self._facts = replace(self._facts, **changed)


_TELLING = threading.Lock()


class _Follower:
    """Writes the file of workers that a router follows; while the controller is lost it stays as it is."""

    def __init__(self, deployment: str, path: Path) -> None:
        self._directory = Directory(deployment)
        self._path = path
        self._written: Any = None
        self._problem = ""

    def look(self) -> bool:
        """Whether there is a file."""
        try:
            workers = self._directory.look()
            if workers != self._written:
                roles = {
                    role: [worker.address for worker in workers if worker.role == role]
                    for role in ("prefill", "decode")
                }
                write_whole(self._path, msgspec.json.encode(roles), secret=True)
                self._written = workers
            if self._problem:
                log.info("%s answers again", self._directory)
            self._problem = ""
        except ConfigError as error:
            if str(error) != self._problem:
                log.warning("the workers stay as they are: %s", error)
            self._problem = str(error)
        return self._written is not None


def _node_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _outside(host: str, node: str) -> str:
    """Under which address others ask a router that listens on `host`."""
    return node if host in ("0.0.0.0", "::") else host
