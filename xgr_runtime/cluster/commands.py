"""What `xgr ray` does on a cluster: make the controller of a deployment, wait for it, end it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from xgr_runtime.cluster.controller import ClusterStatus, Controller, actor_names, holders_of
from xgr_runtime.cluster.holder import ROUTER
from xgr_runtime.cluster.plan import ROLES, make_plan
from xgr_runtime.config import ClusterConfig, ServeConfig
from xgr_runtime.discovery.ray import NAMESPACE
from xgr_runtime.errors import ConfigError, StartupError
from xgr_runtime.launcher.deployment import START_TIMEOUTS
from xgr_runtime.transport.addresses import is_loopback

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0  # that a controller has for an answer; it may have to start first
FAILED_STARTS = 3  # of a role, after which `up` gives up
LOOK_EVERY = 0.2  # seconds
DOWN_SECONDS = (
    86_400.0  # that a deployment has for what it has begun; its own --drain-timeout ends that before
)


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """This process is one of the cluster's. Raises `ConfigError`."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("Ray is not installed: pip install 'xgr-runtime[ray]'")
    import ray

    _check_address(address)
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RaySystemError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(
            f"no Ray cluster at --address {address} ({reason}): begin one by `ray start --head`"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself tries for a minute and a half. Raises `ConfigError`."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(f"--address is {address[:200]!r}: give HOST:PORT of the cluster's head, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"no Ray cluster at --address {address} ({reason}): begin one by `ray start --head`"
        ) from None


def up(serve: ServeConfig, cluster: ClusterConfig, say: Callable[[str], None]) -> str:
    """Start it and wait until it serves; its URLs. In a process that has joined.

    Raises `StartupError` with nothing left where it cannot start, also when interrupted.
    """
    import ray

    name = cluster.name
    if _controller(name) is not None or holders_of(name):
        raise ConfigError(
            f"{name} is on this cluster already: end it by `xgr ray down --name {name}`, or give another "
            "[cluster] name"
        )
    # A router that listens on loopback alone is of use on this machine alone.
    home = ray.get_runtime_context().get_node_id() if is_loopback(serve.host) else ""
    plan = make_plan(serve, cluster, home)
    kind: Any = ray.remote(Controller)
    try:
        controller = kind.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=4,
        ).remote(plan)
    except ValueError:  # somebody else was faster
        raise ConfigError(f"{name} is being started by somebody else: give another [cluster] name") from None
    try:
        seconds = serve.start_timeout or START_TIMEOUTS[serve.device.split(":")[0]]
        return _wait(controller, seconds, say)
    except BaseException:
        down(name, 0.0)
        raise


def down(name: str, seconds: float) -> None:
    """End it, with what it has finished first for which it gets so long. Raises `ConfigError`."""
    import ray

    controller, holders = _controller(name), holders_of(name)
    if controller is None and not holders:
        raise ConfigError(f"there is no deployment {name} on this cluster: see `xgr ray status`")
    if controller is not None:
        with contextlib.suppress(ray.exceptions.RayError):
            _drain(controller, time.monotonic() + seconds)
        ray.kill(controller)
    for holder in holders_of(name):
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(holder, NAMESPACE))


def status(name: str) -> ClusterStatus:
    """Of a deployment. Raises `ConfigError`."""
    import ray

    controller = _controller(name)
    if controller is None:
        there = ", ".join(sorted({n for n in actor_names() if "/" not in n})) or "none"
        raise ConfigError(
            f"there is no deployment {name} on this cluster (there is: {there}): give another --name"
        )
    try:
        found: ClusterStatus = ray.get(controller.status.remote(), timeout=ANSWER_SECONDS)
        return found
    except ray.exceptions.RayError as error:
        raise StartupError(f"the controller of {name} does not answer ({type(error).__name__})") from None


def _drain(controller: Any, end: float) -> None:
    import ray

    ray.get(controller.stop.remote(), timeout=ANSWER_SECONDS)
    while time.monotonic() < end:
        if ray.get(controller.status.remote(), timeout=ANSWER_SECONDS).over:
            return
        time.sleep(LOOK_EVERY)


def _wait(controller: Any, seconds: float, say: Callable[[str], None]) -> str:
    import ray

    end, told = time.monotonic() + seconds, ""
    while True:
        try:
            found: ClusterStatus = ray.get(controller.status.remote(), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            raise StartupError(f"the controller cannot run: {str(error).splitlines()[-1]}") from None
        reason = missing(found)
        if not reason:
            return ", ".join(facts.address for facts in found.members if facts.role == ROUTER)
        for role, problem in found.problems.items():
            if found.failures.get(role, 0) >= FAILED_STARTS:
                raise StartupError(f"{role} cannot start: {problem}")
        if reason != told:
            say(reason)
        told = reason
        if time.monotonic() >= end:
            raise StartupError(f"not serving after {seconds:g} s: {reason}")
        time.sleep(LOOK_EVERY)


def missing(found: ClusterStatus) -> str:
    """Why it is not whole, empty where it is."""
    for role in ("prefill", "decode", ROUTER):
        members = [facts for facts in found.members if facts.role == role]
        ready = sum(facts.serves if role == ROUTER else facts.ready for facts in members)
        wanted = found.wanted.get(role, 1)
        if ready < wanted:
            problem = found.problems.get(role, "")
            return f"{ready} of {wanted} {role}{' serves' if role == ROUTER else ' ready'}" + (
                f" ({problem})" if problem else ""
            )
    return ""


def _controller(name: str) -> Any:
    import ray

    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def lines(found: ClusterStatus) -> list[str]:
    """A status in words, a line per process."""
    order = {role: number for number, role in enumerate(ROLES)}
    told = []
    for facts in sorted(found.members, key=lambda one: (order[one.role], one.name)):
        up = facts.serves if facts.role == ROUTER else facts.ready
        state = "over" if facts.over else "ready" if up else "starting"
        told.append(f"{facts.name:<12} {state:<9} node {facts.node[:8] or '?':<9} {facts.address}")
    if found.stopping:
        told.append("it is being stopped")
    told += [f"{role}: {problem}" for role, problem in found.problems.items()]
    return told
