"""Nothing is held any more: the check behind every module that talks to workers."""

import time

from cluster import wait_settled

from xgr_runtime.answer import WorkerStatus
from xgr_runtime.client import XgrClient

HEARTBEATS = 1.5  # seconds: what /workers says is up to a heartbeat old, so an old zero proves nothing


def fresh_workers(client: XgrClient) -> list[WorkerStatus]:
    """All workers, as they are after what was asked so far."""
    time.sleep(HEARTBEATS)
    return client.workers()


def assert_all_freed(client: XgrClient) -> list[WorkerStatus]:
    """The living workers; pages in use, credits and leases go back to zero within seconds."""
    time.sleep(HEARTBEATS)
    return wait_settled(client)
