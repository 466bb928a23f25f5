"""Cases that take turns: of those that cost most, a commit runs a share, and another commit another."""

from __future__ import annotations

from collections import defaultdict

import pytest

MARK = "in_turns(argument): a commit runs the cases of every second value of `argument`; --long runs all"


def take_turns(items: list[pytest.Item], turn: int) -> list[pytest.Item]:
    """Those that are left out at this turn are taken from `items` and returned."""
    values: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    out = [item for item in items if not _has_its_turn(item, turn, values)]
    left_out = set(out)
    items[:] = [item for item in items if item not in left_out]
    return out


def _has_its_turn(item: pytest.Item, turn: int, values: dict[tuple[str, str], dict[str, int]]) -> bool:
    """By the place of its value among those of the test's argument, in the order in which they come."""
    spec = getattr(item, "callspec", None)
    for mark in item.iter_markers("in_turns"):
        name = mark.args[0]
        if spec is None or name not in spec.params:
            raise pytest.UsageError(f"{item.nodeid} takes turns by {name!r}, which is none of its arguments")
        places = values[item.nodeid.partition("[")[0], name]
        if places.setdefault(repr(spec.params[name]), len(places)) % 2 != turn % 2:
            return False
    return True
