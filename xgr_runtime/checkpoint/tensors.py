"""Safetensors files without torch: what is in them, as float32 arrays, and how one is written.

numpy has no bfloat16; its bits are the upper half of a float32.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from xgr_runtime.errors import ModelError

Float32: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes
WORDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_AT_ONCE = 1 << 22  # numbers that are converted together


@dataclass(frozen=True)
class Saved:
    """A tensor of a file: its type in the file's words, its shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Tensors(Mapping[str, Saved]):
    """The tensors of one file, by name. Nothing but the header is read until a content is asked for."""

    def __init__(self, path: Path, header: dict[str, Saved], start: int) -> None:
        self.path = path
        self._header = header
        self._start = start

    def __getitem__(self, name: str) -> Saved:
        return self._header[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    def content(self, name: str) -> Bytes:
        """The bytes of a tensor as they are in the file, mapped."""
        saved = self._header[name]
        if saved.begin == saved.end:
            return np.empty(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r", self._start + saved.begin, (saved.end - saved.begin,))

    def numbers(self, name: str) -> Float32:
        """A floating-point tensor in float32. Raises ModelError for another."""
        saved, content = self._header[name], self.content(name)
        if saved.dtype not in FLOATS:
            raise ModelError(
                f"{self.path}: {name} is saved as {saved.dtype}, a floating-point type was expected"
            )
        return to_float32(content, saved.dtype).reshape(saved.shape)


def open_tensors(path: Path) -> Tensors:
    """The tensors of a file. Raises ModelError for one that is damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {
            name: Saved(value["dtype"], tuple(value["shape"]), *value["data_offsets"])
            for name, value in header.items()
        }
        end = max((saved.end for saved in found.values()), default=0)
        if 8 + length + end > path.stat().st_size:
            raise ValueError("it ends too early")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: damaged or incomplete ({error}): download it again") from error
    return Tensors(path, found, 8 + length)


def to_float32(content: Bytes, dtype: str) -> Float32:
    """Bytes of numbers of that type as float32, flat."""
    if dtype == "BF16":
        return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kind = {"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]
    return content.view(kind).astype(np.float32)


def from_float32(numbers: Float32, dtype: str) -> bytes:
    """The nearest numbers of that type, ties to even, as bytes."""
    flat = np.ascontiguousarray(numbers, np.float32).reshape(-1)
    if dtype == "F32":
        return flat.tobytes()
    if dtype == "F16":
        return flat.astype(np.float16).tobytes()
    bits = flat.view(np.uint32)
    half = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return ((bits + half) >> 16).astype(np.uint16).tobytes()


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: its type, its shape, and who writes all of its bytes to a stream."""

    dtype: str
    shape: tuple[int, ...]
    size: int  # bytes
    write: Callable[[BinaryIO], None]


def write_tensors(stream: BinaryIO, parts: Mapping[str, NewTensor]) -> None:
    """A file in the form of safetensors, parts one after the other. Raises OSError, and as the parts do."""
    # Wide types first, so that every tensor begins where its type may.
    names = sorted(parts, key=lambda name: (-FLOATS.get(parts[name].dtype, 8), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        part = parts[name]
        ends = [offset, offset + part.size]
        header[name] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": ends}
        offset += part.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        before = stream.tell()
        parts[name].write(stream)
        assert stream.tell() - before == parts[name].size, name


def copied(tensors: Tensors, name: str, dtype: str = "") -> NewTensor:
    """A tensor as it is saved, or in `dtype`."""
    saved = tensors[name]
    if not dtype or dtype == saved.dtype or saved.dtype not in FLOATS:
        return NewTensor(
            saved.dtype, saved.shape, saved.end - saved.begin, lambda s: _copy(tensors.content(name), s)
        )
    count = (saved.end - saved.begin) // FLOATS[saved.dtype]
    return NewTensor(
        dtype,
        saved.shape,
        count * FLOATS[dtype],
        lambda stream: _convert(tensors.content(name), saved.dtype, dtype, stream),
    )


def computed(shape: Sequence[int], dtype: str, blocks: Callable[[], Iterator[Float32]]) -> NewTensor:
    """A tensor whose numbers come block by block, in their order."""

    def write(stream: BinaryIO) -> None:
        for block in blocks():
            stream.write(from_float32(block, dtype))

    return NewTensor(dtype, tuple(shape), int(np.prod(shape)) * FLOATS[dtype], write)


def _copy(content: Bytes, stream: BinaryIO) -> None:
    for start in range(0, len(content), 4 * _AT_ONCE):
        stream.write(content[start : start + 4 * _AT_ONCE].tobytes())


def _convert(content: Bytes, found: str, dtype: str, stream: BinaryIO) -> None:
    step = _AT_ONCE * FLOATS[found]
    for start in range(0, len(content), step):
        stream.write(from_float32(to_float32(content[start : start + step], found), dtype))
