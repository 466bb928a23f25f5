"""Merges a LoRA adapter into the weights that it was trained on: W + scaling * B A, all in float32.

Rank by rank and number by number, without a library for products: two machines get the same bits, so that
workers on them know that they run one model. Each weight is rounded once, to the type that is run, where
merging in a library that keeps 16 bits rounds twice.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xgr_runtime.checkpoint.adapter import Adapter
from xgr_runtime.checkpoint.config import merge_by_hand, read_plain_config
from xgr_runtime.checkpoint.names import ADAPTER, SINGLE
from xgr_runtime.checkpoint.tensors import (
    WORDS,
    Float32,
    NewTensor,
    Tensors,
    computed,
    copied,
    open_tensors,
    write_tensors,
)
from xgr_runtime.checkpoint.weights import EMBEDDING, HEAD, listed_files
from xgr_runtime.errors import ModelError

VERSION = "1"  # of this arithmetic: what an earlier one has merged is merged anew
_BLOCK = 1 << 16  # numbers that stay in a processor's cache
_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.(?P<name>(?!weight$|bias$)\w+))?"
    r"(?:\.(?P<leaf>weight|bias))?"
)
_TRAINED = re.compile(
    r"(?P<module>.+)\.modules_to_save(?:\.(?P<name>(?!weight$|bias$)\w+))?\.(?P<leaf>weight|bias)"
)
_ROWS = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.\w+)?")


@dataclass
class _Change:
    """What an adapter does to one weight or bias of the base."""

    a: str = ""  # names of tensors in the adapter's file: two matrices whose product is added
    b: str = ""
    embedding: bool = False  # whether that is [rows of the vocabulary, hidden]
    whole: str = ""  # what takes its place
    rows: str = ""  # of the vocabulary, which take the places of some
    plus: str = ""  # a bias beside the second matrix


@dataclass
class _Read:
    """An adapter's tensors by what they change."""

    tensors: Tensors
    changes: dict[str, _Change] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)  # of weights that may or may not have been trained
    names: set[str] = field(default_factory=set)  # of adapters

    def of(self, name: str) -> _Change:
        return self.changes.setdefault(name, _Change())


@dataclass(frozen=True)
class Merger:
    """An adapter read and held against its base: nothing of a weight but its shape was looked at yet."""

    adapter: Adapter
    base: Mapping[str, tuple[Tensors, str]]  # where each weight of the merged checkpoint begins
    changes: Mapping[str, _Change]
    tensors: Tensors  # of the adapter
    config: dict[str, Any]  # of the merged checkpoint

    def write(self, folder: Path, dtype: str) -> None:
        """Weights into `folder`; those that change are in `dtype`. Raises OSError, ModelError."""
        parts = {name: self._part(name, WORDS[dtype]) for name in self.base}
        with (folder / SINGLE).open("wb") as stream:
            write_tensors(stream, parts)
            stream.flush()
            os.fsync(stream.fileno())

    def config_in(self, dtype: str = "") -> bytes:
        """The merged checkpoint's config.json, as in `dtype`."""
        config = dict(self.config)
        if dtype:
            config["torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"] = dtype
        return json.dumps(config, indent=2, sort_keys=True).encode()

    def size(self, dtype: str) -> int:
        """Bytes of the weights."""
        return sum(self._part(name, WORDS[dtype]).size for name in self.base)

    def _part(self, name: str, dtype: str) -> NewTensor:
        file, source = self.base[name]
        change = self.changes.get(name)
        if change is None:
            return copied(file, source)
        begin, begin_name = (self.tensors, change.whole) if change.whole else (file, source)
        if not (change.a or change.rows or change.plus):
            return copied(begin, begin_name, dtype)
        shape = begin[begin_name].shape
        return computed(shape, dtype, lambda: self._blocks(begin.numbers(begin_name), change, name))

    def _blocks(self, weight: Float32, change: _Change, name: str) -> Iterator[Float32]:
        """The merged weight, some rows at a time."""
        numbers = self.tensors.numbers
        if change.rows:
            weight[self._indices(name)] = numbers(change.rows)
        if change.plus:
            weight = weight + numbers(change.plus) * np.float32(self._scaling(change.plus, name))
        if not change.a:
            yield weight
            return
        left, right = numbers(change.b), numbers(change.a)  # [out, r], [r, in]
        if change.embedding:
            left, right = right.T.copy(), left.T.copy()
        yield from _added(weight, left, right, np.float32(self._scaling(change.a, name)))

    def _scaling(self, tensor: str, name: str) -> float:
        """What products are multiplied by, for this module."""
        settings, module = self.adapter.settings, name.rpartition(".")[0]
        rank = _pattern(settings.get("rank_pattern"), module, settings.get("r"))
        alpha = _pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha"))
        return float(alpha) / (float(rank) ** 0.5 if settings.get("use_rslora") else float(rank))

    def _indices(self, name: str) -> list[int]:
        return _trained_rows(self.adapter.settings, name)


