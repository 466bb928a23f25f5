"""Which arrays a catalog has, with their types and shapes: checked before anything of a file is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.attributes import expected_columns
from xgr_runtime.catalog.content import TABLES
from xgr_runtime.catalog.items import bucket_count
from xgr_runtime.catalog.trie import MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def shape_problem(arrays: Mapping[str, NDArray[Any]], tail: int = 0) -> str | None:
    """What is wrong with names, types or lengths of a catalog's arrays; reads a few words of each at most.

    tail: forced levels behind those of SIDs.
    """
    sids = arrays.get("sids")
    if sids is None or sids.ndim != 2 or not len(sids) or not 1 <= sids.shape[1] <= MAX_DEPTH:
        return "there is no SID matrix"
    try:
        expected = _expected(arrays, len(sids), sids.shape[1], tail)
    except ValueError as error:
        return str(error)
    if set(expected) != set(arrays):
        return f"arrays are missing or unknown: {sorted(set(expected) ^ set(arrays))}"
    for name, (dtype, shape) in expected.items():
        if arrays[name].dtype.str != dtype or arrays[name].shape != shape:
            return f"array {name!r} has the wrong type or shape"
    closing = {"item_lo": len(arrays["leaf_of_row"])}
    starts = [name for name in arrays if name.startswith("lo.") or name == "leaf_lo"]
    closing |= {name: len(sids) for name in starts if len(arrays[name])}
    closing |= {f"{name}.offsets": len(arrays[f"{name}.blob"]) for name in TABLES}
    for name, end in closing.items():
        if len(arrays[name]) and (arrays[name][0] != 0 or arrays[name][-1] != end):
            return f"array {name!r} does not span from 0 to {end}"
    return None


def _expected(
    arrays: Mapping[str, NDArray[Any]], leaves: int, depth: int, tail: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every array, from the few lengths that are free. Raises ValueError."""

    def length(name: str) -> int:
        array = arrays.get(name)
        return len(array) if array is not None else 0

    items = length("leaf_of_row")
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "sids": ("<i4", (leaves, depth)),
        "item_lo": ("<i4", (leaves + 1,)),
        "leaf_of_row": ("<i4", (items,)),
        "hashes": ("<u8", (items,)),
        "hash_rows": ("<i4", (items,)),
        "hash_starts": ("<i4", (bucket_count(items),)),
    }
    for name in TABLES:
        optional_empty = name != "ids" and not length(f"{name}.offsets")
        expected[f"{name}.blob"] = ("|u1", (0 if optional_empty else length(f"{name}.blob"),))
        expected[f"{name}.offsets"] = ("<i8", (0 if optional_empty else items + 1,))
    expected["popularity"] = ("<f8", (items if length("popularity") else 0,))
    expected["hidden"] = ("|u1", (-(-items // 8) if length("hidden") else 0,))
    expected |= {f"tail.{level}": ("<i4", (leaves,)) for level in range(tail)}
    if tail:
        expected["leaf_lo"] = ("<i4", (leaves + 1,))
    for level in range(depth):
        nodes = leaves if level == depth - 1 else length(f"tokens.{level}")
        expected[f"tokens.{level}"] = ("<i4", (nodes,))
        expected[f"lo.{level}"] = ("<i4", (0 if level == depth - 1 else nodes + 1,))
    return expected | expected_columns(arrays, items)
