"""The built file: what is written is what is opened, and no mutation of it gets through."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import xxhash
from small_catalogs import example

from xgr_runtime.catalog import Catalog, load_catalog, verify, verify_file
from xgr_runtime.catalog.file import FORMAT, MAGIC, PREAMBLE, ArrayEntry, Header, map_file, write_file
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("titles", [True, False], ids=["titles", "bare"])
@pytest.mark.parametrize("items", [1, 200], ids=lambda n: f"items={n}")
@pytest.mark.parametrize("depth", [1, 2, 8], ids=lambda n: f"depth={n}")
def test_roundtrip(depth: int, items: int, titles: bool, tmp_path: Path) -> None:
    catalog, path = example(depth, items, titles), tmp_path / "c.xgr"
    catalog.save(path)
    opened = verify_file(path)
    assert (opened.version, opened.template) == (catalog.version, catalog.template)
    assert (opened.depth, opened.leaves, opened.items) == (depth, catalog.leaves, items)
    assert opened.vocab_size == 50
    assert opened.arrays.keys() == catalog.arrays.keys()
    for name, array in catalog.arrays.items():
        assert opened.arrays[name].dtype == array.dtype
        assert np.array_equal(opened.arrays[name], array)
    assert opened.title("item-0") is None
    if items > 1:
        assert opened.title("item-1") == ("T1é" if titles else None)
        assert opened.attributes("item-1") == ({"stock": 1} if titles else {})
    assert [path.name for path in tmp_path.iterdir()] == ["c.xgr"]


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    example().save(tmp_path / "a")
    Catalog.open(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_opened_arrays_are_aligned_and_read_only(built: Path) -> None:
    catalog = Catalog.open(built)
    for array in catalog.arrays.values():
        assert not array.flags.writeable
        assert array.ctypes.data % 64 == 0 or not array.size


def test_saving_over_a_mapped_file_leaves_the_old_one_whole(built: Path) -> None:
    old = Catalog.open(built)
    example(depth=2).save(built)
    verify(old)
    assert (old.depth, Catalog.open(built).depth) == (3, 2)


def test_every_truncation_is_refused(built: Path) -> None:
    whole = built.read_bytes()
    for size in [*range(0, 200, 7), len(whole) // 2, len(whole) - 1]:
        built.write_bytes(whole[:size])
        with pytest.raises(CatalogError):
            Catalog.open(built)
    built.write_bytes(whole + b"\0")
    with pytest.raises(CatalogError, match="its header says"):
        Catalog.open(built)


def test_every_flipped_byte_is_refused(built: Path) -> None:
    """In the preamble and the header at open; in an array at verify. Padding alone may change."""
    whole = built.read_bytes()
    header, arrays = map_file(built)
    _, _, length, _, _ = PREAMBLE.unpack(whole[: PREAMBLE.size])
    inside = [
        at for e in header.arrays for at in range(e.offset, e.offset + arrays[e.name].nbytes) if e.shape[0]
    ]
    rng = random.Random(0)
    for at in rng.sample(range(PREAMBLE.size + length), 150):
        built.write_bytes(flipped(whole, at))
        with pytest.raises(CatalogError):
            Catalog.open(built)
    for at in rng.sample(inside, 150):
        built.write_bytes(flipped(whole, at))
        with pytest.raises(CatalogError):
            verify_file(built)
        with pytest.raises(CatalogError):
            load_catalog(built)


def flipped(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]


def forge(path: Path, change: Callable[[Header], Header]) -> None:
    """Rewrites the header, its checksum included, as someone with bad intent could."""
    whole = path.read_bytes()
    _, _, length, _, size = PREAMBLE.unpack(whole[: PREAMBLE.size])
    header = msgspec.msgpack.decode(whole[PREAMBLE.size : PREAMBLE.size + length], type=Header)
    text = msgspec.msgpack.encode(change(header))
    preamble = PREAMBLE.pack(MAGIC, FORMAT, len(text), xxhash.xxh3_64_intdigest(text), size)
    path.write_bytes((preamble + text).ljust(PREAMBLE.size + length, b"\0") + whole[PREAMBLE.size + length :])


def with_array(name: str, change: Callable[[ArrayEntry], ArrayEntry]) -> Callable[[Header], Header]:
    def apply(header: Header) -> Header:
        entries = tuple(change(entry) if entry.name == name else entry for entry in header.arrays)
        return msgspec.structs.replace(header, arrays=entries)

    return apply


def fields(**values: object) -> Callable[[ArrayEntry], ArrayEntry]:
    return lambda entry: msgspec.structs.replace(entry, **values)


FORGERIES: dict[str, Callable[[Header], Header]] = {
    "huge-shape": with_array("ids.blob", fields(shape=(2**62,))),
    "overflowing-shape": with_array("sids", fields(shape=(2**40, 2**40))),
    "negative-shape": with_array("ids.blob", fields(shape=(-1,))),
    "no-shape": with_array("ids.blob", fields(shape=())),
    "three-dimensions": with_array("ids.blob", fields(shape=(1, 1, 1))),
    "object-dtype": with_array("ids.blob", fields(dtype="|O")),
    "other-dtype": with_array("leaf_of_row", fields(dtype="|u1")),
    "unaligned": with_array("lo.0", fields(offset=1001)),
    "negative-offset": with_array("lo.0", fields(offset=-64)),
    "offset-past-the-end": with_array("lo.0", fields(offset=2**60)),
    "offset-in-the-preamble": with_array("lo.0", fields(offset=0)),
    "shorter": with_array("lo.1", fields(shape=(2,))),
    "renamed": with_array("lo.1", fields(name="lo.9")),
    "missing": lambda header: msgspec.structs.replace(header, arrays=header.arrays[1:]),
    "none": lambda header: msgspec.structs.replace(header, arrays=()),
    "nine-levels": with_array("sids", fields(shape=(2, 9))),
    "negative-vocabulary": lambda header: msgspec.structs.replace(header, vocab_size=-1),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_headers_are_refused(name: str, built: Path) -> None:
    forge(built, FORGERIES[name])
    with pytest.raises(CatalogError, match="build it again"):
        Catalog.open(built)


@pytest.mark.parametrize("name", ["", "XGRCATLG", "some other file, longer than the preamble is"])
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(name)
    with pytest.raises(CatalogError, match="is not a built catalog"):
        Catalog.open(tmp_path / "x")
    with pytest.raises(CatalogError, match="cannot be mapped"):
        Catalog.open(tmp_path / "none")


def test_a_newer_format_is_refused(built: Path) -> None:
    whole = built.read_bytes()
    built.write_bytes(whole[:8] + (FORMAT + 1).to_bytes(4, "little") + whole[12:])
    with pytest.raises(CatalogError, match=f"format {FORMAT + 1}, this release reads {FORMAT}"):
        Catalog.open(built)


CORRUPTIONS: dict[str, tuple[str, int, float]] = {  # array, index, added; checksums are made to match
    "sid": ("sids", 4, 1),
    "negative-token": ("sids", 0, -100),
    "children": ("lo.0", 1, 1),
    "children-backwards": ("lo.1", 3, 10**6),
    "token": ("tokens.1", 2, 1),
    "leaf": ("leaf_of_row", 5, 1),
    "item-range": ("item_lo", 2, 50),
    "id": ("ids.blob", 3, 1),
    "id-not-utf8": ("ids.blob", 3, 255 - ord("m")),
    "id-offset": ("ids.offsets", 4, 10**12),
    "id-offset-inside": ("ids.offsets", 4, 1),
    "title-offset": ("titles.offsets", 2, 2),
    "hash": ("hashes", 3, 1),
    "hash-row": ("hash_rows", 3, 1),
    "hash-start": ("hash_starts", 1, 1),
    "attributes": ("attributes.blob", 2, 1),
    "popularity": ("popularity", 3, 1),
    "order-of-popularity": ("popularity", 0, -1000),
    "no-popularity": ("popularity", 7, np.nan),
    "hidden": ("hidden", 0, 8),
    "hidden-beyond": ("hidden", 24, 128),
}


def with_more(catalog: Catalog) -> Catalog:
    """The same with popularity, and with an item that is hidden."""
    popularity, hidden = -np.arange(catalog.items, dtype=np.float64), np.zeros(25, np.uint8)
    hidden[0] = 1
    return Catalog.from_content(
        replace(catalog.content, popularity=popularity, hidden=hidden), catalog.vocab_size
    )


def test_popularity_and_hidden_items_are_part_of_the_version_where_there_are_any(tmp_path: Path) -> None:
    plain, path = example(items=195), tmp_path / "c.xgr"
    more = with_more(plain)
    more.save(path)
    opened = load_catalog(path)
    assert opened.version == more.version != plain.version
    assert opened.popularity(np.arange(3)).tolist() == [0, -1, -2]
    assert opened.visible is not None and np.flatnonzero(~opened.visible.holds(np.arange(195))).tolist() == [
        0
    ]
    none = replace(more.content, popularity=np.empty(0), hidden=np.empty(0, np.uint8))
    assert none.version() == plain.version


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_verify_finds_arrays_that_contradict(name: str, tmp_path: Path) -> None:
    """Every checksum matches here: only the meaning of the arrays is wrong."""
    which, at, added = CORRUPTIONS[name]
    catalog, path = with_more(example(items=195)), tmp_path / "c.xgr"
    arrays = {key: array.copy() for key, array in catalog.arrays.items()}
    flat = arrays[which].reshape(-1)
    flat[at] = flat[at] + np.array(added).astype(flat.dtype)
    write_file(path, Header(catalog.version, catalog.vocab_size, catalog.templates, ()), arrays)
    with pytest.raises(CatalogError, match="build it again"):
        load_catalog(path)


def test_verify_finds_a_foreign_version_and_a_small_vocabulary(tmp_path: Path) -> None:
    catalog, path = example(), tmp_path / "c.xgr"
    write_file(path, Header("0" * 32, 50, catalog.templates, ()), catalog.arrays)
    with pytest.raises(CatalogError, match="does not have the hash"):
        verify_file(path)
    write_file(path, Header(catalog.version, 3, catalog.templates, ()), catalog.arrays)
    with pytest.raises(CatalogError, match="the vocabulary has 3"):
        verify_file(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be written"):
        example().save(tmp_path / "none" / "c.xgr")
