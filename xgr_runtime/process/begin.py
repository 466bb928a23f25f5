"""Run a module as `python -m` does, in a process that dies with its launcher.

`python -m xgr_runtime.process.begin FD MODULE ARG...`, where FD is the pipe to the launcher. It comes before
all that the module imports, which takes seconds: meanwhile a launcher may be killed, or the process stopped.
"""

import ctypes
import runpy
import select
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(ready_fd: int) -> None:
    """Have the kernel kill us when the launcher dies, however it dies. Linux; elsewhere nothing happens.

    SIGTERM would wait with a process that is stopped, and stay behind with it. Haste loses nothing: workers
    end after the forward that is under way, so that no request could be drained.

    Raises SystemExit when the launcher is gone already, which the kernel would not report any more.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    poll = select.poll()
    poll.register(ready_fd, 0)
    # Nobody but the launcher ever holds the other end. Unlike a parent id this also works below a subreaper.
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        raise SystemExit(1)


if __name__ == "__main__":
    die_with_parent(int(sys.argv.pop(1)))
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
