"""What is asked of a deployment that is planned: how often, with which prompts and widths, and by whom."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary
from xgr_runtime.scheduling.cost_model import beams_by_level

MOST_BYTES = 1 << 28  # of a recorded log: some millions of lines
MOST_TOKENS = 1 << 17

T = TypeVar("T")

Rate = Annotated[float, Meta(gt=0, le=1e7)]
Tokens = Annotated[int, Meta(ge=1, le=MOST_TOKENS)]
Width = Annotated[int, Meta(ge=1, le=1 << 16)]
Share = Annotated[float, Meta(ge=0, le=1)]
Weight = Annotated[float, Meta(gt=0, le=1e9)]


class PlannedTraffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in a traffic file. Lengths and widths: one number, or numbers and their shares.

    Requests per second come at random (`burstiness` 1), in bursts (less) or steadily (more). A share of them
    are of users who were here before: their prompt begins as the one before did, and is `new_tokens` longer.
    """

    rate: Rate
    slo_ms: Annotated[float, Meta(gt=0, le=3.6e6)]  # that p99 has to keep
    prompt_tokens: Tokens | dict[Tokens, Weight] = 512
    beam_width: Width | dict[Width, Weight] = 50
    returning: Share = 0.0
    new_tokens: Tokens = 9
    users: Annotated[int, Meta(ge=1, le=1 << 20)] = 1000  # that may return
    answered: Share = 0.99  # of the requests, at least
    timeout_ms: Annotated[float, Meta(gt=0, le=3.6e6)] = 30_000
    burstiness: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    levels: Annotated[int, Meta(ge=1, le=64)] = 3  # tokens of an item
    codebook: Annotated[int, Meta(ge=1, le=1 << 20)] = 256  # tokens that a level has
    items: Annotated[int, Meta(ge=1, le=1 << 40)] = 1_000_000

    def __post_init__(self) -> None:
        if self.prompt_tokens == {} or self.beam_width == {}:
            raise ValueError("prompt_tokens and beam_width need a number, or some with their shares")

    def beams(self, width: int) -> list[int]:
        """That each level of a search starts from, as a trie without gaps would have them."""
        nodes = [min(self.codebook ** (level + 1), self.items) for level in range(self.levels)]
        return beams_by_level(width, nodes, self.items)[:-1]


class Recorded(msgspec.Struct, frozen=True):
    """A line of a recorded log; other fields are ignored. One `user`'s prompts begin alike."""

    at: Annotated[float, Meta(ge=0, le=1e12)]  # seconds, from any beginning
    prompt_tokens: Tokens
    beam_width: Width
    user: str | int | None = None


class PlannedRequest(NamedTuple):
    """One request of a simulation."""

    at: float  # seconds, at a rate of one per second
    tokens: NDArray[np.int32]  # [L]
    width: int


def read_traffic(path: Path) -> PlannedTraffic:
    """Raises ConfigError."""
    return read_toml(path, PlannedTraffic)


def read_toml(path: Path, kind: type[T]) -> T:
    """Raises ConfigError, which names the file and the field."""
    try:
        with open_ordinary(path) as file:
            content = file.read(MOST_BYTES)
        return msgspec.convert(tomllib.loads(content.decode()), kind, str_keys=True, strict=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None


def drawn(traffic: PlannedTraffic, count: int, seed: int) -> list[PlannedRequest]:
    """So many requests, of times as if one came per second: at another rate the same ones come faster."""
    draw = np.random.default_rng([seed, 1])
    gaps = draw.gamma(traffic.burstiness, 1 / traffic.burstiness, size=count)
    lengths = _draws(draw, traffic.prompt_tokens, count)
    widths = _draws(draw, traffic.beam_width, count)
    back = draw.random(count) < traffic.returning
    longest = int(max(_shares(traffic.prompt_tokens)[0]))
    users = _Users(draw, traffic, longest)
    prompts = [users.prompt(int(n), bool(b)) for n, b in zip(lengths, back, strict=True)]
    times = np.cumsum(gaps)
    return [PlannedRequest(*r) for r in zip(times.tolist(), prompts, widths.tolist(), strict=True)]


def read_recorded(path: Path) -> tuple[list[PlannedRequest], float]:
    """A log's requests, times as if one came per second; and how many did. Raises ConfigError."""
    lines = sorted(_recorded(path), key=lambda line: line.at)
    span = lines[-1].at - lines[0].at if len(lines) > 1 else 0.0
    if span <= 0:
        raise ConfigError(f"{path} has no two requests at different times: record more of them")
    rate = (len(lines) - 1) / span
    seen: dict[str | int, NDArray[np.int32]] = {}
    found = []
    for number, line in enumerate(lines):
        tokens = _stream(np.random.default_rng([number, 3]), line.prompt_tokens)
        if line.user is not None:
            whole = seen.get(line.user, tokens)
            if len(whole) < line.prompt_tokens:
                whole = np.concatenate([whole, tokens[len(whole) :]])
            seen[line.user] = whole
            tokens = whole[: line.prompt_tokens]
        found.append(PlannedRequest((line.at - lines[0].at) * rate, tokens, line.beam_width))
    return found, rate


def _recorded(path: Path) -> Iterator[Recorded]:
    try:
        with open_ordinary(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} is no ordinary file: name one") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} is larger than {MOST_BYTES >> 20} MiB: give a part of it")
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line, type=Recorded)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None


class _Users:
    """Who was here before, and with which prompt."""

    def __init__(self, draw: np.random.Generator, traffic: PlannedTraffic, longest: int) -> None:
        self._draw, self._traffic, self._longest = draw, traffic, longest
        self._known: list[NDArray[np.int32]] = []

    def prompt(self, length: int, returns: bool) -> NDArray[np.int32]:
        """Of a new user, or of one who returns; whose prompt would get too long begins anew."""
        if returns and self._known:
            place = int(self._draw.integers(len(self._known)))
            before, more = self._known[place], self._traffic.new_tokens
            if len(before) + more <= self._longest:
                self._known[place] = np.concatenate([before, _stream(self._draw, more)])
                return self._known[place]
            self._known[place] = _stream(self._draw, length)
            return self._known[place]
        tokens = _stream(self._draw, length)
        if len(self._known) < self._traffic.users:
            self._known.append(tokens)
        else:
            self._known[int(self._draw.integers(len(self._known)))] = tokens
        return tokens


def _stream(draw: np.random.Generator, count: int) -> NDArray[np.int32]:
    return draw.integers(0, 1 << 30, count, dtype=np.int32)


def _shares(values: int | Mapping[int, float]) -> tuple[Sequence[int], Sequence[float]]:
    if isinstance(values, int):
        return [values], [1.0]
    total = sum(values.values())
    return list(values), [weight / total for weight in values.values()]


def _draws(draw: np.random.Generator, values: int | Mapping[int, float], count: int) -> NDArray[np.int64]:
    numbers, shares = _shares(values)
    return draw.choice(np.array(numbers, np.int64), count, p=shares)
