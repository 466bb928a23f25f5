"""A child and its handle: ready, not ready, stopped, killed, orphaned."""

import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from until import until

from xgr_runtime.errors import StartupError
from xgr_runtime.launcher import child as module
from xgr_runtime.launcher.child import Child, ChildFailed
from xgr_runtime.launcher.program import Program
from xgr_runtime.process.lifecycle import Lifecycle
from xgr_runtime.process.log import stderr

Start = Callable[..., Child]


def soon() -> float:
    return time.monotonic() + 20.0


def test_ready_info_arrives(start: Start) -> None:
    child = start()
    assert child.wait_ready(soon())["pid"] == child.pid
    assert child.check_ready() == child.wait_ready(soon())  # it stays known


def test_sigterm_ends_with_code_zero(start: Start) -> None:
    child = start()
    child.wait_ready(soon())
    child.terminate()
    assert child.wait(10.0)
    assert child.poll() == 0


def test_stop_is_told_once_also_to_latecomers() -> None:
    lifecycle, told = Lifecycle(), []
    lifecycle.on_stop(lambda: told.append("early"))
    lifecycle.stop()
    lifecycle.stop()
    lifecycle.on_stop(lambda: told.append("late"))
    assert lifecycle.stopping
    assert told == ["early", "late"]


def test_a_process_that_is_ready_collects_nothing_of_what_it_has_loaded() -> None:
    before = gc.get_freeze_count()
    try:
        Lifecycle().ready({})
        assert gc.get_freeze_count() > before + 1000
    finally:
        gc.unfreeze()


def test_second_sigterm_changes_nothing(start: Start) -> None:
    child = start(act="deaf")
    child.wait_ready(soon())
    for _ in range(3):
        child.terminate()
        time.sleep(0.05)
    assert child.poll() is None


@pytest.mark.parametrize(
    ("act", "message", "startup"),
    [
        ("refuse", "no such model: give another", True),
        ("crash", "tiny ended with exit code 1: RuntimeError: boom (before it was ready)", False),
        ("killed", "tiny was killed by SIGKILL (before it was ready)", False),
        ("garbage", "tiny announced itself with something else than JSON", False),
    ],
)
def test_death_before_ready_is_reported_at_once(start: Start, act: str, message: str, startup: bool) -> None:
    child = start(act=act)
    with pytest.raises(ChildFailed) as caught:
        child.wait_ready(time.monotonic() + 3600.0)  # a hang would meet the test's own limit
    assert str(caught.value) == message
    assert caught.value.startup is startup


