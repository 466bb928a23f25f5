"""Keeps a list of pods as the cluster's API has it: a list first, then what changes, for ever.

The protocol is "Efficient detection of changes" in Kubernetes' API concepts: a list has a version, a watch
tells of what came after one. What it tells moves the version on; bookmarks do where nothing happens. A server
that remembers no more answers 410, and all is listed again. Whatever else goes wrong, the pods stay.
"""

import http.client
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from xgr_runtime.discovery.kubernetes.api import GONE, Api, ApiError
from xgr_runtime.discovery.kubernetes.pods import Pod, PodPage
from xgr_runtime.errors import ConfigError

log = logging.getLogger(__name__)

PAGE = 500  # pods of one answer
MOST_PAGE_BYTES = 256 << 20  # a pod has at most 1.5 MiB
MOST_EVENT_BYTES = 8 << 20
MOST_PODS = 20_000
LIST_SECONDS = 30.0  # without a byte
WATCH_SECONDS = (
    60  # that one watch lasts: so often a token that was replaced is used, and a dead server noticed
)
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds
GOOD_WATCH = 5.0  # seconds after which a watch that told nothing counts as one that worked


class _Event(msgspec.Struct, frozen=True):
    """One line of a watch."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _Failure(msgspec.Struct, frozen=True):
    """The object of an ERROR."""

    code: int = 0
    message: str = ""


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: "_Version"


class _Version(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str


_pages = msgspec.json.Decoder(PodPage)
_events = msgspec.json.Decoder(_Event)
_pods = msgspec.json.Decoder(Pod)
_bookmarks = msgspec.json.Decoder(_Bookmark)
_failures = msgspec.json.Decoder(_Failure)


class Follower:
    """The pods of a namespace that a label selector chooses, kept by a thread of its own."""

    def __init__(
        self, api: Api, namespace: str, selector: str, jitter: Callable[[], float] = random.random
    ) -> None:
        """`namespace`: empty for that of the account. `jitter`: 0 to 1, as routers shall not ask together."""
        self._api = api
        self._namespace = namespace
        self._selector = selector
        self._jitter = jitter
        self._version = ""  # up to which the pods are known; empty: list
        self._pods: dict[str, Pod] = {}  # by name
        self._problem = "its pods have not been listed yet"
        self._lock = threading.Lock()
        self._heard = threading.Event()  # a first list is there, or why there is none
        self._over = threading.Event()

    def start(self) -> None:
        """Follow from now on."""
        threading.Thread(target=self.run, name="kubernetes", daemon=True).start()

    def stop(self) -> None:
        """Follow no more; does not wait for an answer that is under way."""
        self._over.set()

    def wait(self, seconds: float) -> None:
        """Until a first list is there, or it is known why not."""
        self._heard.wait(seconds)

    def now(self) -> tuple[list[Pod], str]:
        """The pods as they were last known, and why they may have changed since, or an empty string."""
        with self._lock:
            return list(self._pods.values()), self._problem

    def run(self) -> None:
        """List and watch until stopped."""
        failures = 0
        while not self._over.wait(self._pause(failures)):
            try:
                failures = 0 if self._turn() else failures + 1
            except Exception:  # a bug: the pods stay as they are
                log.exception("following the pods failed")
                self._fails("following them failed, see the log")
                failures += 1

    def _pause(self, failures: int) -> float:
        """Seconds before the next try: more after each one that told nothing."""
        if not failures:
            return 0.0
        longest = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 20), LONGEST_PAUSE)
        return longest * (1 + self._jitter()) / 2

    def _turn(self) -> bool:
        """A watch to its end, and a list before it where that is needed; whether it told anything."""
        try:
            if not self._version:
                self._list()
            return self._watch()
        except ApiError as error:
            if error.status == GONE:
                self._version = ""
            else:
                self._fails(str(error))
        except (msgspec.MsgspecError, ValueError) as error:
            self._version = ""
            self._fails(f"the API's answer is none that we know ({' '.join(str(error).split())[:200]})")
        except ConfigError as error:  # the account's files
            self._fails(str(error))
        return False

    def _list(self) -> None:
        """All pods anew. Raises as `_turn` says; then nothing has changed."""
        pods: dict[str, Pod] = {}
        more = ""
        while True:
            query: dict[str, object] = {"labelSelector": self._selector, "limit": PAGE}
            with self._api.get(
                self._path(), query | ({"continue": more} if more else {}), LIST_SECONDS
            ) as answer:
                page = _pages.decode(_whole(answer))
            pods |= {pod.metadata.name: pod for pod in page.items or ()}
            if len(pods) > MOST_PODS:
                raise ConfigError(f"more than {MOST_PODS} pods match: choose fewer by --kubernetes-selector")
            more = page.metadata.more
            if not more:
                break
        if not page.metadata.resource_version:
            raise ValueError("a list without a version")
        with self._lock:
            self._pods, self._version, self._problem = pods, page.metadata.resource_version, ""
        self._heard.set()

    def _watch(self) -> bool:
        """Take in what changes until the server ends it; whether that was of use. Raises as `_turn` says."""
        query: Mapping[str, object] = {
            "labelSelector": self._selector,
            "watch": "true",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WATCH_SECONDS,
        }
        began, told = time.monotonic(), False
        with self._api.get(self._path(), query, WATCH_SECONDS + LIST_SECONDS) as answer:
            with self._lock:
                self._problem = ""
            while not self._over.is_set() and (line := _line(answer)):
                self._take(_events.decode(line))
                told = True
        return told or time.monotonic() - began >= GOOD_WATCH

    def _take(self, event: _Event) -> None:
        """Raises `ApiError` for one that says that the watch is over, and `msgspec.MsgspecError`."""
        if event.type == "ERROR":
            failure = _failures.decode(event.object)
            raise ApiError(f"the watch failed ({' '.join(failure.message.split())[:300]})", failure.code)
        if event.type == "BOOKMARK":
            self._version = _bookmarks.decode(event.object).metadata.resource_version or self._version
            return
        pod = _pods.decode(event.object)
        with self._lock:
            if event.type == "DELETED":
                self._pods.pop(pod.metadata.name, None)
            else:
                self._pods[pod.metadata.name] = pod
        self._version = pod.metadata.resource_version or self._version

    def _path(self) -> str:
        return f"/api/v1/namespaces/{self._namespace or self._api.account.namespace()}/pods"

    def _fails(self, problem: str) -> None:
        with self._lock:
            self._problem = problem
        self._heard.set()


def _whole(answer: http.client.HTTPResponse) -> bytes:
    body = answer.read(MOST_PAGE_BYTES + 1)
    if len(body) > MOST_PAGE_BYTES:
        raise ValueError(f"more than {MOST_PAGE_BYTES} bytes")
    return body


def _line(answer: http.client.HTTPResponse) -> bytes:
    """The next line, empty at the end. Raises ValueError for one that is too long or was cut off."""
    line = answer.readline(MOST_EVENT_BYTES + 1)
    if len(line) > MOST_EVENT_BYTES:
        raise ValueError(f"an event of more than {MOST_EVENT_BYTES} bytes")
    if line and not line.endswith(b"\n"):
        raise http.client.IncompleteRead(line)
    return line
