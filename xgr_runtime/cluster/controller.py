"""The actor that holds a deployment: who is wanted, who is there, and at which addresses.

One loop, in a thread: it asks all holders, starts who is missing, and stops who is too many. What it knows it
has from them, so that a controller that Ray has started again goes on where the last one was.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from xgr_runtime.cluster.holder import ROUTER, Facts, ProcessHolder
from xgr_runtime.cluster.placing import Held, Node, place
from xgr_runtime.cluster.plan import ROLES, ClusterPlan
from xgr_runtime.cluster.scaling import Scale, scaled
from xgr_runtime.discovery.ray import NAMESPACE
from xgr_runtime.process.log import configure

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5  # seconds
ANSWER_SECONDS = 2.0  # that holders have for an answer, all at once
LOST_AFTER = 4.0  # seconds without an answer of a holder whose connection is broken
SILENT_AFTER = 30.0  # seconds without an answer of one that only says nothing
STARTS_WITHIN = 120.0  # seconds that Ray has to start an actor
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a place is filled again after a failed start


@dataclass
class Member:
    """A holder, as the controller knows it."""

    name: str
    role: str
    actor: Any
    node: str
    heard: float  # when it answered last, or was asked for
    facts: Facts | None = None
    broken: bool = False  # its connection, at the last look
    stopping: bool = False


@dataclass
class Failure:
    """Starts of a role that failed, in a row."""

    count: int = 0
    until: float = -math.inf
    reason: str = ""


@dataclass
class ClusterStatus:
    """What `xgr ray status` shows."""

    wanted: dict[str, int] = field(default_factory=dict)
    members: list[Facts] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)  # by role: why one is missing
    failures: dict[str, int] = field(default_factory=dict)  # by role: failed starts in a row
    stopping: bool = False
    over: bool = False


class Controller:
    """Made into a detached actor by `xgr ray up`."""

    def __init__(self, plan: ClusterPlan) -> None:
        configure(f"ray {plan.cluster.name}", plan.serve.log_level)
        self._plan = plan
        self._members: dict[str, Member] = {}
        self._failures = {role: Failure() for role in ROLES}
        self._numbers = dict.fromkeys(ROLES, 0)
        self._lock = threading.Lock()  # of what the actor's methods read
        self._addresses: list[tuple[str, str]] = []
        self._status = ClusterStatus()
        self._stopping = False
        self._over = False
        self._suspects: dict[str, float] = {}  # nodes of which a holder was lost, and when
        self._scales = {role: Scale(plan.bounds(role).least) for role in ("prefill", "decode")}
        self._find()
        threading.Thread(target=self._run, name="controller", daemon=True).start()

    def addresses(self) -> list[tuple[str, str]]:
        """Role and address of each worker that takes requests."""
        with self._lock:
            return list(self._addresses)

    def status(self) -> ClusterStatus:
        with self._lock:
            return self._status

    def stop(self) -> None:
        """End everything, routers first; `status` says when it is over."""
        self._stopping = True

    def _find(self) -> None:
        """Take over the holders of a controller before this one."""
        import ray

        for name in holders_of(self._plan.cluster.name):
            short = name.rpartition("/")[2]
            role, _, number = short.rpartition("-")
            self._numbers[role] = max(self._numbers[role], int(number) + 1)
            actor = ray.get_actor(name, NAMESPACE)
            self._members[short] = Member(short, role, actor, "", time.monotonic())
        for role in self._scales:
            found = sum(member.role == role for member in self._members.values())
            self._scales[role] = Scale(max(found, self._scales[role].wanted))

    def _run(self) -> None:
        while not self._over:
            began = time.monotonic()
            try:
                self._turn()
            except Exception:  # the head is away, or a bug: the next turn may fare better
                log.exception("a turn of the controller failed")
            time.sleep(max(0.05, began + LOOK_EVERY - time.monotonic()))

    def _turn(self) -> None:
        self._ask()
        self._bury()
        if self._stopping:
            self._stop_all()
        else:
            self._scale()
            for role in ROLES:
                self._fill(role)
                self._thin(role)
        self._publish()

    def _ask(self) -> None:
        """The facts of all holders, in as long as the slowest takes but at most `ANSWER_SECONDS`."""
        import ray

        asked = {member.actor.facts.remote(): member for member in self._members.values()}
        if not asked:
            return
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        for ref in done:
            member = asked[ref]
            try:
                member.facts = ray.get(ref)
                member.node, member.heard, member.broken = member.facts.node, time.monotonic(), False
            except ray.exceptions.ActorDiedError as error:
                member.broken, member.heard = True, -math.inf
                log.warning("%s is lost: %s", member.name, str(error).splitlines()[0])
            except ray.exceptions.RayError:
                member.broken = True

    def _bury(self) -> None:
        """Forget holders that are over or lost; `_fill` starts others in their place."""
        import ray

        now = time.monotonic()
        for member in list(self._members.values()):
            over = member.facts is not None and member.facts.over
            patience = LOST_AFTER if member.broken else SILENT_AFTER if member.facts else STARTS_WITHIN
            lost = not over and now >= member.heard + patience
            if not over and not lost:
                continue
            ray.kill(member.actor)
            del self._members[member.name]
            if lost and member.node:
                self._suspects[member.node] = now
            if lost:
                log.error("%s is lost, with its node or its actor", member.name)
            elif member.facts and member.facts.error:
                self._failed(member.role, f"{member.name}: {member.facts.error}", now)
        for role in ROLES:
            members = [member for member in self._members.values() if member.role == role]
            if members and all(member.facts and member.facts.ready for member in members):
                self._failures[role] = Failure()

    def _failed(self, role: str, reason: str, now: float) -> None:
        failure = self._failures[role]
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failure.count, 32))
        self._failures[role] = Failure(failure.count + 1, now + pause, reason)
        log.error("%s; another try in %.0f s", reason, pause)

    def _wanted(self, role: str) -> int:
        return self._plan.cluster.routers if role == ROUTER else self._scales[role].wanted

    def _staying(self, role: str) -> list[Member]:
        return [member for member in self._members.values() if member.role == role and not member.stopping]

    def _scale(self) -> None:
        """Each router tells of each worker; of what they say the most counts."""
        seen: dict[str, tuple[str, float]] = {}
        routers = [m.facts for m in self._staying(ROUTER) if m.facts and m.facts.serves]
        for facts in routers:
            for worker, (role, told) in facts.loads.items():
                seen[worker] = (role, max(told, seen.get(worker, (role, 0.0))[1]))
        for role in self._scales:
            starting = any(not (m.facts and m.facts.ready) for m in self._staying(role))
            load: float | None = None  # of who starts it is not known yet
            if routers and not starting:
                load = sum(one for own, one in seen.values() if own == role)
            before = self._scales[role]
            after = scaled(before, load, self._plan.bounds(role), time.monotonic())
            if after.wanted != before.wanted:
                log.info("%s: %d wanted, for a load of %.1f", role, after.wanted, after.load)
            self._scales[role] = after

    def _fill(self, role: str) -> None:
        """Start who is missing."""
        failure = self._failures[role]
        while len(self._staying(role)) < self._wanted(role) and time.monotonic() >= failure.until:
            if not self._start(role):
                failure.reason = (
                    f"no node has room for another {role}: add one, or lower [cluster] {role}_cpus"
                )
                return

    def _start(self, role: str) -> bool:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        plan, now = self._plan, time.monotonic()
        cpus, gpus = plan.cpus(role), plan.gpus(role)
        node = place(role, cpus, gpus, *self._cluster(), avoid=self._avoided(now), home=plan.home)
        if not node:
            return False
        name = f"{role}-{self._numbers[role]}"
        self._numbers[role] += 1
        kind = ray.remote(ProcessHolder)
        actor = kind.options(
            name=f"{plan.cluster.name}/{name}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
        ).remote(plan, role, name, node)
        self._members[name] = Member(name, role, actor, node, now)
        log.info("%s starts on node %s", name, node[:8])
        return True

    def _cluster(self) -> tuple[list[Node], list[Held]]:
        """Living nodes, and what we have on them."""
        import ray

        nodes = [
            Node(node["NodeID"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            for node in ray.nodes()
            if node["Alive"]
        ]
        held = [
            Held(m.role, m.node, self._plan.cpus(m.role), self._plan.gpus(m.role))
            for m in self._members.values()
        ]
        return nodes, held

    def _avoided(self, now: float) -> set[str]:
        """Nodes that have lost something lately: that they are dead may not be known yet."""
        self._suspects = {node: since for node, since in self._suspects.items() if now < since + SILENT_AFTER}
        return set(self._suspects)

    def _thin(self, role: str) -> None:
        """Let the newest finish what they have, and go."""
        staying = self._staying(role)
        for member in staying[self._wanted(role) :]:
            self._stop(member)

    def _stop(self, member: Member) -> None:
        if not member.stopping:
            log.info("%s stops", member.name)
            member.stopping = True
            member.actor.stop.remote()

    def _stop_all(self) -> None:
        """Routers first: they finish what they were asked, for which they need workers."""
        routers = [member for member in self._members.values() if member.role == ROUTER]
        for member in routers or list(self._members.values()):
            self._stop(member)

    def _publish(self) -> None:
        facts = [
            member.facts or Facts(member.name, member.role, member.node) for member in self._members.values()
        ]
        # Who was ready once stays listed while it is started again: it comes back at the same address.
        listed = [
            (member.role, member.facts.address)
            for member in self._members.values()
            if member.role != ROUTER and member.facts and member.facts.ready and not member.stopping
        ]
        status = ClusterStatus(
            {role: self._wanted(role) for role in ROLES},
            facts,
            {role: failure.reason for role, failure in self._failures.items() if failure.reason},
            {role: failure.count for role, failure in self._failures.items()},
            self._stopping,
            self._stopping and not self._members,
        )
        with self._lock:
            self._addresses = listed
            self._status = status


def actor_names() -> list[str]:
    """Of controllers, as their deployments are called, and of holders, DEPLOYMENT/NAME."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]


def holders_of(deployment: str) -> list[str]:
    """The names of its holders that are there."""
    return [name for name in actor_names() if name.startswith(f"{deployment}/")]
