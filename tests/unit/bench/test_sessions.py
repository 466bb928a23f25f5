"""Sessions: how many return, that they are who they were, and that a run can be had again."""

import itertools
from collections import Counter

import numpy as np
import pytest

from xgr_runtime.cli.bench.sessions import Sessions, Visit
from xgr_runtime.cli.bench.settings import TrafficSettings

ITEMS = 80


def visits(count: int, **settings: object) -> list[Visit]:
    made = TrafficSettings(kind="sessions", **{"known": 1, **settings})  # type: ignore[arg-type]
    return list(itertools.islice(Sessions(made, leaves=1000, items=ITEMS), count))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_as_many_return_as_asked_for(share: float) -> None:
    new = sum(visit.visitor == "new" for visit in visits(5000, returning=share))
    assert new / 5000 == pytest.approx(1 - share, abs=0.02)  # four deviations


def test_the_first_are_those_who_are_known_from_the_start() -> None:
    made = visits(5000, known=40, returning=0.9)
    assert [visit.user for visit in made[:40]] == list(range(40))
    assert sum(v.visitor == "new" for v in made[40:]) / 4960 == pytest.approx(0.1, abs=0.02)


def test_every_visit_is_the_last_one_with_new_items_behind() -> None:
    last: dict[int, list[int]] = {}
    for visit in visits(3000, new_items=3):
        history = visit.history.tolist()
        if visit.visitor == "new":
            assert visit.user not in last
        elif visit.visitor == "returning":
            assert history[:-3] == last[visit.user]
        else:  # the oldest were dropped, the newest kept
            assert history[:-3] == last[visit.user][-len(history[:-3]) :]
        last[visit.user] = history


def test_histories_stay_within_an_eighth_of_the_length_asked_for() -> None:
    made = visits(5000, users=20)
    lengths = [len(visit.history) for visit in made]
    assert max(lengths) == ITEMS and min(lengths) == ITEMS - ITEMS // 8
    # Who returns for the tenth time is cut once: nine of ten prompts may be had from a cache.
    assert 0 < sum(visit.visitor == "cut" for visit in made) < 0.12 * len(made)


def test_popularity_follows_the_law_of_zipf() -> None:
    sessions = Sessions(TrafficSettings(kind="sessions", users=10, returning=0.5), leaves=1000, items=ITEMS)
    for _ in itertools.islice(sessions, 200):
        pass
    ranks = Counter(sessions._rank() for _ in range(20_000))
    assert ranks[0] / ranks[1] == pytest.approx(2.0, rel=0.1)
    assert ranks[0] / ranks[9] == pytest.approx(10.0, rel=0.2)


def test_no_more_are_known_than_asked_for() -> None:
    newest = None
    for visit in visits(500, users=1, returning=0.5):
        newest = visit.user if visit.visitor == "new" else newest
        assert visit.user == newest


def test_the_seed_decides() -> None:
    one, same, other = (visits(200, seed=seed) for seed in (1, 1, 2))
    assert all(
        a.user == b.user and np.array_equal(a.history, b.history) for a, b in zip(one, same, strict=True)
    )
    assert any(not np.array_equal(a.history, b.history) for a, b in zip(one, other, strict=True))


def test_a_window_that_slides_loses_what_is_new_alone() -> None:
    last: dict[int, list[int]] = {}
    for visit in visits(2000, users=5, new_items=2, window_step=16):
        history = visit.history.tolist()
        if visit.user in last:
            assert history == [*last[visit.user], *history[-2:]][-ITEMS:]
        last[visit.user] = history
    assert max(map(len, last.values())) == ITEMS
