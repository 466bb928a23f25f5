"""The engines of a GPU in real workers, on the CPU: answers are the oracle's, however KV gets to decode."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from items import Items
from oracle import Oracle
from sameness import assert_same

from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.topology import WORKERS

WIDTH = 2


class CapturedCluster(Cluster):
    """Its workers have the engines of a GPU."""

    def _program(self, name: str, module: str, argv: list[str]) -> Program:
        if module == "router":
            return super()._program(name, module, argv)
        role = module.removesuffix("_worker")
        return Program(name, "captured_workers", [role, *argv], template=WORKERS)


@pytest.mark.in_turns("way")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", [{}, {"colocated": True}], ids=["pull", "in-place"])
def test_answers_are_the_oracles(
    way: dict[str, Any],
    checkpoint: Path,
    catalog_source: Path,
    prompts: list[list[int]],
    items: Items,
    oracle: Oracle,
) -> None:
    settings = {"max_beam_width": WIDTH, "max_rows": 2 * WIDTH, "batch_tokens": 96, "silence": 60.0, **way}
    asked = [prompt[:150] for prompt in prompts[1::5]]  # some in two turns
    with (
        CapturedCluster(checkpoint, catalog_source, **settings) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(len(asked)) as callers,
    ):
        answers = callers.map(
            lambda prompt: client.generate(input_ids=prompt, beam_width=WIDTH, timeout_ms=300_000), asked
        )
        for prompt, answer in zip(asked, answers, strict=True):
            assert_same(answer, oracle.beams(prompt, items, WIDTH))
        longest = max(asked, key=len)
        again = client.generate(input_ids=longest, beam_width=WIDTH, timeout_ms=300_000)
        assert again.meta_info.cached_tokens == (len(longest) - 1) // 16 * 16
        assert_same(again, oracle.beams(longest, items, WIDTH))
        cluster.settled()