def read_merger(adapter: Adapter) -> Merger:
    """Raises ModelError for an adapter that is damaged, or not one of this base."""
    read = _read(adapter)
    base = {
        name: (tensors, name)
        for tensors in map(open_tensors, listed_files(adapter.base, tell=False))
        for name in tensors
    }
    config = read_plain_config(adapter.base)
    _fit_heads(adapter, read, base, config)
    _check_all_there(adapter, read, base)
    for name, change in read.changes.items():
        _check(adapter, read.tensors, name, change, base)
    merger = Merger(adapter, base, read.changes, read.tensors, config)
    _fit_rows(merger)
    return merger


def _read(adapter: Adapter) -> _Read:
    """Every tensor of the adapter's file has its place. Raises ModelError."""
    tensors = open_tensors(adapter.folder / ADAPTER)
    read = _Read(tensors)
    for full in tensors:
        name = full.removeprefix(_PREFIX)
        if found := _LORA.fullmatch(name):
            _place(read, found, full)
        elif found := _TRAINED.fullmatch(name):
            read.of(f"{found['module']}.{found['leaf']}").whole = full
            read.names.add(found["name"] or "default")
        elif found := _ROWS.fullmatch(name):
            read.of(f"{found['module']}.weight").rows = full
        elif ".original_module." not in name:
            read.copies[name.replace(".base_layer.", ".")] = full
    for name, full in read.copies.items():
        change = read.of(name)
        change.whole = change.whole or full  # beside what was trained, a copy is what it was before
    if len(read.names) > 1:
        _refuse(adapter, f"it holds several adapters ({', '.join(sorted(read.names))})")
    return read


def _place(read: _Read, found: re.Match[str], full: str) -> None:
    """A matrix of LoRA, or the bias beside one."""
    read.names.add(found["name"] or "default")
    change = read.of(f"{found['module']}.{'bias' if found['leaf'] == 'bias' else 'weight'}")
    if found["leaf"] == "bias":
        change.plus = full
    elif found["part"].endswith("A"):
        change.a = full
    else:
        change.b = full
    change.embedding = "embedding" in found["part"]


def _fit_heads(
    adapter: Adapter, read: _Read, base: dict[str, tuple[Tensors, str]], config: dict[str, Any]
) -> None:
    """Embedding and head of a base that has one for both: they part where training has parted them."""
    embedding = next((name for name in base if name.endswith(EMBEDDING)), None)
    head = next((name for name in {*base, *read.changes} if name.endswith(HEAD)), HEAD)
    if embedding is None or head in base:
        return
    found = [name for name in (embedding, head) if name in read.changes]
    if not any(_is_trained(adapter, read, name) for name in found):
        read.changes.pop(head, None)  # one copy of a weight that they share, under two names
        return
    rows_alone = found == [embedding] and read.changes[embedding].rows and not read.changes[embedding].a
    if adapter.settings.get("ensure_weight_tying") or rows_alone:
        if head in found and not _are_alike(read, embedding, head):
            _refuse(adapter, f"it changes {head}, which the base shares with {embedding}")
        read.changes.pop(head, None)
        return
    base[head] = base[embedding]
    config["tie_word_embeddings"] = False


def _is_trained(adapter: Adapter, read: _Read, name: str) -> bool:
    """Whether this weight was trained, and not merely saved because there are new tokens."""
    change = read.changes[name]
    if change.a or change.rows or change.plus or change.whole not in read.copies.values():
        return True
    saved = adapter.settings.get("modules_to_save") or []
    return any(f".{name}".endswith(f".{module}.weight") for module in saved)


def _are_alike(read: _Read, *names: str) -> bool:
    """Whether two weights change alike."""
    one, other = (read.changes[name] for name in names)
    if (bool(one.a), one.embedding) != (bool(other.a), other.embedding):
        return False
    pairs = [(one.whole, other.whole), (one.a, other.a), (one.b, other.b), (one.rows, other.rows)]
    return all(
        bool(first) == bool(second)
        and (not first or np.array_equal(read.tensors.content(first), read.tensors.content(second)))
        for first, second in pairs
    )


