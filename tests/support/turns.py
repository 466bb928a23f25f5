"""Cases that take turns: of those that cost most, a commit runs a share, and another commit another."""

from __future__ import annotations

from collections import defaultdict

import pytest

MARK = "in_turns(argument, share=2): a commit runs one value of `argument` in `share`; --long runs all"


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
        places, share = values[item.nodeid.partition("[")[0], name], mark.kwargs.get("share", 2)
        if (places.setdefault(repr(spec.params[name]), len(places)) - turn) % share:
            return False
    return True
