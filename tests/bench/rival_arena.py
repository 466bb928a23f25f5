"""The contest itself: who is asked what and when, and what came of it."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from floor import SIZES, matmul_rate, packed_rate
from rival_process import NotMeasuredError, RivalProcess
from same_beams import same_beams, share_found, share_in_catalog

from xgr_runtime.catalog import Catalog

FEW = 3  # requests that a median needs
IN_A_ROW = 5  # requests before it is the next one's turn
PAUSE = 0.4  # seconds; Intel's OpenMP spins for 0.2 before it sleeps
OURS, HUGGING_FACE, SGLANG = "ours", "Hugging Face", "SGLang"
VLLM, VLLM_HELD = "vLLM", "vLLM, held"


def matrix_rates(sizes: Sequence[int] = SIZES, repeat: int = 9) -> dict[str, float]:
    """FLOP per second in large products, by who computes them."""
    return {
        "torch's products": matmul_rate(torch.float32, sizes, repeat),
        "our layers' products": packed_rate(sizes, repeat),
    }


@dataclass
class Cell:
    """One rival at one width. `why` says what keeps it from being measured, one by one or together."""

    rival: str
    width: int
    seconds: list[float] = field(default_factory=list)  # of single requests
    overheads: list[float] = field(default_factory=list)  # of these, outside of the model's forwards
    per_second: float | None = None  # together
    same_as_ours: int = 0  # of the single requests
    in_catalog: float | None = None  # share of all SIDs found
    of_ours: float | None = None  # share of ours that were found as well
    why: str = ""
    why_not_together: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def line(self) -> str:
        """For who waits."""
        if self.median is None:
            return f"width {self.width}, {self.rival}: not measured: {self.why}"
        together = "not measured" if self.per_second is None else f"{self.per_second:.2f}/s"
        return f"width {self.width}, {self.rival}: {1e3 * self.median:.1f} ms, together {together}"


@dataclass
class Arena:
    """The rivals that are up, and why others are not."""

    args: argparse.Namespace
    catalog: Catalog
    prompts: Iterator[list[int]]
    up: dict[str, RivalProcess] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rates: list[dict[str, float]] = field(default_factory=list)  # of products, after each turn of ours

    def measure(self, width: int) -> list[Cell]:
        """All rivals at one width."""
        cells = {name: Cell(name, width, why=self.absent.get(name, "")) for name in [*self.up, *self.absent]}
        self._warm_up(cells, width)
        self._take_turns(cells, width)
        for name, cell in cells.items():
            if not cell.why:
                self._together(name, cell)
            print(cell.line, file=sys.stderr, flush=True)
        return list(cells.values())

    def _warm_up(self, cells: dict[str, Cell], width: int) -> None:
        """Also tells who cannot do this width at all."""
        for name in self.up:
            for _ in range(self.args.warm_up):
                self._ask(name, cells[name], [next(self.prompts)], 1)

    def _take_turns(self, cells: dict[str, Cell], width: int) -> None:
        """So many prompts in a row to each, until each has answered enough, or has taken its time."""
        found: dict[str, list[Any]] = {name: [] for name in cells}
        pairs: dict[str, list[Any]] = {name: [] for name in cells}
        for first in range(0, self.args.requests, IN_A_ROW):
            prompts = [next(self.prompts) for _ in range(min(IN_A_ROW, self.args.requests - first))]
            ours: list[Any] = []
            for name in self.up:
                beams = self._row(name, cells[name], prompts)
                if name == OURS:
                    ours = beams
                    time.sleep(PAUSE)
                    self.rates.append(matrix_rates((1024,)))
                cells[name].same_as_ours += sum(map(same_beams, ours, beams))
                pairs[name] += zip(ours, beams, strict=False)  # a slow one answers fewer
                found[name] += beams
        for name, cell in cells.items():
            cell.in_catalog = share_in_catalog(self.catalog, found[name])
            cell.of_ours = share_found(pairs[name])

    def _row(self, name: str, cell: Cell, prompts: list[list[int]]) -> list[Any]:
        """The beams of the first prompts, of all if there is time for them."""
        beams = []
        time.sleep(PAUSE)
        for prompt in prompts:
            if len(cell.seconds) >= FEW and sum(cell.seconds) > self.args.seconds:
                break
            answer = self._ask(name, cell, [prompt], 1)
            if answer is None:
                break
            cell.seconds.append(answer["seconds"])
            cell.overheads += answer["overhead"]
            beams += answer["beams"]
        return beams

    def _together(self, name: str, cell: Cell) -> None:
        """As many batches as fit into the time, one at least."""
        at_a_time = self.args.at_a_time
        longest = at_a_time * (cell.median or 0.0)
        if longest > self.args.patience / 2:
            cell.why_not_together = f"a batch of {at_a_time} would take up to {longest:.0f} s: see --patience"
            return
        batches = max(1, min(6, int(self.args.seconds / max(longest, 0.01))))
        prompts = [next(self.prompts) for _ in range(batches * at_a_time)]
        time.sleep(PAUSE)
        answer = self._ask(name, cell, prompts, at_a_time, together=True)
        if answer:
            cell.per_second = len(prompts) / answer["seconds"]

    def _ask(
        self, name: str, cell: Cell, prompts: list[list[int]], at_a_time: int, together: bool = False
    ) -> dict[str, Any] | None:
        """None, and the reason in the cell, when there is no answer."""
        if cell.why:
            return None
        try:
            return self.up[name].ask(prompts, cell.width, at_a_time, self.args.patience)
        except NotMeasuredError as error:
            if together:
                cell.why_not_together = str(error)
            else:
                cell.why = str(error)
            return None
