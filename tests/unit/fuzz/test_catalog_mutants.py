"""Damaged or forged files: each is taken as it is or refused by name, within bounds, and nothing runs."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_catalogs import build_from_arrays
from tokenizers import Tokenizer, models

from xgr_runtime.catalog import Catalog, PromptTemplate, load_catalog
from xgr_runtime.catalog.file import FORMAT, MAGIC, PREAMBLE
from xgr_runtime.errors import CatalogError, ModelError

ROOM = 2 << 30  # bytes of address space beyond what the tests have: a claim of 2^40 entries does not fit in
NUMBERS = (0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
DIGITS = (*map(str, NUMBERS), "-1", "1e400", "NaN", "9" * 5000)
FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def use(path: Path, model: Path | None = None) -> None:
    """What a server does with a catalog. Anything but an error that names a file fails the test."""
    try:
        catalog = load_catalog(path, model)
        assert catalog.vocab_size <= 2**31
        prompt, _ = catalog.prompt_tokens([0], 2**20)
        assert all(0 <= token < catalog.vocab_size for token in prompt)
        assert all(catalog.items_of_leaves(np.arange(catalog.leaves)))
        assert json.dumps([catalog.attributes(catalog.item_id(row)) for row in range(catalog.items)])
    except (CatalogError, ModelError) as error:
        assert str(path.parent) in str(error) and len(str(error)) < 4000


@st.composite
def mutants(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some of them changed, repeated, added, or the end cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "number", "digits", "cut", "insert", "repeat"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "number":
                width = draw(st.sampled_from([4, 8]))
                number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * width)
                data[at : at + width] = number.to_bytes(width, draw(st.sampled_from(["little", "big"])))
            case "digits":
                data[at : at + 1] = draw(st.sampled_from(DIGITS)).encode()
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=9) | st.sampled_from([b"[" * 5000, b'{"a":' * 5000]))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


def example() -> Catalog:
    return build_from_arrays(
        [f"item-{row}" for row in range(30)],
        np.arange(90).reshape(-1, 3) % 7,
        titles=[f"T{row}é" for row in range(30)],
        attributes=[{"stock": row} for row in range(30)],
        template=PromptTemplate((1, 2), (3,), (4,), 9),
        vocab_size=50,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("built") / "c.xgr"
    example().save(path)
    return path.read_bytes()


@FUZZ
@given(data=st.data())
def test_bytes_of_a_built_file(data: st.DataObject, built: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.xgr"
    path.write_bytes(data.draw(mutants(built)))
    use(path)


def sealed(header: bytes, rest: bytes) -> bytes:
    """A file whose sizes and header checksum are right, whatever else is wrong."""
    size = PREAMBLE.size + len(header) + len(rest)
    return PREAMBLE.pack(MAGIC, FORMAT, len(header), xxhash.xxh3_64_intdigest(header), size) + header + rest


@FUZZ
@given(data=st.data())
def test_bytes_of_a_header_whose_checksum_is_right(data: st.DataObject, built: bytes, tmp_path: Path) -> None:
    length = PREAMBLE.unpack(built[: PREAMBLE.size])[2]
    end = PREAMBLE.size + length
    path = tmp_path / "c.xgr"
    header = data.draw(mutants(built[PREAMBLE.size : end]))[:length].ljust(length, b"\xc0")
    path.write_bytes(sealed(header, built[end:]))
    use(path)


FOREIGN: tuple[Any, ...] = (
    *(*NUMBERS, -1, -(2**63), None, True, 1.5),
    *("|O", "<f8", ">i4", "<i8", "<u8", "|u1", "<i4,<i4", "sids", ""),
    *([], [2**40, 2**40], [2**63, 0], [0, 2**62], {"a": 1}),
)


@FUZZ
@given(data=st.data())
def test_values_of_a_header_whose_checksum_is_right(
    data: st.DataObject, built: bytes, tmp_path: Path
) -> None:
    """One or two values of the header, anywhere in it, are of another kind or size."""
    end = PREAMBLE.size + PREAMBLE.unpack(built[: PREAMBLE.size])[2]
    header = msgspec.msgpack.decode(built[PREAMBLE.size : end])
    for _ in range(data.draw(st.integers(1, 2))):
        replace_one(data, header)
    packed = msgspec.msgpack.encode(header)
    path = tmp_path / "c.xgr"
    path.write_bytes(sealed(packed, b"\0" * (end - PREAMBLE.size - len(packed)) + built[end:]))
    use(path)


def replace_one(data: st.DataObject, node: Any) -> None:
    """Somewhere below `node`."""
    key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 3)):
        replace_one(data, node[key])
    else:
        node[key] = copy.deepcopy(data.draw(st.sampled_from(FOREIGN)))


ROWS: list[dict[str, Any]] = [
    {"item": str(n), "sid": [n % 3, n, 5], "title": f"T{n}", "popularity": n / 2, "attributes": {"a": n}}
    for n in range(12)
]


def index_json(path: Path) -> None:
    path.write_text(json.dumps({row["item"]: row["sid"] for row in ROWS}))


def jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def parquet(compression: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pq.write_table(pa.Table.from_pylist(ROWS), path, compression=compression)

    return write


SOURCES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "index": ("index.json", index_json),
    "jsonl": ("c.jsonl", jsonl),
    "parquet-plain": ("c.parquet", parquet("none")),
    "parquet-zstd": ("c.parquet", parquet("zstd")),
}


@pytest.mark.parametrize("name", SOURCES)
@FUZZ
@given(data=st.data())
def test_bytes_of_a_source(name: str, data: st.DataObject, tmp_path: Path) -> None:
    file, write = SOURCES[name]
    path = tmp_path / file
    write(path)
    path.write_bytes(data.draw(mutants(path.read_bytes())))
    use(path)


def checkpoint(folder: Path) -> None:
    words = {word: number for number, word in enumerate(["<pad>", "<bos>", "<a>", "<b>"])}
    Tokenizer(models.WordLevel(words, unk_token="<pad>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<bos>"}')
    (folder / "config.json").write_text('{"vocab_size": 4, "bos_token_id": 0}')
    (folder / "catalog.json").write_text('{"prefix": ["<bos>"], "suffix": [2], "max_history_items": 4}')
    (folder / "index.json").write_text('{"1": ["<a>", "<b>"], "2": [2, 2]}')


@pytest.mark.parametrize("name", ["catalog.json", "config.json", "tokenizer_config.json", "tokenizer.json"])
@FUZZ
@given(data=st.data())
def test_bytes_of_what_lies_beside(name: str, data: st.DataObject, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    path = tmp_path / name
    path.write_bytes(data.draw(mutants(path.read_bytes())))
    use(tmp_path / "index.json", tmp_path)


CLAIMS: dict[str, int] = {"many-rows": 2**40, "most-rows": 2**62, "fewer-than-none": -5}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_parquet_file_that_claims_many_rows(claim: str, tmp_path: Path) -> None:
    """Each number of the footer that says how many rows there are says another."""
    path = tmp_path / "c.parquet"
    parquet("none")(path)
    whole = path.read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    footer, rows = whole[start:-8], varint(len(ROWS))
    places = [at for at in range(len(footer)) if footer[at : at + 1] == rows]
    assert len(places) >= 3
    for at in places:
        forged = footer[:at] + varint(CLAIMS[claim]) + footer[at + 1 :]
        path.write_bytes(whole[:start] + forged + len(forged).to_bytes(4, "little") + b"PAR1")
        use(path)


def varint(number: int) -> bytes:
    """As thrift writes a 64-bit integer: zigzag, seven bits a byte, lowest first."""
    left, parts = (number << 1) ^ (number >> 63), []
    while left > 127:
        parts.append(left & 127 | 128)
        left >>= 7
    return bytes([*parts, left])


@pytest.mark.parametrize("name", ["c.xgr", "index.json", "c.jsonl", "c.parquet"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CatalogError, match="no ordinary file"):
        load_catalog(tmp_path / name)


@pytest.mark.parametrize("name", ["c.xgr", "index.json", "c.jsonl", "c.parquet"])
def test_nothing_that_is_pickled_runs(name: str, tmp_path: Path) -> None:
    class Spy:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / name
    for text in (pickle.dumps(Spy()), pickle.dumps([Spy()], 0), MAGIC + pickle.dumps(Spy())):
        path.write_bytes(text)
        with pytest.raises(CatalogError):
            load_catalog(path)
    assert list(tmp_path.iterdir()) == [path]
