"""Our workers on SGLang's model layer give the answers of Hugging Face, two of each kind."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from freed import assert_all_freed
from items import Items
from oracle import Oracle
from references import Reference, check_all
from shared_templates import deployment_of

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.wire.answers import Answer


@pytest.fixture
def client(checkpoint: Path, catalog_source: Path) -> Iterator[XgrClient]:
    """Small token budgets, so that some prompts come in chunks; nothing may be held afterwards."""
    config = ServeConfig(
        model_path=str(checkpoint),
        model_backend="sglang",
        catalog=str(catalog_source),
        port=0,
        kv_bytes=64 << 20,
        batch_tokens=128,
        log_level="WARNING",
        hedge_after=0.0,  # a busy machine would be reason enough to try two pairs
        prefill_workers=2,
        decode_workers=2,
    )
    with deployment_of(config) as deployment, XgrClient(deployment.url, timeout=120.0) as open_client:
        yield open_client
        assert len(assert_all_freed(open_client)) == 4


@pytest.mark.timeout(1200)
def test_sixteen_at_a_time(
    client: XgrClient, threads: ThreadPoolExecutor, references: list[Reference], oracle: Oracle, items: Items
) -> None:
    def ask(reference: Reference) -> Answer:
        return client.generate(input_ids=reference.prompt, beam_width=reference.width, timeout_ms=120_000)

    answers = list(threads.map(ask, references))
    assert all(answer.meta_info.attempts == 1 for answer in answers), "nothing failed on the way"
    check_all(answers, references, oracle, items)
