"""Which cells there are, what each costs by estimate, and how `--part i/n` slices them. Plain Python.

A cell is one thing that is checked or measured. Cells that need the same compiled kernels or the same
checkpoint stand next to each other, so that a slice of neighbours pays for little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PART_SECONDS = 480  # a part must end within
START = 25.0  # of each part: imports, the device, its two rates

SETUP = {
    "fa2": 75.0,  # compilers, once per machine, if nothing is cached
    "fa3": 110.0,
    "rivals": 75.0,  # per-beam decode and cascade
    "triton": 30.0,
    "0.6B": 10.0,  # a checkpoint of random weights, written
    "1.7B": 15.0,
    "4B": 30.0,
}
"""What a part pays once for all of its cells that need it, in seconds."""

COMPILED = ("fa2", "fa3", "rivals", "triton")
"""Needs that a machine keeps from one part to the next."""

MORE = ((64, "bfloat16"), (256, "bfloat16"), (128, "float16"))
"""Head dims and dtypes beside the usual ones, 128 and bfloat16."""

SETUP |= {f"{name} {dim} {dtype}": SETUP[name] for name in ("fa2", "fa3") for dim, dtype in MORE}


@dataclass(frozen=True)
class Cell:
    """One thing to check or measure. `work` is module:function, called with `sizes`."""

    name: str
    work: str
    seconds: float  # by estimate, without its needs
    needs: tuple[str, ...] = ()
    sizes: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Part:
    """Slice `index` of `count`."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Part:
        """From "2/5". Raises ValueError."""
        index, slash, count = text.partition("/")
        if not slash or not index.isdigit() or not count.isdigit() or not 1 <= int(index) <= int(count):
            raise ValueError(f"--part {text}: write i/n with 1 <= i <= n, such as 2/5")
        return Part(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def part_seconds(cells: Sequence[Cell], compiled: bool = False) -> float:
    """What a part of these cells takes by estimate; `compiled` if the machine has all kernels already."""
    needs = {need for cell in cells for need in cell.needs}
    setup = sum(SETUP[need] for need in needs if not (compiled and need.split()[0] in COMPILED))
    return START + setup + sum(cell.seconds for cell in cells)


def slices(cells: Sequence[Cell], limit: float, compiled: bool = False) -> list[list[Cell]]:
    """Neighbours together, as many as `limit` seconds hold; one that is longer stands alone."""
    parts: list[list[Cell]] = []
    for cell in cells:
        if parts and part_seconds([*parts[-1], cell], compiled) <= limit:
            parts[-1].append(cell)
        else:
            parts.append([cell])
    return parts


def cells_of(part: Part, cells: Sequence[Cell], compiled: bool = False) -> list[Cell]:
    """The cells of a part: n slices whose longest is about as short as it can be.

    Raises ValueError if `n` parts cannot each end within `PART_SECONDS`.
    """
    parts = slices(cells, PART_SECONDS, compiled)
    if len(parts) > part.count:
        raise ValueError(f"--part {part}: these cells take {len(parts)} parts of {PART_SECONDS} seconds")
    low, high = 0.0, float(PART_SECONDS)
    while high - low > 1.0:
        middle = (low + high) / 2
        tried = slices(cells, middle, compiled)
        if len(tried) <= part.count:
            parts, high = tried, middle
        else:
            low = middle
    return parts[part.index - 1] if part.index <= len(parts) else []


def parts_needed(cells: Sequence[Cell], compiled: bool = False) -> int:
    """The fewest parts that each end in time."""
    return len(slices(cells, PART_SECONDS, compiled))
