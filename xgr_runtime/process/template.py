"""A process that has imported what others need, and forks them: each begins where its imports would end.

`python -m xgr_runtime.process.template --link-fd=FD`: over that socket a launcher says first what to import,
then what to run, and sends the descriptors along. The template itself computes nothing, opens no GPU and
starts no thread, for none of that survives a fork.

Whoever is forked is a child of the launcher, not of the template, whose end costs nobody anything.
"""

import ctypes
import gc
import importlib
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from xgr_runtime.config import TemplateConfig, flag
from xgr_runtime.process.begin import die_with_parent
from xgr_runtime.process.lifecycle import Lifecycle, main

ROOM = 4000  # bytes of arguments that `ps` can show of a forked process
MOST_BYTES = 1 << 17  # of a message
MOST_DESCRIPTORS = 16
CUDA_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED, cuda.h


class Imports(msgspec.Struct, frozen=True, tag="imports"):
    """The first message: modules to import, in this order.

    One with a function `import_ahead` is asked to import more, as a process with the flags `argv` will.
    """

    modules: list[str]
    argv: list[str]


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Run `module` as `python -m` does.

    Descriptors come with it: the pipe that hears when it is ready, its stderr, and one for each number in
    `inherits`, under which the process finds it. Answered by `Forked`.
    """

    module: str
    argv: list[str]
    environ: dict[str, str]
    inherits: list[int]


class Forked(msgspec.Struct, frozen=True):
    """The process, or the number of the system's error."""

    pid: int = 0
    error: int = 0


class Begun(BaseException):
    """Raised in a forked process, so that nothing of the template is left on its stack."""

    def __init__(self, request: Fork, descriptors: Sequence[int]) -> None:
        super().__init__()
        self.request = request
        self.descriptors = descriptors


def body(config: TemplateConfig, lifecycle: Lifecycle) -> None:
    """Import, then fork whoever is asked for, until the launcher closes the link. Raises `Begun`."""
    show_arguments(["xgr", "template"])
    with socket.socket(fileno=config.link_fd) as link:
        link.set_inheritable(False)
        _import(msgspec.json.decode(link.recv(MOST_BYTES), type=Imports))
        lifecycle.ready({"problem": why_not_fork()})
        while True:
            data, descriptors, *_ = socket.recv_fds(link, MOST_BYTES, MOST_DESCRIPTORS)
            if not data:
                return
            try:
                answer = _answer(msgspec.json.decode(data, type=Fork), descriptors)
            except Begun:
                os.close(config.ready_fd)
                raise
            link.send(msgspec.json.encode(answer))


def why_not_fork() -> str:
    """What was begun here that would not survive a fork; empty if nothing was."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        return f"imports started threads ({', '.join(others)})"
    if _has_cuda():
        return "imports initialised CUDA"
    _try_fork()
    tasks = len(list(Path("/proc/self/task").iterdir())) - 1
    return f"imports started {tasks} threads outside of Python" if tasks else ""


def _try_fork() -> None:
    """Libraries that survive forks, as numpy's, end their threads before one; they begin them again later."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def fork_orphan() -> int:
    """As `os.fork`, but the process is no child of ours: the launcher adopts it.

    That is whoever above us asked the kernel for orphans. It goes on once it has its new parent. Raises
    OSError.
    """
    read, write = os.pipe()
    between = os.fork()
    if not between:
        if not _fork_between(write):
            os.close(read)
            return 0
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        answer = msgspec.json.decode(told.read(), type=Forked)
    os.waitpid(between, 0)
    if answer.error:
        raise OSError(answer.error, os.strerror(answer.error))
    return answer.pid


def _fork_between(write: int) -> bool:
    """Fork, tell the template of it and return True; False in the process that is forked."""
    between = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.write(write, msgspec.json.encode(Forked(error=error.errno or 0)))
        return True
    if pid:
        with suppress(OSError):
            os.setpgid(pid, pid)  # of its own before anybody knows it
        os.write(write, msgspec.json.encode(Forked(pid)))
        return True
    os.close(write)
    while os.getppid() == between:
        time.sleep(0.0005)
    return False


def _import(imports: Imports) -> None:
    gc.disable()  # collections find nothing, and take a fifth of the time that imports take
    for name in imports.modules:
        module = importlib.import_module(name)
        if ahead := getattr(module, "import_ahead", None):
            ahead(imports.argv)
        if name.endswith(".__main__"):
            del sys.modules[name]  # it runs under another name, and Python would warn
    gc.freeze()  # a collection in a child would copy the pages of all that was imported
    gc.enable()


def _answer(request: Fork, descriptors: Sequence[int]) -> Forked:
    """Fork it; the descriptors are the child's alone then. Raises `Begun` there."""
    try:
        pid = fork_orphan()
    except OSError as error:
        answer = Forked(error=error.errno or 0)
    else:
        if not pid:
            raise Begun(request, descriptors)
        answer = Forked(pid)
    for descriptor in descriptors:
        os.close(descriptor)
    return answer


def run(request: Fork, descriptors: Sequence[int]) -> int:
    """In the forked process: all from its descriptors to its exit code. Raises what the module raises."""
    ready, stderr, *inherited = descriptors
    os.dup2(stderr, 2)
    os.close(stderr)
    die_with_parent(ready)
    ready = place(ready, inherited, request.inherits)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # as Python does by itself; else all would draw the same numbers
    os.environ.update(request.environ)
    arguments = [*request.argv, f"{flag('ready_fd')}={ready}"]
    show_arguments([sys.executable, "-P", "-m", request.module, *arguments])
    sys.argv = [request.module, *arguments]
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)
    return 0


def place(ready: int, inherited: Sequence[int], numbers: Sequence[int]) -> int:
    """Give each of `inherited` its number; where `ready` is then."""
    assert len(inherited) == len(numbers), "one number for each"
    above = max([2, ready, *inherited, *numbers]) + 1
    free = [above + i for i in range(1 + len(inherited))]
    for old, new in zip([ready, *inherited], free, strict=True):
        os.dup2(old, new)
        os.close(old)
    for old, new in zip(free[1:], numbers, strict=True):
        os.dup2(old, new)
        os.close(old)
    return free[0]


def show_arguments(arguments: Sequence[str]) -> None:
    """Let `ps` and others see these, in the place of those that this process was started with. On Linux."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
        shown = b"\0".join(map(os.fsencode, arguments))[: max(0, end - start - 1)]
        if end > start:
            ctypes.memset(start, 0, end - start)
            ctypes.memmove(start, shown, len(shown))


def _has_cuda() -> bool:
    """Whether this process has asked the driver for anything. Finding out asks it for nothing."""
    driver = next((line.split()[-1] for line in _mapped() if "libcuda.so" in line), None)
    if driver is None:
        return False
    context = ctypes.c_void_p()
    return bool(ctypes.CDLL(driver).cuCtxGetCurrent(ctypes.byref(context)) != CUDA_NOT_INITIALIZED)


def _mapped() -> list[str]:
    with suppress(OSError):
        return Path("/proc/self/maps").read_text(errors="replace").splitlines()
    return []


def _main() -> int:
    """The exit code: the template's, or that of a process that it has forked."""
    try:
        return main(TemplateConfig, body, "template")
    except Begun as begun:
        forked = begun
    return run(forked.request, forked.descriptors)


if __name__ == "__main__":
    sys.exit(_main())
