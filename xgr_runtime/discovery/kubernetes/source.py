"""The pods of a cluster as a source of workers."""

import logging

from xgr_runtime.discovery import WorkerAddress, check_twice
from xgr_runtime.discovery.kubernetes.follower import Follower
from xgr_runtime.discovery.kubernetes.pods import address_of
from xgr_runtime.errors import ConfigError

log = logging.getLogger(__name__)

FIRST_LOOK = 5.0  # seconds that the first list is waited for


class PodSource:
    """See `Source`. A pod that cannot be meant is named in the log and left out, whoever else there is."""

    def __init__(self, follower: Follower, selector: str) -> None:
        self._follower = follower
        self._selector = selector
        self._started = False
        self._refused: dict[str, str] = {}  # why pods were left out when we last looked, by uid

    def __str__(self) -> str:
        return f"--kubernetes-selector {self._selector}"

    def look(self) -> list[WorkerAddress]:
        """See `Source.look`."""
        if not self._started:
            self._started = True
            self._follower.start()
            self._follower.wait(FIRST_LOOK)
        pods, problem = self._follower.now()
        if problem:
            raise ConfigError(f"{self}: {problem}")
        named, refused = [], {}
        for pod in pods:
            if not pod.serves:
                continue
            try:
                named.append(address_of(pod))
            except ConfigError as error:
                refused[pod.metadata.uid] = str(error)
        self._tell(refused)
        check_twice(named, str(self))
        return sorted(named)

    def stop(self) -> None:
        """Follow the cluster no more."""
        self._follower.stop()

    def _tell(self, refused: dict[str, str]) -> None:
        for uid, reason in refused.items():
            if self._refused.get(uid) != reason:
                log.warning("%s: %s", self, reason)
        self._refused = refused
