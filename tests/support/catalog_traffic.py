"""A catalog that changes under load: what each version holds, kept in dicts, and answers held to that.

Nothing here reads the code under test: changes are made over HTTP and to the dicts alike.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
from items import Items, Sid
from sameness import assert_items

from xgr_runtime.client import XgrClient
from xgr_runtime.errors import RequestError
from xgr_runtime.wire.answers import Answer


@dataclass(frozen=True)
class State:
    """What one version holds."""

    sids: dict[str, Sid]
    hidden: frozenset[str] = frozenset()

    @property
    def items(self) -> Items:
        """That answers may list."""
        return Items({item: sid for item, sid in self.sids.items() if item not in self.hidden})


class Sent(NamedTuple):
    """A request, and what became of it."""

    at: float  # time.monotonic()
    history: list[str]
    answer: Answer | None
    error: str = ""


@dataclass
class Operations:
    """Random batches, seeded; `state` is what the acknowledged ones led to."""

    url: str
    states: dict[str, State]
    version: str
    draw: random.Random
    order: list[tuple[float, str]] = field(default_factory=list)  # when a call had returned, and its version
    seconds: list[float] = field(default_factory=list)
    fresh: int = 0

    @property
    def state(self) -> State:
        return self.states[self.version]

    def batch(self) -> tuple[dict[str, Any], State]:
        """A body of POST /catalog/items, and what it leads to."""
        sids, hidden = dict(self.state.sids), set(self.state.hidden)
        names = sorted(sids)
        kind = self.draw.choice(["hide", "hide", "show", "remove", "add", "rank", "mixed"])
        body: dict[str, Any] = {}
        if kind in ("hide", "mixed"):
            body["hide"] = self.draw.sample(names, 30)
            hidden |= set(body["hide"])
        if kind == "show":
            body["show"] = [*self.draw.sample(sorted(hidden), min(20, len(hidden))), "nobody"]
            hidden -= set(body["show"])
        if kind in ("remove", "mixed"):
            rest = [name for name in names if name not in body.get("hide", ())]
            body["remove"] = self.draw.sample(rest, 5)
            for name in body["remove"]:
                del sids[name]
                hidden.discard(name)
        if kind in ("add", "mixed"):
            body["add"] = [self._new(names) for _ in range(3)]
            sids |= {one["item"]: tuple(one["sid"]) for one in body["add"]}
        if kind == "rank":
            body["rank"] = {name: self.draw.random() for name in self.draw.sample(names, 4)}
        return body, State(sids, frozenset(hidden))

    def _new(self, names: Sequence[str]) -> dict[str, Any]:
        """An item with a SID of an old one, or with one whose last token is another's."""
        self.fresh += 1
        sids = self.state.sids
        one, other = sids[self.draw.choice(names)], sids[self.draw.choice(names)]
        sid = one if self.draw.random() < 0.3 else (*one[:-1], other[-1])
        return {"item": f"new-{self.fresh}", "sid": list(sid), "popularity": self.draw.random()}

    def edit(self) -> None:
        """One random batch."""
        body, after = self.batch()
        self.done(self.post("/catalog/items", body), after)

    def post(self, path: str, body: dict[str, Any], method: str = "POST") -> str:
        """The version that a change led to."""
        began = time.monotonic()
        response = httpx.request(method, f"{self.url}{path}", json=body, timeout=60.0)
        assert response.status_code == 200, response.text
        self.seconds.append(time.monotonic() - began)
        return str(response.json()["version"])

    def done(self, version: str, state: State) -> None:
        """A call has returned."""
        assert self.states.setdefault(version, state) == state, "a version means one thing"
        self.version = version
        self.order.append((time.monotonic(), version))


@contextmanager
def traffic(url: str, histories: Sequence[list[str]], threads: int = 2) -> Iterator[list[Sent]]:
    """Requests until the block ends, to be looked at then."""
    over, sent = threading.Event(), []  # type: ignore[var-annotated]

    def ask_on(seed: int) -> None:
        draw = random.Random(seed)
        with XgrClient(url, timeout=60.0) as client:
            while not over.is_set():
                at, history = time.monotonic(), draw.choice(histories)
                try:
                    answer = client.generate(
                        history=history, beam_width=24, n=24, unknown_history="drop", timeout_ms=30000
                    )
                    sent.append(Sent(at, history, answer))
                except (RequestError, httpx.HTTPError) as error:
                    sent.append(Sent(at, history, None, f"{type(error).__name__}: {error}"))
                    time.sleep(0.05)

    with ExitStack() as stack:
        for seed in range(threads):
            thread = threading.Thread(target=ask_on, args=(seed,), daemon=True)
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        yield sent


def check(sent: Sequence[Sent], operations: Operations) -> set[str]:
    """Every answer is of the version that it names, and of none before the last call that had returned.

    The versions that answers named.
    """
    places = {version: at for at, (_, version) in enumerate(operations.order)}  # the last time of each
    items = {version: state.items for version, state in operations.states.items()}
    named = set()
    for one in sent:
        if one.answer is None:
            continue
        version = one.answer.meta_info.catalog_version
        named.add(version)
        assert version in items, f"nothing led to version {version}"
        returned = [version for when, version in operations.order if when < one.at]
        if returned:
            latest = len(returned) - 1
            assert places[version] >= latest, f"version {version} was not current any more"
        assert_items(one.answer, items[version])
        assert one.answer.meta_info.beam_results, "something is always visible"
    return named
