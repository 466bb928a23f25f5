"""Many long prompts at once at a deployment that has served nothing yet, and remembers nothing."""

import asyncio
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from crowd import Outcome, Record, Tally, body, judge, make_prompts, undisturbed
from fault_table import FaultTable, Row
from fleet import Fleet
from instruments import TestData

from xgr_runtime.cache.folder import cache_folder
from xgr_runtime.cache.kernels import KernelFolder

BURST, PROMPTS, WIDTH, LONGEST = 160, 8, 50, 2000
SECONDS = 6.0  # deadline
Answered = tuple[int, httpx.Response, Record]


@pytest.fixture
def forgetful(tmp_path: Path) -> Path:
    """A cache folder with compiled kernels alone. A copy: a link counts as damage, and all would compile."""
    cache = cache_folder()
    assert cache is not None
    kernels = KernelFolder(cache).path
    shutil.copytree(kernels, tmp_path / kernels.name)
    return tmp_path


@pytest.fixture
def fresh(test_data: TestData, forgetful: Path) -> Iterator[Fleet]:
    with Fleet(test_data.model, test_data.catalog, 1, 1, cache_folder=forgetful, cache_bytes=0) as fleet:
        yield fleet


@pytest.mark.alone
def test_most_of_the_first_burst_is_refused_at_once(
    fresh: Fleet, test_data: TestData, table: FaultTable
) -> None:
    """Nobody can serve all of it in time, so callers are told at once; what is accepted is in time."""
    config = json.loads((test_data.model / "config.json").read_text())
    longest = min(LONGEST, int(config["max_position_embeddings"]) - 16)
    whole = make_prompts(int(config["vocab_size"]), PROMPTS, 8 * longest, seed=31)
    prompts = [prompt[:longest] for prompt in whole]
    bodies = [body(p, WIDTH, int(SECONDS * 1000)) for p in prompts]
    responses, behind = asyncio.run(burst(fresh.url, bodies))
    row = Row("first burst of a fresh deployment", Tally())
    table.rows.append(row)
    with fresh.client() as client:
        questions = undisturbed(client, prompts, [WIDTH])
    for number, response, record in responses:
        outcome, detail = judge(response, questions[number].answer)
        row.tally.records.append(Record(record.asked, record.ended, outcome, detail))
    row.finished = True
    assert not row.tally.bad, row.tally.bad[:5]
    assert set(row.tally.refusals) <= {"overloaded", "deadline_exceeded"}
    at_best = max(0.9 * SECONDS, 1.5 * behind)
    late = [r for r in refused(row.tally) if r.ended - r.asked > at_best]
    at_once = len(refused(row.tally)) - len(late)
    print(f"{len(row.tally.correct)} answered, {at_once} refused at once, {len(late)} late")
    assert row.tally.correct and len(late) <= BURST / 8
    assert at_once >= BURST / 4


def refused(tally: Tally) -> list[Record]:
    return [record for record in tally.records if record.outcome is Outcome.REFUSED]


async def burst(url: str, bodies: Sequence[bytes]) -> tuple[list[Answered], float]:
    """All at once, each with the number of its body; and the seconds of nonsense behind them.

    On a busy machine it takes seconds until all of them have been read, and no refusal comes sooner.
    """
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=5 * SECONDS) as client:

        async def ask(number: int) -> Answered:
            asked = time.monotonic()
            kind = {"content-type": "application/json"}
            response = await client.post("/generate", content=bodies[number], headers=kind)
            return number, response, Record(asked, time.monotonic(), Outcome.LEFT)

        async def nonsense() -> float:
            asked = time.monotonic()
            kind = {"content-type": "application/json"}
            response = await client.post("/generate", content=b"{}", headers=kind)
            assert response.status_code == 400
            return time.monotonic() - asked

        asked = asyncio.gather(*(ask(number % len(bodies)) for number in range(BURST)))
        behind = asyncio.create_task(nonsense())
        return await asked, await behind
