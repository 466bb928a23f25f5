"""Versions of a catalog are held while anybody reads them, and no longer."""

import pytest
from small_catalogs import example

from xgr_runtime.catalog import Catalogs, CatalogView

OLD, MIDDLE, NEW = (CatalogView(example(items=items)) for items in (20, 30, 40))


def test_the_newest_needs_no_lease() -> None:
    catalogs = Catalogs(OLD)
    catalogs.lease().end()
    assert catalogs.versions == [OLD.version] and catalogs.newest is OLD


def test_who_begins_later_gets_the_newest() -> None:
    catalogs = Catalogs(OLD)
    before = catalogs.lease()
    catalogs.add(NEW)
    with catalogs.lease() as after:
        assert (before.view, after.view) == (OLD, NEW)
    assert catalogs.versions == [OLD.version, NEW.version], "the newest last"


def test_an_old_version_goes_with_its_last_lease() -> None:
    catalogs = Catalogs(OLD)
    first, second = catalogs.lease(), catalogs.lease()
    catalogs.add(NEW)
    first.end()
    first.end()
    assert OLD.version in catalogs.versions, "a lease ends once"
    second.end()
    assert catalogs.versions == [NEW.version]


def test_one_that_nobody_reads_goes_at_once() -> None:
    catalogs = Catalogs(OLD)
    with catalogs.lease():
        catalogs.add(MIDDLE)
        catalogs.add(NEW)
        assert catalogs.versions == [OLD.version, NEW.version]


def test_a_lease_ends_with_what_its_block_raises() -> None:
    catalogs = Catalogs(OLD)
    with pytest.raises(ValueError, match="no"), catalogs.lease():
        catalogs.add(NEW)
        raise ValueError("no")
    assert catalogs.versions == [NEW.version]


def test_an_older_version_is_leased_by_name_while_it_is_held() -> None:
    catalogs = Catalogs(OLD)
    held = catalogs.lease()
    catalogs.add(NEW)
    by_name = catalogs.lease(OLD.version)
    held.end()
    assert by_name.view is OLD and OLD.version in catalogs.versions
    by_name.end()
    with pytest.raises(KeyError):
        catalogs.lease(OLD.version)


def test_a_version_may_come_back() -> None:
    catalogs = Catalogs(OLD)
    with catalogs.lease():
        catalogs.add(NEW)
        catalogs.add(OLD)
        assert catalogs.newest is OLD and catalogs.versions == [OLD.version]


def test_nodes_bound_the_beams_of_each_level() -> None:
    sids = {tuple(sid) for sid in OLD.catalog.sids.tolist()}
    assert OLD.trie.nodes == [len({sid[:length] for sid in sids}) for length in (1, 2, 3)]
    assert OLD.trie.nodes[-1] == OLD.leaves and OLD.trie.depth == OLD.depth
