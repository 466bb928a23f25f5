"""Nothing is held any more: the check behind every module that talks to workers."""

import time

from xgr_runtime.client import XgrClient
from xgr_runtime.wire.answers import WorkerStatus

EVERY = 0.05  # seconds between two looks


def assert_all_freed(client: XgrClient, seconds: float = 20.0) -> list[WorkerStatus]:
    """The living workers as they say they are now; pages, rows, credits, leases and requests go back to zero.

    So their counters tell all that was asked before.
    """
    until = time.monotonic() + seconds
    while True:
        living = [worker for worker in client.workers(fresh=True) if worker.alive]
        loads = [worker.load for worker in living if worker.load]
        held = any(x.pages_used or x.credits_out or x.leases or x.requests or x.rows_used for x in loads)
        if not held and not any(worker.in_flight for worker in living):
            return living
        assert time.monotonic() < until, f"still held: {loads}"
        time.sleep(EVERY)
