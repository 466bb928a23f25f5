"""Work that would hold up the loop of a worker: one thread does it and wakes the loop once it is done."""

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Aside:
    """One piece of work after the other. `wakeup` can be read once any of them is over."""

    def __init__(self, name: str, begin: Callable[[], None] | None = None) -> None:
        """`begin`: what the thread does first, such as `step_back`."""
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin)

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """What it returns or raises is in the future by the time that the loop is woken."""
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: os.eventfd_write(self.wakeup, 1))
        return future

    def woken(self) -> None:
        """Sleep again until more is over."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wakeup)

    def close(self) -> None:
        """Wait for what is under way; what waits is not begun."""
        self._thread.shutdown(cancel_futures=True)
        os.close(self.wakeup)
