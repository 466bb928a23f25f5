"""How much of the processor a thread gets beside others that want it."""

import contextlib
import os
import threading

_LOWER = 10  # of 0 to 19, as `nice` has them


def step_back() -> None:
    """From now on this thread runs after those that answer requests; where it is alone nothing changes.

    Linux has a priority for each thread, which any user may lower.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWER)