def _check_all_there(adapter: Adapter, read: _Read, base: Mapping[str, tuple[Tensors, str]]) -> None:
    """Every layer that the settings name by the end of its name has its matrices. Raises ModelError."""
    settings = adapter.settings
    targets = settings.get("target_modules")
    limited = ("exclude_modules", "layers_to_transform", "layers_pattern")
    if not isinstance(targets, list) or any(settings.get(name) not in (None, [], "") for name in limited):
        return
    ends = tuple(f".{target}.weight" for target in targets)
    for name in base:
        if f".{name}".endswith(ends) and not read.changes.get(name, _Change()).a:
            _refuse(adapter, f"{ADAPTER} lacks the matrices of {name}, which its settings name")


def _check(
    adapter: Adapter,
    tensors: Tensors,
    name: str,
    change: _Change,
    base: Mapping[str, tuple[Tensors, str]],
) -> None:
    """Whether the change fits the weight. Raises ModelError."""
    if name not in base:
        _refuse(adapter, f"{name} is in its file, and {adapter.base} has no such weight")
    file, source = base[name]
    shape = tensors[change.whole].shape if change.whole else file[source].shape
    if bool(change.a) != bool(change.b):
        _refuse(adapter, f"{name} has one of two matrices")
    found = file[source].shape
    if len(found) != len(shape) or (found[1:] != shape[1:]) or (found != shape and not _is_end(name)):
        _refuse(adapter, f"{name} has the shape {list(shape)}, in {adapter.base} it is {list(found)}")
    if change.a:
        a, b = tensors[change.a].shape, tensors[change.b].shape
        product = (a[-1], b[0]) if change.embedding else (b[0], a[-1])
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or product != shape:
            _refuse(adapter, f"its matrices of {name}, {list(a)} and {list(b)}, do not make {list(shape)}")
    if change.rows:
        indices = _trained_rows(adapter.settings, name)
        rows = tensors[change.rows].shape
        if rows != (len(indices), *shape[1:]) or any(not 0 <= index < shape[0] for index in indices):
            _refuse(adapter, f"its rows of {name} are not those of trainable_token_indices")
    for part in filter(None, (change.a, change.b, change.whole, change.rows, change.plus)):
        if not np.isfinite(tensors.numbers(part)).all():
            _refuse(adapter, f"{part} holds values that are no numbers")


def _fit_rows(merger: Merger) -> None:
    """Embedding and head have as many rows, which config.json says. Raises ModelError."""
    rows = {}
    for name, (file, source) in merger.base.items():
        if _is_end(name):
            whole = merger.changes.get(name, _Change()).whole
            rows[name] = (merger.tensors[whole] if whole else file[source]).shape[0]
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in rows.items())
        _refuse(merger.adapter, f"embedding and head would have other numbers of rows: {found}")
    if rows:
        merger.config["vocab_size"] = next(iter(rows.values()))


def _is_end(name: str) -> bool:
    return name.endswith((EMBEDDING, HEAD))


def _pattern(patterns: Any, module: str, otherwise: Any) -> Any:
    """What is said of modules whose name ends so, or as a regular expression says."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _trained_rows(settings: dict[str, Any], name: str) -> list[int]:
    found = settings.get("trainable_token_indices")
    if isinstance(found, dict):
        module = name.rpartition(".")[0]
        found = next((rows for key, rows in found.items() if f".{module}".endswith(f".{key}")), [])
    return list(map(int, found or []))


def _added(weight: Float32, left: Float32, right: Float32, scaling: np.float32) -> Iterator[Float32]:
    """weight [R, C] + scaling * left [R, r] right [r, C], some rows at a time."""
    rows = max(1, _BLOCK // max(1, weight.shape[1]))

    def block(start: int) -> Float32:
        part = left[start : start + rows]
        total = np.zeros((part.shape[0], weight.shape[1]), np.float32)
        product = np.empty_like(total)
        for rank in range(right.shape[0]):
            np.multiply(part[:, rank : rank + 1], right[rank], out=product)
            total += product
        total *= scaling
        total += weight[start : start + rows]
        return total

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        yield from threads.map(block, range(0, weight.shape[0], rows))


def _refuse(adapter: Adapter, reason: str) -> None:
    raise ModelError(
        f"{adapter.folder}: the adapter is not merged here, {reason}. {merge_by_hand(adapter.folder)}"
    )
