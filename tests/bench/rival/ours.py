"""Ours: `xgr serve` with its default settings, constrained to the catalog, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from caller import Caller
from speak import Beams, Prompts, talk, versions

from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment


@dataclass
class Ours:
    """`overhead`: seconds of each request of the last question, without those in the model's forwards."""

    http: Caller
    overhead: list[float] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        return {"versions": versions("xgr-runtime", "torch", "transformers"), "cannot": []}

    def ask(self, prompts: Prompts, width: int, at_a_time: int) -> list[Beams]:
        self.overhead.clear()
        with ThreadPoolExecutor(at_a_time) as callers:
            return list(callers.map(lambda prompt: self._ask(prompt, width), prompts))

    def _ask(self, prompt: list[int], width: int) -> Beams:
        started = time.perf_counter()
        body = {"input_ids": prompt, "sampling_params": {"beam_width": width}}
        meta = self.http.post("/generate", body)["meta_info"]
        took = time.perf_counter() - started
        self.overhead.append(took - meta["timing"]["prefill"] - meta["timing"]["forward"])
        return [
            (beam["output_ids"], beam["meta_info"]["cumulative_logprob"]) for beam in meta["beam_results"]
        ]


@contextmanager
def start(settings: dict[str, Any]) -> Iterator[Ours]:
    config = ServeConfig(
        model_path=settings["model"],
        catalog=settings["catalog"],
        model_backend=settings["model_backend"],
        dtype="float32",
        threads=settings["our_threads"],
        port=0,
        log_level="WARNING",
    )
    with Deployment(config) as deployment:
        yield Ours(Caller(deployment.url))


if __name__ == "__main__":
    talk(start)
