"""Tiny real processes: one module whose behaviour its flags choose, and a launcher that can be killed."""

import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from supervised import Running
from until import until

from xgr_runtime.launcher.child import Child
from xgr_runtime.launcher.program import Program, spawn
from xgr_runtime.launcher.supervisor import StartGroup
from xgr_runtime.launcher.template import Template
from xgr_runtime.process.template import Imports

BODY = """
    import ctypes, logging, os, signal, sys, time
    import msgspec
    from xgr_runtime.errors import ModelError
    from xgr_runtime.process.lifecycle import main
    from xgr_runtime.process.orders import Orders

    class Config(msgspec.Struct, frozen=True, kw_only=True):
        log_level: str = "INFO"
        ready_fd: int = -1
        orders_fd: int = -1
        stuck_timeout: float = 0.0
        name: str = "tiny"
        act: str = "serve"
        marks: str = ""
        gate: str = ""
        api_key: str = ""

    def mark(config, text):
        with open(config.marks, "a") as stream:
            stream.write(text + "\\n")

    def body(config, lifecycle):
        if config.act == "refuse":
            raise ModelError("no such model:\\n give another")
        if config.act == "crash":
            raise RuntimeError("boom")
        if config.act == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if config.act == "garbage":
            os.write(config.ready_fd, b"hello\\n")
        if config.act == "once" and os.path.exists(config.marks):
            raise ModelError("the second start is refused")
        if config.act == "deaf":
            lifecycle.on_stop(lambda: None)
        if config.marks:
            mark(config, f"start {config.name}")
        if config.act == "waiting":
            while config.gate and not os.path.exists(config.gate):
                time.sleep(0.01)
            lifecycle.ready({"waits": True})
            orders = Orders(config.orders_fd)
            order = orders.next(lifecycle.turn)
            orders.close()
            if order is None:
                return
            lifecycle.waited()
            config = msgspec.structs.replace(config, act="serve", name=order.argv[0])
        if config.act != "silent":
            lifecycle.ready({"pid": os.getpid(), "key": config.api_key, "name": config.name})
        while config.act in ("deaf", "silent") or not lifecycle.turn():
            if config.act == "brief":
                return
            if config.act == "stuck":
                time.sleep(3600)
            if config.act == "stuck-in-c":
                ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock held
            if config.act == "stuck-and-mute":
                os.set_blocking(2, False)
                while True:
                    try:
                        os.write(2, bytes(65536))
                    except BlockingIOError:
                        os.set_blocking(2, True)
                        ctypes.PyDLL(None).sleep(3600)
            if config.act == "talkative":
                print("x" * 100_000, file=sys.stderr)
            if config.act == "slow":
                time.sleep(0.6)
            time.sleep(0.01)
        if config.act == "hungry":
            b"x" * (400 << 20)
            time.sleep(3600)
        if config.marks:
            mark(config, f"stop {config.name}")

    if __name__ == "__main__":
        sys.exit(main(Config, body, "tiny_process"))
"""

LAUNCHER = """
    import sys, time
    from xgr_runtime.launcher.program import Program
    from xgr_runtime.launcher.supervisor import StartGroup, StopRequest, Supervisor

    def missing(infos):
        print(infos["tiny"]["pid"], flush=True)
        return ""

    Supervisor([StartGroup([Program("tiny", "tiny_process")], 1.0)], 20.0, StopRequest()).run(missing)
"""

Tiny = Callable[..., Program]


def first_on_path(folder: Path) -> str:
    """Before what this process was given, which may name another copy of ours."""
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """A program of the tiny module: `tiny("name", act="serve", marks="file")`."""
    (tmp_path / "tiny_process.py").write_text(textwrap.dedent(BODY))

    def program(name: str = "tiny", environ: dict[str, str] | None = None, **flags: object) -> Program:
        argv = [f"--{key.replace('_', '-')}={value}" for key, value in {"name": name, **flags}.items()]
        whole = {"PYTHONPATH": first_on_path(tmp_path), **(environ or {})}
        return Program(name, "tiny_process", argv, whole, waits=flags.get("act") == "waiting")

    return program


@pytest.fixture
def template(tiny: Tiny) -> Iterator[Template]:
    """A template for tiny children, which has imported what they need."""
    environ = tiny().environ
    template = Template("template", Imports(["xgr_runtime.process.lifecycle"], []), environ)
    template.begin()
    until(template.settled, "it has imported all", 20)
    yield template
    template.close()


@pytest.fixture(params=["spawn", "fork"])
def start(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[Callable[..., Child]]:
    """Starts tiny children in either way, and sees to it that they are gone afterwards."""
    children = []
    begin = request.getfixturevalue("template").fork if request.param == "fork" else spawn

    def started(**flags: object) -> Child:
        child = Child(tiny(**flags), start=begin)
        child.start()
        children.append(child)
        return child

    yield started
    for child in children:
        child.kill()
        child.close()


@pytest.fixture
def launcher(tmp_path: Path, tiny: Tiny) -> tuple[Path, dict[str, str]]:
    """A launcher script with one tiny child, whose pid it prints; and the environment to run it in."""
    tiny()
    script = tmp_path / "launcher.py"
    script.write_text(textwrap.dedent(LAUNCHER))
    return script, os.environ | {"PYTHONPATH": first_on_path(tmp_path)}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Neither a child process nor a descriptor outlives a test."""
    own = psutil.Process()
    children, descriptors = set(own.children(recursive=True)), own.num_fds()
    yield
    assert set(own.children(recursive=True)) <= children
    until(lambda: own.num_fds() <= descriptors, "its descriptors are closed", 20)


@pytest.fixture
def supervise() -> Iterator[Callable[..., Running]]:
    running = []

    def run(*groups: StartGroup, **options: Any) -> Running:
        running.append(Running(list(groups), **options))
        assert running[-1].started.wait(60.0)
        return running[-1]

    yield run
    for one in running:
        one.end()
