"""Files that a deployment was started with, changed or cleaned away by others while it serves."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import pytest
from census import Census, take
from crowd import Crowd, Question
from fault_table import FaultTable
from fleet import Fleet
from made_catalogs import build_from_arrays
from patient import SETTINGS
from trial import Trial
from until import until

from xgr_runtime.catalog import Catalog, load_catalog

CHANGED = "changed on disk"
AGAIN = "the folder for sockets"
BETWEEN = ("no_workers", "worker_lost")  # a new router knows its workers only after their next heartbeat


@pytest.fixture(scope="module")
def catalog_file(checkpoint: Path, catalog_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built file that tests may change."""
    path = tmp_path_factory.mktemp("served") / "catalog.xgr"
    load_catalog(catalog_source, checkpoint).save(path)
    return path


@pytest.fixture(scope="module")
def served(checkpoint: Path, catalog_file: Path) -> Iterator[Fleet]:
    """A deployment of that file."""
    with Fleet(checkpoint, catalog_file, **SETTINGS) as made:
        yield made


@pytest.fixture
def at_rest(served: Fleet, questions: list[Question]) -> Census:
    """What it holds once all have met."""
    for seed in range(2):
        with Crowd(served.url, questions, seed, callers=12, each=True) as crowd:
            assert not crowd.wait().bad
    return take(served)


def other_items(catalog: Catalog) -> Catalog:
    """The same SIDs and a file of the same size, but each SID is another item's."""
    ids = [catalog.item_id(row) for row in range(catalog.items)]
    sids = catalog.sids[catalog.leaf_of_row]
    return build_from_arrays(ids[::-1], sids, template=catalog.template, vocab_size=catalog.vocab_size)


def copy_into(path: Path, content: bytes) -> None:
    """As `cp` does it."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


def changes(path: Path) -> dict[str, Callable[[], object]]:
    """What others do to a served file."""
    whole = path.read_bytes()
    catalog = load_catalog(path)
    beside = path.with_name("other")
    other_items(catalog).save(beside)
    other = beside.read_bytes()
    assert len(other) == len(whole)
    return {
        "other items": lambda: copy_into(path, other),
        "other bytes": lambda: copy_into(path, random.Random(0).randbytes(len(whole))),
        "smaller": lambda: copy_into(path, whole[: len(whole) // 3]),
        "truncated": lambda: os.truncate(path, 0),
        "deleted": path.unlink,
        "built": lambda: other_items(catalog).save(path),
        "renamed": lambda: path.rename(path.with_name("away")),
        "built over": lambda: other_items(catalog).save(path),
    }


# In this order, and who is killed after the last of them: the next one finds the file like that.
ROUNDS = [
    (["other items", "other bytes", "smaller", "truncated"], ["decode-0", "router"]),
    (["deleted", "built", "renamed", "built over"], ["decode-1", "prefill-0", "router"]),
]


def answer(fleet: Fleet, question: Question) -> tuple[str, object]:
    """The catalog version of an answer, and its items."""
    with fleet.client() as client:
        found = client.generate(
            input_ids=question.prompt, beam_width=question.width, n=min(10, question.width)
        )
    return found.meta_info.catalog_version, found.items


def kill(fleet: Fleet, victims: Sequence[str]) -> None:
    """kill -9 all of them, and wait for those that replace them."""
    before = fleet.incarnations()
    for victim in victims:
        fleet.signal(victim, SIGKILL)
    fleet.whole({name: before[name] for name in victims if name in before})


def test_a_catalog_that_changes_on_disk_is_served_as_it_was(
    served: Fleet, at_rest: Census, questions: list[Question], table: FaultTable, catalog_file: Path
) -> None:
    version = load_catalog(catalog_file).version
    right = answer(served, questions[0])
    assert right[0] == version
    case = "catalog file overwritten, cut off, deleted, built over, renamed; workers and router killed"
    with (
        Trial(case, served, questions, at_rest, table, BETWEEN) as it,
        it.crowd(seed=21, callers=3, reconnect=True),
    ):
        until(lambda: it.row.tally.correct, "an answer")
        made = changes(catalog_file)
        for names, victims in ROUNDS:
            for name in names:
                made[name]()
                it.fault()
                assert answer(served, questions[0]) == right, name
            kill(served, victims)
            assert answer(served, questions[0]) == right, names
        it.wait_answered()
    with served.client() as client:
        assert {c for w in client.workers() for c in w.catalogs} == {version}
    said = [line for line in served.lines if CHANGED in line]
    assert said and all(f"still serving version {version}" in line for line in said)


def clear_away(folder: Path) -> None:
    """All of it at once, for what is in it comes back."""
    shutil.rmtree(folder.rename(folder.with_name("cleared")))


def test_a_run_folder_that_is_cleaned_is_made_again(
    served: Fleet, at_rest: Census, questions: list[Question], table: FaultTable
) -> None:
    # A listener keeps the end that nobody finds any more, for it holds the connections that came in there.
    more = {name: count + 4 for name, count in at_rest.descriptors.items()}
    with (
        Trial(
            "run folder cleaned away; workers and router killed",
            served,
            questions,
            replace(at_rest, descriptors=more),
            table,
            BETWEEN,
        ) as it,
        it.crowd(seed=22, callers=3, reconnect=True),
    ):
        until(lambda: it.row.tally.correct, "an answer")
        folder = served.run_folder
        assert folder is not None
        said = len(served.lines)
        for clean, victims in (
            (lambda: [(folder / name).unlink() for name in ("decode-0", "decode-0.data")], ["prefill-0"]),
            (lambda: clear_away(folder), ["decode-1", "prefill-1", "router"]),
        ):
            clean()
            it.fault()
            kill(served, victims)
        it.wait_answered()
        lines = served.lines[said:]
        assert any(AGAIN in line for line in lines) and not any("crash loop" in line for line in lines)
        assert served.run_folder == folder
