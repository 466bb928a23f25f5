"""The lines of a file of requests: checked before anything is asked, and read again as they are needed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import xxhash

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

MOST_LINE = 32 << 20  # bytes

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RESERVED = ("line", "items", "scores", "sids", "catalog_version", "error")


class Line(NamedTuple):
    """One request, and what of its line goes to the output as it is."""

    number: int  # from 1, as editors count
    body: dict[str, msgspec.Raw]
    kept: dict[str, msgspec.Raw]


class Lines(contextlib.AbstractContextManager["Lines"]):
    """Lines of nothing but spaces are passed over."""

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        """Raises ConfigError that names the line."""
        if reserved := [name for name in keep if name in _RESERVED]:
            raise ConfigError(
                f"--keep {reserved[0]}: the output has a field of that name: rename it in the lines"
            )
        self.path = path
        self.keep = frozenset(keep)
        try:
            self._file = open_ordinary(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{path} cannot be read ({reason}): name a file of JSON lines") from None
        try:
            self.total, self.digest = self._look()
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def without(self, done: Collection[int]) -> Iterator[Line]:
        """Those whose number is not in `done`. Raises ConfigError."""
        for number, text in self._texts():
            if number not in done:
                yield self._line(number, text)

    def numbers(self) -> Iterator[int]:
        """Of all lines, in order."""
        for number, _ in self._texts():
            yield number

    def _look(self) -> tuple[int, str]:
        """How many there are, and a digest of all."""
        total, digest = 0, xxhash.xxh3_128()
        for number, text in self._texts():
            self._line(number, text)
            digest.update(b"%d:" % number + text)
            total += 1
        if not total:
            raise ConfigError(f"{self.path} has no line: write a request on each")
        return total, digest.hexdigest()

    def _texts(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        number = 0
        while text := self._file.readline(MOST_LINE + 1):
            number += 1
            if len(text) > MOST_LINE:
                raise ConfigError(f"{self.path} line {number} is longer than {MOST_LINE} bytes")
            if text := text.strip():
                yield number, text

    def _line(self, number: int, text: bytes) -> Line:
        try:
            found = _OBJECT.decode(text)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(
                f"{self.path} line {number} is no JSON object ({error}): write the body of a request"
            ) from None
        kept = {name: found.pop(name) for name in sorted(self.keep & found.keys())}
        return Line(number, found, kept)
