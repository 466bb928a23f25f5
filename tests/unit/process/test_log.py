"""A log that nobody reads, or that its disk has no room for, holds up no process and ends none."""

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from until import until

from xgr_runtime.launcher.child import Child
from xgr_runtime.process.log import LineSink

LOUD = """
    import logging, os, signal, sys, time
    import msgspec
    from xgr_runtime.process.lifecycle import main

    class Config(msgspec.Struct, frozen=True, kw_only=True):
        log_level: str = "INFO"
        ready_fd: int = -1
        stuck_timeout: float = 0.0
        done: str = ""

    def body(config, lifecycle):
        for number in range(5000):
            logging.info("line %d %s", number, "x" * 200)
        sys.stdout.write("not flushed yet")
        open(config.done, "w").close()

    sys.exit(main(Config, body, "loud"))
"""


class Pipe:
    """A pipe whose ends are closed once each, and never below a thread that still reads."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self._open = {self.read, self.write}
        self._reader: threading.Thread | None = None

    def reading(self) -> list[bytes]:
        """What comes out from now on, until the other end is closed."""
        parts: list[bytes] = []

        def read() -> None:
            while part := os.read(self.read, 65536):
                parts.append(part)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        return parts

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)

    def close_all(self) -> None:
        self.close(self.write)
        if self._reader is not None:  # its descriptor's number may soon be another file's
            self._reader.join()
        self.close(self.read)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_all()


def test_lines_come_out_in_order(pipe: Pipe) -> None:
    sink = LineSink(pipe.write)
    for number in range(100):
        sink.put(f"line {number}")
    assert sink.flush(20.0)
    assert os.read(pipe.read, 65536).decode().splitlines() == [f"line {number}" for number in range(100)]


def test_what_a_full_pipe_does_not_take_is_counted(pipe: Pipe) -> None:
    sink = LineSink(pipe.write, room=10)
    for _ in range(60):
        sink.put("x" * 100_000)  # more than the pipe holds; returns, though nobody reads
    assert not sink.flush(0.1)
    dropped = sink.dropped
    assert dropped >= 60 - 10 - 1
    parts = pipe.reading()
    assert sink.flush(20.0)
    sink.put("the next one")
    assert sink.flush(20.0) and sink.dropped == 0
    pipe.close(pipe.write)
    until(lambda: b"the next one\n" in b"".join(parts), "the next line", 20)
    assert f"({dropped} lines dropped)".encode() in b"".join(parts)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_survived_and_told_of_later(tmp_path: Path) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    sink = LineSink(fd)
    for _ in range(3):
        sink.put("lost")
    assert sink.flush(20.0) and sink.dropped == 3
    room = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(room, fd)  # there is room again
    sink.put("kept")
    assert sink.flush(20.0)
    os.close(room)
    os.close(fd)
    assert (tmp_path / "log").read_text() == "(3 lines dropped)\nkept\n"


def test_a_reader_that_is_gone_is_survived(pipe: Pipe) -> None:
    pipe.close(pipe.read)
    sink = LineSink(pipe.write)
    sink.put("lost")
    assert sink.flush(20.0) and sink.dropped == 1


@pytest.mark.parametrize("stream", ["blocked", "full", "closed"])
def test_a_process_ends_well_whatever_its_log_does(stream: str, tmp_path: Path) -> None:
    """It does its work and exits with its code, below a launcher that reads neither stream."""
    (tmp_path / "loud.py").write_text(textwrap.dedent(LOUD))
    read, write = os.pipe()
    out = os.open("/dev/full", os.O_WRONLY) if stream == "full" else write
    if stream == "closed":
        os.close(read)
    ready = os.pipe()
    command = [sys.executable, str(tmp_path / "loud.py"), f"--done={tmp_path / 'done'}"]
    command.append(f"--ready-fd={ready[1]}")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=out, stderr=out, pass_fds=(ready[1],), env=environ) as process:
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert (tmp_path / "done").exists()
    for fd in {write, out, *ready} | (set() if stream == "closed" else {read}):
        os.close(fd)


def test_a_launcher_that_is_not_read_goes_on_reading_its_children(
    start: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
    pipe: Pipe,
) -> None:
    monkeypatch.setattr("xgr_runtime.launcher.child.stderr", sink := LineSink(pipe.write, room=1))
    child = start(act="talkative")
    child.wait_ready(time.monotonic() + 20.0)
    until(lambda: sink.dropped > 0, "lines are dropped", 20)
    child.terminate()
    assert child.wait(20.0) and child.poll() == 0
    pipe.reading()
    assert sink.flush(20.0)


def test_a_record_that_cannot_be_formatted_ends_nothing() -> None:
    from xgr_runtime.process.log import _Handler

    _Handler().emit(logging.LogRecord("x", logging.INFO, "x", 1, "%d", ("no number",), None))
