"""Numbers as messages carry them, and the names of a prompt's blocks."""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import xxhash

from xgr_runtime.kv.block_hashes import Digest, block_hashes
from xgr_runtime.wire.arrays import float32s, int32s, pack, uint32s

DIGESTS: dict[str, Callable[[], Digest]] = {
    "xxh3": xxhash.xxh3_64,
    "keyed": lambda: blake2b(digest_size=16, key=b"k"),
}


@pytest.mark.parametrize(
    ("read", "values"),
    [(int32s, [-1, 2**31 - 1]), (uint32s, [0, 2**32 - 1]), (float32s, [-0.5, float("inf")]), (int32s, [])],
    ids=["int32", "uint32", "float32", "empty"],
)
def test_what_is_packed_is_read(read: Any, values: list[Any]) -> None:
    array = np.array(values, read(b"").dtype)
    assert read(pack(array)).tolist() == values
    assert pack(array[::-1]) == pack(np.ascontiguousarray(array[::-1]))


def test_bytes_are_little_endian() -> None:
    assert pack(np.array([1], np.int32)) == pack(np.array([1], ">i4").astype(np.int32)) == b"\1\0\0\0"


def test_bytes_that_end_within_a_number_and_numbers_of_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of element size"):
        int32s(b"\0" * 6)
    with pytest.raises(AssertionError, match="int64"):
        pack(np.array([1]))


@pytest.mark.parametrize("kind", DIGESTS)
def test_blocks_are_named_by_all_tokens_up_to_their_end(kind: str) -> None:
    def names(tokens: list[int]) -> list[bytes]:
        return block_hashes(pack(np.array(tokens, np.int32)), 4, DIGESTS[kind]())

    whole = names(list(range(14)))
    assert len(whole) == len(set(whole)) == 3  # the two tokens behind are no block
    assert names(list(range(9))) == whole[:2]
    changed = names([0, 1, 2, 3, 4, 9, 6, 7, 8, 9, 10, 11])
    assert changed[0] == whole[0] and not set(changed[1:]) & set(whole)
    assert names([0, 1, 2]) == []
