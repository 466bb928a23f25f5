"""Nothing is held any more: the check behind every module that talks to workers."""

import time

from xgr_runtime.client import XgrClient
from xgr_runtime.wire.answers import WorkerStatus

HEARTBEATS = 1.5  # seconds: what /workers says is up to a heartbeat old, so an old zero proves nothing


def fresh_workers(client: XgrClient) -> list[WorkerStatus]:
    """All workers, as they are after what was asked so far."""
    time.sleep(HEARTBEATS)
    return client.workers()


def assert_all_freed(client: XgrClient, seconds: float = 20.0) -> list[WorkerStatus]:
    """The living workers; pages, rows, credits, leases and requests go back to zero within `seconds`."""
    until = time.monotonic() + seconds
    while True:
        living = [worker for worker in fresh_workers(client) if worker.alive]
        loads = [worker.load for worker in living if worker.load]
        held = any(x.pages_used or x.credits_out or x.leases or x.requests or x.rows_used for x in loads)
        if not held and not any(worker.in_flight for worker in living):
            return living
        assert time.monotonic() < until, f"still held: {loads}"
