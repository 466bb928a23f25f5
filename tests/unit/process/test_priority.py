"""A thread that steps back leaves the others as they are."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from xgr_runtime.process.priority import step_back


def own_priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_it_is_of_one_thread() -> None:
    before = own_priority()
    with ThreadPoolExecutor(1, initializer=step_back) as stepped, ThreadPoolExecutor(1) as other:
        assert stepped.submit(own_priority).result() == max(before, 10)
        assert other.submit(own_priority).result() == own_priority() == before
