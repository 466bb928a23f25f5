"""The store of a catalog that changes: what it keeps, lets go of, refuses, and survives."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_catalogs import example

from xgr_runtime.catalog import load_catalog
from xgr_runtime.catalog.store import Store, begin, uploading
from xgr_runtime.catalog.store import store as module
from xgr_runtime.errors import CatalogError, StoreError

SUPPORT = Path(__file__).parents[2] / "support"
FIRST, SECOND = example(3), example(2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with Store(folder) as made:
        yield made


def push(store: Store, depth: int = 3) -> str:
    with store.writing():
        return store.push(example(depth), f"{depth}.xgr")


def edit(store: Store, *versions: str, key: str = "", answer: bytes = b"") -> None:
    """`batch of V` leads to each V in turn."""
    for version in versions:
        with store.writing():
            assert store.current is not None
            batch = f"batch of {version}".encode()
            store.append(store.current, version, batch, note=f"to {version}", key=key, answer=answer)


def behind(store: Store, version: str | None = None, after: str = "") -> list[str]:
    batches = store.chain(version, after).batches
    assert all(batch == f"batch of {name}".encode() for name, batch in batches)
    return [name for name, _ in batches]


def test_a_chain_is_a_file_and_the_batches_behind_it(store: Store) -> None:
    base = push(store)
    edit(store, "v1", "v2", "v3")
    assert store.current == store.chain().version == "v3" and store.chain().base == base
    assert behind(store) == ["v1", "v2", "v3"] and behind(store, "v2") == ["v1", "v2"]
    assert behind(store, after="v1") == ["v2", "v3"] and behind(store, after=base) == ["v1", "v2", "v3"]
    assert behind(store, after="v3") == [] and behind(store, after="nowhere") == ["v1", "v2", "v3"]
    assert load_catalog(store.chain().file).version == FIRST.version
    for missing in ("v9", ""):
        with pytest.raises(KeyError), Store(store.path.parent / "empty") as empty:
            (store if missing else empty).chain(missing)


def test_an_edit_of_an_older_version_begins_a_branch(store: Store) -> None:
    push(store)
    edit(store, "v1", "v2")
    with store.writing():
        store.switch("v1")
    edit(store, "w2")
    assert behind(store) == ["v1", "w2"] and behind(store, "v2") == ["v1", "v2"]


def test_rollbacks_go_down_what_lies_below(store: Store) -> None:
    base = push(store)
    edit(store, "v1", "v2")
    other = push(store, 2)
    seen = []
    while (before := store.before()) is not None:
        with store.writing():
            store.switch(before)
        seen.append(before)
    assert seen == ["v2", "v1", base]
    with store.writing():
        store.switch(other)  # forward again: it lies on what it was called from
    assert store.before() == base
    kinds = [(one.kind, one.version) for one in store.history(3)]
    assert kinds == [("rollback", other), ("rollback", base), ("rollback", "v1")]
    with store.writing(), pytest.raises(KeyError):
        store.switch("v9")
    assert store.current == other


def test_what_is_kept_comes_back_after_a_restart(folder: Path) -> None:
    with Store(folder) as store:
        base = push(store)
        edit(store, "v1", key="k", answer=b"said")
        with store.writing():
            store.set_filter("cheap", "price < 5")
            store.set_filter("gone", "price < 6")
            store.set_filter("gone", None)
            with pytest.raises(KeyError):
                store.set_filter("gone", None)
            store.remember("k", "d", "v1", b"done")
    with Store(folder) as store:
        assert (store.chain().base, store.current, store.before()) == (base, "v1", base)
        assert {name: one.where for name, one in store.filters().items()} == {"cheap": "price < 5"}
        found = store.answered("k")
        assert found is not None and (found.version, found.answer) == ("v1", b"done")
        newest, first = store.history()
        assert (newest.kind, newest.note, first.kind, first.note) == ("edit", "to v1", "push", "3.xgr")
        assert newest.number > first.number and newest.at >= first.at and newest.kept


def test_the_file_is_the_stores_own(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "given.xgr"
    FIRST.save(source)
    with store.writing():
        version = store.push(load_catalog(source))
    source.write_bytes(b"other")
    with store.sealed(version) as memory:
        assert os.pread(memory.fileno(), 8, 0) == b"XGRCATLG"
    assert store.path.stat().st_mode & 0o077 == 0


def test_files_beyond_the_bound_go_with_all_that_they_lead_to(folder: Path) -> None:
    with Store(folder, keep=2) as store:
        first = push(store, 3)
        edit(store, "v1")
        second = push(store, 2)
        third = push(store, 4)
        assert list(store.files) == [second, third]
        assert not store.keeps("v1") and not store.keeps(first) and store.keeps(second)
        assert [one.kept for one in store.history()] == [True, True, False, False]
        assert {path.stem for path in (folder / "versions").iterdir()} == {second, third}


def test_what_is_served_is_kept_whatever_comes(folder: Path) -> None:
    with Store(folder, keep=1) as store:
        base = push(store)
        edit(store, "v1")
        with store.writing():
            store.append("v1", SECOND.version, b"batch of compaction")
        edit(store, "v2", "v3")
        with store.writing():
            store.rebase(SECOND)  # in the background: others came meanwhile
        assert list(store.files) == [SECOND.version] and not store.keeps(base)
        assert behind(store) == ["v2", "v3"] and store.chain().base == SECOND.version
        with store.writing():
            store.rebase(example(5))  # of a version that nothing leads to any more
        assert list(store.files) == [SECOND.version]


def test_keys_are_bounded_in_number_and_age(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEYS", 2)
    push(store)
    for version in ("v1", "v2", "v3"):
        edit(store, version, key=f"key of {version}")
    assert [bool(store.answered(f"key of {one}")) for one in ("v1", "v2", "v3")] == [False, True, True]
    monkeypatch.setattr(module, "KEY_SECONDS", 0.0)
    assert store.answered("key of v3") is None


def test_others_writing_is_seen_once_and_no_batch_is_lost(folder: Path) -> None:
    with Store(folder) as one, Store(folder) as other:
        push(one)
        assert other.look() and not other.look() and not one.look()

        def edits(store: Store) -> None:
            for number in range(30):
                edit(store, f"{id(store)}-{number}")

        threads = [threading.Thread(target=edits, args=(store,)) for store in (one, other, one)]
        for thread in threads[:2]:
            thread.start()
        for thread in threads[:2]:
            thread.join()
        assert len(behind(one)) == len(set(behind(other))) == 60
        with one.writing() as others:
            assert others or other.look()


def test_a_writer_that_does_not_end_is_not_waited_for_forever(folder: Path) -> None:
    with Store(folder) as one, Store(folder) as other, one.writing():
        with pytest.raises(StoreError, match=r"another process for 0.05 s"), other.writing(0.05):
            pass
        with pytest.raises(StoreError, match="this process takes long"), one.writing(0.05):
            pass
    with Store(folder) as again, again.writing(0.05):
        pass


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_changes_nothing(store: Store) -> None:
    base = push(store)
    edit(store, "v1")
    size = max(path.stat().st_size for path in store.path.rglob("*"))
    with largest_file(size + 4096), store.writing():
        with pytest.raises(StoreError, match=r"store.sqlite: .*(make room|room left)"):
            store.append("v1", "v2", bytes(1 << 20))
        with pytest.raises(StoreError, match=r"cannot be written .*make room"):
            store.push(example(4, items=20_000))
        with (
            pytest.raises(StoreError, match=r"upload cannot be kept .*make room"),
            uploading(store.path) as (
                path,
                stream,
            ),
        ):
            stream.write(bytes(1 << 20))
        assert not path.exists()
    assert store.current == "v1" and list(store.files) == [base] and not store.look()
    edit(store, "v2")
    assert behind(store) == ["v1", "v2"]
    assert [path.stem for path in (store.path / "versions").iterdir()] == [base]


def other_program(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite")) as connection:
        connection.execute("CREATE TABLE notes(text)")


def other_schema(folder: Path) -> None:
    Store(folder).close()
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite")) as connection:
        connection.execute("PRAGMA user_version=7")


def cut_database(folder: Path) -> None:
    with Store(folder) as store:
        push(store)
        edit(store, *(f"v{number}" for number in range(50)))
    with contextlib.closing(sqlite3.connect(folder / "store.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(folder / "store.sqlite", 8192)


def without_its_file(folder: Path) -> None:
    with Store(folder) as store:
        version = push(store)
    (folder / "versions" / f"{version}.xgr").unlink()


def cut_file(folder: Path) -> None:
    with Store(folder) as store:
        version = push(store)
    os.truncate(folder / "versions" / f"{version}.xgr", 100)


def exchanged_file(folder: Path) -> None:
    with Store(folder) as store:
        version = push(store)
    SECOND.save(folder / "versions" / f"{version}.xgr")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "garbage": (lambda folder: (folder / "store.sqlite").write_bytes(bytes(range(256)) * 64), "is damaged"),
    "cut-database": (cut_database, "is damaged"),
    "another-program": (other_program, "another program's database: name another folder"),
    "another-schema": (other_schema, "has schema 7, this release reads 1: use the release"),
    "a-file": (lambda folder: (folder.rmdir(), folder.touch()), "cannot be used .*name a folder"),
    "open-to-others": (lambda folder: folder.chmod(0o777), "written to by other users: chmod 700"),
    "version-gone": (without_its_file, "xgr cannot be read .*put it back"),
    "version-cut": (cut_file, "its header says .*put it back"),
    "version-exchanged": (exchanged_file, f"holds version {SECOND.version}.*put it back"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_folder_that_is_no_good_is_refused_in_one_line(broken: str, folder: Path) -> None:
    folder.mkdir(0o700)
    make, words = BROKEN[broken]
    make(folder)
    with pytest.raises(StoreError, match=f"{folder}.*{words}") as caught:
        Store(folder)
    assert "\n" not in str(caught.value)


def test_a_byte_that_changed_on_disk_is_found_by_whoever_reads_the_file(folder: Path) -> None:
    with Store(folder) as store:
        version = push(store)
        path = folder / "versions" / f"{version}.xgr"
        content = bytearray(path.read_bytes())
        content[-70] ^= 1
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"checksum differs.*; put it back"):
            store.sealed(version)
        assert push(store) == version  # the same catalog again makes it whole
        store.sealed(version).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not write")
@pytest.mark.parametrize("name", ["store.sqlite", "lock", ""])
def test_nothing_is_acknowledged_into_files_that_were_taken_away(name: str, folder: Path) -> None:
    """They stay open and take writes, and the next start would know nothing of them."""
    with Store(folder) as store:
        first = push(store)
        kept = folder.with_name("kept")
        shutil.copytree(folder, kept)
        taken = folder / name if name else folder
        moved = folder.with_name("moved")
        taken.rename(moved)
        with pytest.raises(StoreError, match=r"taken away or replaced.*restart"), store.writing():
            raise AssertionError("not to be written to")
        shutil.copytree(kept, folder, dirs_exist_ok=True)  # others with the same content are not ours
        with pytest.raises(StoreError, match="taken away or replaced"), store.writing():
            raise AssertionError("not to be written to")
        shutil.rmtree(taken) if taken.is_dir() else taken.unlink()
        moved.rename(taken)
        edit(store, first, "a")  # ours are back, and nobody holds the lock
        assert store.current == "a"
    with Store(folder) as again:
        assert again.current == "a"


def test_a_folder_that_may_not_be_written_is_refused() -> None:
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        folder = Path(made) / "store"
        Store(folder).close()
        os.setresuid(65534, 65534, 0)
        try:
            for path in (folder, Path(made) / "new"):
                with pytest.raises(StoreError, match=r"cannot be (used|written).*that you may write to"):
                    Store(path)
        finally:
            os.setresuid(0, 0, 0)


def test_what_a_crash_left_is_swept_and_what_is_under_way_is_not(folder: Path) -> None:
    with Store(folder) as store:
        version = push(store)
        (folder / "versions" / "unknown.xgr").touch()
        (folder / "versions" / f".0123.{version}.xgr").touch()
        (folder / "incoming" / "dead").mkdir()
        (folder / "incoming" / "dead" / "cut.xgr").touch()
        (folder / "versions" / "somebodys").mkdir()  # is nobody's to take away
        with uploading(folder, "new.xgr") as (path, stream):
            stream.write(b"on its way")
            with store.writing():
                Store(folder).close()
                assert (folder / "versions" / "unknown.xgr").exists()  # its writer may not have told yet
            Store(folder).close()
            assert path.name == "new.xgr" and [*(folder / "incoming").iterdir()] == [path.parent]
        assert not [*(folder / "incoming").iterdir()]
        assert [path.stem for path in (folder / "versions").glob("*.xgr")] == [version]
        assert (folder / "versions" / "somebodys").is_dir()


def test_an_empty_store_takes_the_file_and_another_does_not(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first.xgr", tmp_path / "second.xgr"
    FIRST.save(first)
    SECOND.save(second)
    with Store(folder) as store:
        with pytest.raises(StoreError, match=r"holds no catalog yet.*--catalog FILE"):
            begin(store, "", tmp_path)
        with pytest.raises(CatalogError, match=r"nowhere.xgr"):
            begin(store, str(tmp_path / "nowhere.xgr"), tmp_path)
        assert store.current is None
        assert begin(store, str(first), tmp_path).version == FIRST.version
        edit(store, "v1")
        for same in ("", str(first)):
            assert begin(store, same, tmp_path).version == "v1"
        assert not caplog.records
        assert begin(store, str(second), tmp_path).version == "v1"
        (record,) = caplog.records
        assert "v1" in record.getMessage() and f"{second} is not looked at" in record.getMessage()


def test_writers_that_are_killed_lose_nothing_that_was_acknowledged(folder: Path) -> None:
    script = [sys.executable, str(SUPPORT / "store_crashes.py"), str(folder), "1", "2.5"]
    ended = subprocess.run(script, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    kills, acknowledged = map(int, ended.stdout.split())
    assert kills >= 5 and acknowledged >= 5
    shutil.rmtree(folder)
