"""An engine of the decode worker that only pretends to compute."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from decode_worker.phases import TaskPhase
from xgr_runtime.scheduling.cost_model import CostModel


class PlayedEngine:
    """Two layers per launch, something to do between them, and searches on which it breaks.

    With `keeps`, searches stay with it until they are put into `finished`.
    """

    def __init__(self) -> None:
        self.ready, self.busy = True, False
        self.costs = CostModel()
        self.keeps = False
        self.launches: list[list[Any]] = []
        self.prepared: list[Any] = []
        self.finished: list[Any] = []
        self.pool = SimpleNamespace(pages=4, k=torch.empty(0))
        self.row_budget = 16
        self.counters: dict[str, float] = {}
        self.tail_tokens = 0
        self.between: Callable[[], None] = lambda: None
        self.broken: list[Any] = []

    def place(self, view: Any, ready: Any) -> bool:
        return True

    def keep(self, views: Any) -> None:
        pass

    def choose(self, waiting: list[Any]) -> list[Any]:
        return waiting

    def prepare(self, searches: list[Any]) -> None:
        self.prepared = list(searches)

    def launch(self, searches: list[Any], on_layer: Callable[[int], None] = lambda layer: None) -> None:
        for layer in range(2):
            self.between()
            on_layer(layer)
        if any(search is bad for search in searches for bad in self.broken):
            raise RuntimeError("a launch that cannot be done")
        self.launches.append(list(searches))
        for search in searches:
            search.phase = TaskPhase.IN_FLIGHT if self.keeps else TaskPhase.SEARCH

    def collect(self) -> list[Any]:
        finished, self.finished = self.finished, []
        for search in finished:
            search.phase = TaskPhase.OVER
        return finished
