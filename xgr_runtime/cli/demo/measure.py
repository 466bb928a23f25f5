"""Asks the running servers for recommendations and counts how often the held-out item is among them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xgr_runtime.client import XgrClient
    from xgr_runtime.wire.answers import BeamResult

TOP = 10
BEAM_WIDTH = 64
IN_FLIGHT = 8  # requests at a time, so that workers have something to batch


@dataclass(frozen=True)
class User:
    """A history, oldest first, and what came next."""

    name: str
    history: list[str]
    next_item: str


@dataclass(frozen=True)
class Item:
    """What the catalog says about an item."""

    title: str
    popularity: int


@dataclass(frozen=True)
class Recommendation:
    """One ranked item; `score` is the natural log of the probability of its SID."""

    item: str
    score: float


def read_items(path: Path) -> dict[str, Item]:
    """The generated catalog by item id."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["item"]: Item(row["title"], row["popularity"]) for row in rows}


def read_users(path: Path, count: int) -> list[User]:
    """The first `count` users of the generated histories."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [User(row["user"], row["history"], row["next"]) for row in rows]


def most_popular(items: dict[str, Item]) -> list[str]:
    """The rival of every recommender: the same TOP items for everyone."""
    return sorted(items, key=lambda item: -items[item].popularity)[:TOP]


def request_body(user: User) -> dict[str, Any]:
    """The body of POST /generate for this user, as a client without our library sends it."""
    return {"history": user.history, "sampling_params": {"beam_width": BEAM_WIDTH, "n": TOP}}


def recommend(client: XgrClient, user: User) -> list[Recommendation]:
    """The TOP items for a user, best first. Raises `RequestError`."""
    answer = client.generate(history=user.history, beam_width=BEAM_WIDTH, n=TOP)
    return ranked_items(answer.meta_info.beam_results)


def ranked_items(beam_results: Sequence[BeamResult]) -> list[Recommendation]:
    """Items in the order of their SIDs; those that share one follow each other. At most TOP."""
    every = [
        Recommendation(item, result.meta_info.cumulative_logprob)
        for result in beam_results
        for item in result.items
    ]
    return every[:TOP]


def hit_rate(client: XgrClient, users: Sequence[User]) -> float:
    """Share of users whose held-out item is among their TOP recommendations."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        answers = pool.map(lambda user: recommend(client, user), users)
        hits = [
            any(found.item == user.next_item for found in answer)
            for user, answer in zip(users, answers, strict=True)
        ]
    return sum(hits) / len(hits)


def popularity_hit_rate(items: dict[str, Item], users: Sequence[User]) -> float:
    """The same for the list that is equal for everyone."""
    popular = set(most_popular(items))
    return sum(user.next_item in popular for user in users) / len(users)