def test_startup_error_is_kept_from_stderr_but_a_stack_is_not(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    for act in ("refuse", "crash"):
        with pytest.raises(ChildFailed):
            start(act=act).wait_ready(soon())
    assert stderr.flush(20.0)
    errors = capfd.readouterr().err
    assert "no such model" not in errors
    assert "RuntimeError: boom" in errors


def test_startup_error_without_a_launcher_is_one_line(tmp_path: Path, start: Start) -> None:
    command = [sys.executable, str(tmp_path / "tiny_process.py"), "--act=refuse"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == "tiny_process: error: no such model: give another\n"


def test_deadline(start: Start) -> None:
    child = start(act="silent")
    with pytest.raises(ChildFailed, match="not ready in time"):
        child.wait_ready(time.monotonic() + 0.2)
    assert child.poll() is None


@pytest.mark.parametrize("act", ["stuck", "stuck-in-c", "stuck-and-mute"])
def test_stuck_process_ends_itself_and_shows_where(
    start: Start, act: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also with the interpreter's lock held, and with a stderr that takes nothing."""
    child = start(act=act, stuck_timeout=0.5)
    child.wait_ready(soon())
    assert child.wait(20.0)
    assert child.ending() == "was killed by SIGALRM"
    if act != "stuck-and-mute":
        shown = "\n".join(child.last_lines)
        assert "most recent call first" in shown and "in body" in shown


def test_slow_turns_are_not_stuck(start: Start) -> None:
    child = start(act="slow", stuck_timeout=1.0)
    child.wait_ready(soon())
    assert not child.wait(3.0)
    assert child.beats()
    child.terminate()
    assert child.wait(10.0) and child.poll() == 0


def test_unkillable_child_is_not_waited_for(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child = start()
    child.wait_ready(soon())
    with monkeypatch.context() as patch:
        patch.setattr(module, "UNKILLABLE", 0.1)
        patch.setattr(os, "killpg", lambda *_: None)  # as the kernel does while a disk hangs
        child.kill()
    assert child.poll() is None and "cannot be killed" in caplog.text


def test_kill_ends_what_ignores_sigterm(start: Start) -> None:
    child = start(act="deaf")
    child.wait_ready(soon())
    child.terminate()
    child.kill()
    assert child.poll() == -9


def test_secret_is_in_the_environment_and_not_in_the_arguments(start: Start) -> None:
    child = start(environ={"XGR_API_KEY": "sesame"})
    assert child.wait_ready(soon())["key"] == "sesame"
    assert not [arg for arg in psutil.Process(child.pid).cmdline() if "sesame" in arg]
    assert "sesame" not in repr(child.program)


def test_launchers_own_keys_and_file_stay_with_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XGR_API_KEY", "sesame")
    monkeypatch.setenv("XGR_SGLANG_API_KEY", "sesame")
    monkeypatch.setenv("XGR_CONFIG", "/nowhere/serve.toml")  # would end the child, were it read
    child = start()
    assert child.wait_ready(soon())["key"] == ""
    assert "sesame" not in psutil.Process(child.pid).environ().values()


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.EAGAIN, "ulimit -u"), (errno.EACCES, "let this user run .*python")]
)
def test_child_that_cannot_be_spawned_says_what_to_change(
    tiny: Callable[..., Program], monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(StartupError, match=f"tiny cannot be started .*{remedy}"):
        Child(tiny()).start()


def test_child_has_all_the_descriptors_it_may_have(start: Start) -> None:
    child = start()
    child.wait_ready(soon())
    soft, hard = psutil.Process(child.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard


def test_child_has_a_group_of_its_own_and_the_launchers_session(start: Start) -> None:
    child = start()
    assert os.getpgid(child.pid) == child.pid
    assert os.getsid(child.pid) == os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_killed_launcher_leaves_no_child(stopped: bool, launcher: tuple[Path, dict[str, str]]) -> None:
    script, environ = launcher
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
        assert psutil.pid_exists(child)
        if stopped:
            os.kill(child, signal.SIGSTOP)
        process.kill()
    until(lambda: not psutil.pid_exists(child), "it ends as well", 20)


BEFORE_IT_CAN_ASK = """
    import sys, time
    from xgr_runtime.launcher.child import Child
    from xgr_runtime.launcher.program import Program

    child = Child(Program("late", "late_imports"))
    child.start()
    print(child.pid, flush=True)
    time.sleep(3600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
@pytest.mark.parametrize("when", ["at once", "stopped at once", "importing", "stopped importing"])
def test_launcher_killed_before_a_child_has_imported_anything(
    when: str, tmp_path: Path, launcher: tuple[Path, dict[str, str]]
) -> None:
    script, environ = launcher
    script.write_text(textwrap.dedent(BEFORE_IT_CAN_ASK))
    begun = tmp_path / "begun"
    (tmp_path / "late_imports.py").write_text(
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(3600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # whoever inherits the child is in another, as with a service
    )
    with process:
        assert process.stdout
        child = int(process.stdout.readline())
        if "importing" in when:
            until(begun.exists, "it imports", 20)
        if "stopped" in when:
            os.kill(child, signal.SIGSTOP)
            until(lambda: psutil.Process(child).status() == psutil.STATUS_STOPPED, "it is stopped", 20)
        process.kill()
    until(lambda: not psutil.pid_exists(child), "it ends as well", 20)
