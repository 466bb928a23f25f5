"""Which tokens of a beam are its SID, what a score is of, and which SIDs a catalog holds."""

from __future__ import annotations

import numpy as np
import pytest
from small_catalogs import example

from xgr_runtime.cli.verify.sids import SidTable
from xgr_runtime.cli.verify.terms import Terms, check_score
from xgr_runtime.errors import ConfigError
from xgr_runtime.wire.answers import BeamMeta


@pytest.mark.parametrize(
    ("head", "tail", "tokens", "sid"),
    [
        ((), (), [1, 2, 3], (1, 2, 3)),
        ((), (8, 9), [1, 2, 3, 8, 9], (1, 2, 3)),
        ((), (8, 9), [1, 2, 3], (1, 2, 3)),
        ((), (8, 9), [1, 2, 3, 8, 9, 0, 0], (1, 2, 3)),
        ((7,), (8,), [7, 1, 2, 3, 8], (1, 2, 3)),
        ((7,), (8,), [7, 1, 2, 3], (1, 2, 3)),
        ((7,), (8,), [1, 2, 3], (1, 2, 3)),
        ((), (8, 9), [1, 2, 3, 8], None),
        ((), (8, 9), [1, 2, 3, 9, 8], None),
        ((), (8, 9), [1, 2, 3, 8, 9, 0, 1], None),
        ((7,), (), [6, 1, 2, 3], None),
        ((), (), [1, 2], None),
        ((7,), (), [7, 1, 2], (7, 1, 2)),
    ],
)
def test_the_sid_in_a_beam(
    head: tuple[int, ...], tail: tuple[int, ...], tokens: list[int], sid: tuple[int, ...] | None
) -> None:
    assert Terms(3, head, tail).sid(tokens) == sid


@pytest.mark.parametrize(
    ("score", "value"), [("sequence_score", -2.0), ("sum", -10.0), ("sum / 5", -2.0), ("sum/4", -2.5)]
)
def test_a_score_as_the_other_side_counts(score: str, value: float) -> None:
    assert Terms(3, score=check_score(score, "--score")).of(BeamMeta(-2.0, -10.0)) == value


@pytest.mark.parametrize("score", ["mean", "sum / 0", "sum / -1", "sum / x", "sum / 5; 6", ""])
def test_scores_that_are_none_are_refused(score: str) -> None:
    with pytest.raises(ConfigError, match=r"rule\.json's score .*choose from"):
        check_score(score, "rule.json's score")


def test_a_table_of_sids_holds_those_of_the_catalog_alone() -> None:
    sids = example().sids
    table, known = SidTable(sids), set(map(tuple, sids.tolist()))
    every = np.stack(np.meshgrid(*[np.arange(-1, 8)] * 3), axis=-1).reshape(-1, 3).tolist()
    assert {sid for sid in map(tuple, every) if table.holds(sid)} == known
    assert (
        not table.holds(())
        and not table.holds((*sids[0].tolist(), 1))
        and not table.holds(tuple(sids[0][:2]))
    )
    for row, sid in enumerate(map(tuple, sids.tolist())):
        assert table.leaf(sid) == row


def test_children_of_every_prefix() -> None:
    sids = [tuple(sid) for sid in example().sids.tolist()]
    table = SidTable(example().sids)
    for prefix in {sid[:level] for sid in sids for level in range(3)}:
        below = sorted({sid[len(prefix)] for sid in sids if sid[: len(prefix)] == prefix})
        assert table.children(prefix).tolist() == below
    assert table.children((99,)).size == 0
