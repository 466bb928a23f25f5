"""Workers with the engines of a GPU, on this machine's CPU: `python -m captured_workers ROLE FLAGS`.

Launches run at once and capturing changes nothing, kernels are interpreted, and attention is the CPU's. The
rest is what runs beside a GPU: the workers' loops, cohorts, buckets, and where KV lies.
"""

import sys

import interpret_triton  # noqa: F401, before the kernels
from planned_attention import PlannedAttention

from decode_worker import __main__ as decode
from decode_worker import start as decode_start
from decode_worker.engines.base import DecodeEngine
from decode_worker.engines.cohort_engine import CohortEngine
from decode_worker.engines.cohort_steps import CohortSteps
from prefill_worker import __main__ as prefill
from prefill_worker import start as prefill_start
from prefill_worker.engines.cuda import BucketEngine
from xgr_kernels.beam_select.cuda import Tuning
from xgr_kernels.trie import Trie
from xgr_runtime.catalog import Catalog
from xgr_runtime.config import DecodeConfig, PrefillConfig
from xgr_runtime.model.device.device import HostDevice
from xgr_runtime.model.startup import LoadedModel
from xgr_runtime.process.lifecycle import main

# The interpreter takes a millisecond a program; sizes change no answer.
SMALL = Tuning(block=1024, tile=256, programs=2, maxima=64, capacity=128)


class UnwarmedEngine(CohortEngine):
    """The searches of its warm-up would be a third of what a test computes."""

    def warm_up(self, trie: Trie) -> None:
        self.steps.capture()


def decode_engine(
    config: DecodeConfig, model: LoadedModel, catalog: Catalog, max_rows: int, kernels: str
) -> DecodeEngine:
    page_size = model.pool.page_size
    steps = CohortSteps(
        model.backend,
        model.pool,
        HostDevice(),
        catalog.trie,
        max_rows,
        config.max_beam_width,
        lambda rows, requests: [PlannedAttention(rows, requests, page_size, causal=False)],
        max_requests=2,
        tuning=SMALL,
    )
    return UnwarmedEngine(steps)


def prefill_engine(config: PrefillConfig, model: LoadedModel, kernels: str) -> BucketEngine:
    page_size = model.pool.page_size
    return BucketEngine(
        model.backend,
        model.pool,
        HostDevice(),
        config.batch_tokens,
        lambda rows, requests: PlannedAttention(rows, requests, page_size, causal=True),
    )


if __name__ == "__main__":
    if sys.argv.pop(1) == "decode":
        decode_start.make_engine = decode_engine
        sys.exit(main(DecodeConfig, decode.body, "decode_worker"))
    prefill_start.make_engine = prefill_engine
    sys.exit(main(PrefillConfig, prefill.body, "prefill_worker"))
