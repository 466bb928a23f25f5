"""SGLang's own beam search (`sampling_params.beam_width`): its stock server, over HTTP, on all cores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caller import Caller
from speak import Beams, Prompts, talk, versions

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from stock_server import StockServer

# No prompt comes twice, and the cache would only hold memory.
NATIVE = {"max-running-requests": "4096", "max-total-tokens": "65536", "disable-radix-cache": ""}


@dataclass
class SGLang:
    http: Caller
    depth: int

    def facts(self) -> dict[str, Any]:
        cannot = ["hold its beams to a catalog"]
        return {"versions": versions("sglang", "torch", "transformers"), "cannot": cannot}

    def ask(self, prompts: Prompts, width: int, at_a_time: int) -> list[Beams]:
        with ThreadPoolExecutor(at_a_time) as callers:
            return list(callers.map(lambda prompt: self._ask(prompt, width), prompts))

    def _ask(self, prompt: list[int], width: int) -> Beams:
        params = {"beam_width": width, "n": width, "max_new_tokens": self.depth, "ignore_eos": True}
        answer = self.http.post("/generate", {"input_ids": prompt, "sampling_params": params})
        found = answer["meta_info"]["beam_results"]
        if len(found) != width:
            raise RuntimeError(f"{len(found)} beams, {width} were asked for")
        return [(beam["output_ids"], beam["meta_info"]["sequence_score"] * self.depth) for beam in found]


@contextmanager
def start(settings: dict[str, Any]) -> Iterator[SGLang]:
    model, threads = Path(settings["model"]), settings["threads"]
    with StockServer(model, NATIVE, prefill=False, threads=threads) as server:
        yield SGLang(Caller(server.url), settings["depth"])


if __name__ == "__main__":
    talk(start)
