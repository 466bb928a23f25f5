"""What is forked from a template is as good as what is spawned, and a template's own end costs nobody."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from until import until

from xgr_runtime.launcher import template as module
from xgr_runtime.launcher.adoption import adopting
from xgr_runtime.launcher.child import Child
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.template import NoTemplate, Starter, Template
from xgr_runtime.process.template import Imports, place

Tiny = Callable[..., Program]
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks are adopted on Linux alone")
pytestmark = needs_linux


@pytest.fixture
def starter(template: Template) -> Starter:
    return Starter({"tiny": template})


@pytest.fixture
def begin(tiny: Tiny, starter: Starter) -> Iterator[Callable[..., Child]]:
    """Starts tiny children by the starter, forked where it can."""
    children = []

    def begun(*inherits: int, **flags: object) -> Child:
        program = tiny(**flags)
        child = Child(
            Program(program.name, program.module, program.argv, program.environ, "tiny"),
            inherits,
            start=starter.start,
        )
        child.start()
        children.append(child)
        child.wait_ready(time.monotonic() + 20.0)
        return child

    yield begun
    for child in children:
        child.kill()
        child.close()


def process_of(template: Template) -> psutil.Process:
    return next(p for p in psutil.Process().children() if p.cmdline()[:2] == ["xgr", "template"])


def is_forked(child: Child) -> bool:
    """Whether it shows no `begin`, which is where spawned ones do."""
    return "xgr_runtime.process.begin" not in psutil.Process(child.pid).cmdline()


def test_forked_process_is_our_child_with_its_own_arguments(begin: Callable[..., Child]) -> None:
    process = psutil.Process(begin(name="apart", environ={"XGR_API_KEY": "sesame"}).pid)
    assert process.ppid() == os.getpid()
    assert "--name=apart" in process.cmdline()
    assert "sesame" not in " ".join(process.cmdline())
    assert "sesame" not in process.environ().values()  # which everybody of this user may read
    assert process.num_threads() == 1


def test_none_of_the_templates_own_descriptors_is_left(begin: Callable[..., Child], tmp_path: Path) -> None:
    (tmp_path / "inherited").touch()
    with (tmp_path / "inherited").open() as stream:
        pid = begin(stream.fileno()).pid
        links = {int(path.name): str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
        assert links[stream.fileno()] == str(tmp_path / "inherited")
    assert not [link for link in links.values() if link.startswith("socket:")]
    assert len(links) == 5  # three standard streams, the ready pipe and what it inherits


def test_descriptors_get_their_numbers_though_others_have_them(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    a, b = (os.open(tmp_path / name, os.O_RDONLY) for name in "ab")
    read, write = os.pipe()
    placed = place(write, [a, b], [b, a])
    try:
        os.write(placed, b"ready")
        assert (os.read(a, 1), os.read(b, 1), os.read(read, 9)) == (b"b", b"a", b"ready")
    finally:
        for descriptor in (a, b, read, placed):
            os.close(descriptor)


def test_killed_template_takes_nobody_along_and_is_replaced(
    begin: Callable[..., Child], template: Template, starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = begin(name="before")
    process = process_of(template)
    process.kill()
    until(lambda: process.status() == psutil.STATUS_ZOMBIE, "the template is gone", 20)
    monkeypatch.setattr(module, "AGAIN_AFTER", 0.0)
    meanwhile = begin(name="meanwhile")
    assert not is_forked(meanwhile)
    starter.look()
    until(starter.settled, "another template", 20)
    after = begin(name="after")
    assert is_forked(before) and is_forked(after)
    assert [child.poll() for child in (before, meanwhile, after)] == [None] * 3


def test_stopped_template_is_given_up(
    begin: Callable[..., Child],
    template: Template,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    template._link.settimeout(0.2)
    process_of(template).send_signal(signal.SIGSTOP)
    child = begin(name="spawned")
    assert not is_forked(child)
    assert "does not answer" in caplog.text


def test_template_that_cannot_import_is_said_and_not_missed(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    template = Template("broken", Imports(["no_such_module"], []), tiny().environ)
    template.begin()
    try:
        until(template.settled, "it has failed", 20)
        with pytest.raises(NoTemplate):
            template.fork(tiny(), 0, [])
    finally:
        template.close()
    assert "broken: broken ended with exit code 1: ModuleNotFoundError" in caplog.text


def test_imports_that_start_a_thread_fork_nobody(
    tmp_path: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    program, before = tiny(), psutil.Process().children()
    (tmp_path / "threaded.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[3600], name='busy', daemon=True).start()\n"
    )
    template = Template("threaded", Imports(["threaded"], []), program.environ)
    template.begin()
    try:
        with caplog.at_level(logging.WARNING):
            until(template.settled, "it has imported", 20)
        with pytest.raises(NoTemplate):
            template.fork(program, 0, [])
        template.look()
        assert psutil.Process().children() == before  # nor is it tried again
    finally:
        template.close()
    assert "imports started threads (busy)" in caplog.text


def test_orphans_are_adopted_only_meanwhile() -> None:
    """One that is orphaned later goes to whoever took it before."""
    script = "import os, sys; os.fork() or (os.read(0, 1), os._exit(0)); print(os.getpid(), flush=True)"
    with adopting():
        pass
    own = set(psutil.Process().children())
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        process.wait(20)
        assert set(psutil.Process().children()) <= own


LAUNCHER = """
    import sys, time
    from xgr_runtime.launcher.program import Program
    from xgr_runtime.launcher.supervisor import StartGroup, StopRequest, Supervisor
    from xgr_runtime.launcher.template import Starter, Template
    from xgr_runtime.process.template import Imports

    def missing(infos):
        print(infos["tiny"]["pid"], flush=True)
        return ""

    starter = Starter({"t": Template("t", Imports(["xgr_runtime.process.lifecycle"], []), {})})
    starter.begin()
    group = StartGroup([Program("tiny", "tiny_process", template="t")], 1.0)
    Supervisor([group], 20.0, StopRequest(), starter=starter).run(missing)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_killed_launcher_leaves_neither_template_nor_child(
    stopped: bool, launcher: tuple[Path, dict[str, str]]
) -> None:
    script, environ = launcher
    script.write_text(textwrap.dedent(LAUNCHER))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout
        child = int(process.stdout.readline())
        family = psutil.Process(process.pid).children(recursive=True)
        assert child in [member.pid for member in family] and len(family) == 2
        for member in family if stopped else []:
            member.send_signal(signal.SIGSTOP)
        process.kill()
    until(lambda: not [m for m in family if m.is_running()], "they end as well", 20)
