"""What launches of a deployment cost, for `xgr plan`: asks for many sizes, then what its workers learned."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median, median_low
from typing import TYPE_CHECKING

import msgspec

from xgr_runtime.cli.bench import facts
from xgr_runtime.cli.bench.measures import ANSWERED
from xgr_runtime.cli.bench.run import Run
from xgr_runtime.cli.bench.settings import TrafficSettings, Widths
from xgr_runtime.cli.bench.traffic import UNLIMITED, Call, calls
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import write_whole
from xgr_runtime.planning.devices import CostFile
from xgr_runtime.scheduling.cost_model import LEAST, Work, alone
from xgr_runtime.wire.messages import LAUNCHES, Load, ModelIdentity, Role, StepCost, Timing

if TYPE_CHECKING:
    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.bench.judge import Judge
    from xgr_runtime.cli.bench.report import Report
    from xgr_runtime.cli.bench.target import Target
    from xgr_runtime.wire.answers import WorkerStatus

IN_FLIGHT = (1, 4)  # alone, then sharing launches
PARTS = (1.0, 0.25, 0.5, 0.125)  # of the longest prompt and the widest beam: all pairs of them are asked
_TYPICAL = Work(1, 512, 512 * 512)  # by which workers of one role are compared


class _TimedMeta(msgspec.Struct):
    timing: Timing


class _Timed(msgspec.Struct):
    """The part of an answer that says where its time went."""

    meta_info: _TimedMeta


class TimedTarget:
    """A target that notes what answers take beyond what their workers say, in seconds."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.overheads: list[float] = []

    async def send(self, call: Call) -> tuple[str, bytes]:
        """See `Target.send`."""
        began = time.monotonic()
        status, body = await self._target.send(call)
        took = time.monotonic() - began
        if status == ANSWERED:
            with suppress(msgspec.MsgspecError):  # whoever judges the answer says what it is
                timing = msgspec.json.decode(body, type=_Timed).meta_info.timing
                known = timing.queue + timing.prefill + timing.transfer + timing.decode
                self.overheads.append(max(0.0, took - known))
        return status, body

    async def drain(self) -> None:
        """See `Target.drain`."""
        await self._target.drain()


async def calibrate(
    path: Path, target: Target, catalog: Catalog, traffic: TrafficSettings, judge: Judge, report: Report
) -> Run:
    """Ask, then write what workers have learned to `path`. Raises ConfigError where they know nothing."""
    timed = TimedTarget(target)
    most_tokens = (await target.info()).max_prompt_tokens or UNLIMITED
    stream = sizes(catalog, traffic, most_tokens)
    report.run = run = Run(timed, judge, stream, report.load, report.progress)
    await run.prime(0)
    timed.overheads.clear()
    overhead = 0.0
    for in_flight in IN_FLIGHT:
        await run.closed(in_flight)
        if not timed.overheads:
            raise ConfigError(f"{target.url} answered nothing in --duration: raise it, or look at its log")
        overhead = overhead or median(timed.overheads)  # while nobody else asks
    costs = cost_file(await target.workers(), overhead)
    write_whole(path, msgspec.json.format(msgspec.json.encode(costs), indent=2) + b"\n")
    report.console.print(f"what launches cost: {path}")
    return run


def sizes(catalog: Catalog, traffic: TrafficSettings, most_tokens: int) -> Iterator[Call]:
    """Requests of all sizes in turn, without end."""
    longest, widest = min(traffic.prompt_tokens, most_tokens), max(traffic.widths.widths)
    made = []
    for number, (tokens, width) in enumerate(itertools.product(PARTS, PARTS)):
        beams = Widths((max(1, round(width * widest)),), (1.0,))
        some = replace(
            traffic,
            kind="random",
            prompt_tokens=max(1, round(tokens * longest)),
            widths=beams,
            n=1,
            seed=traffic.seed + number,
        )
        made.append(calls(catalog, some, most_tokens))
    for each in itertools.cycle(made):
        yield next(each)


def cost_file(workers: list[WorkerStatus], overhead: float) -> CostFile:
    """What the middle one of each role's workers costs. Raises ConfigError."""
    prefill, decode = learned(workers, "prefill"), learned(workers, "decode")
    model = next(model for _, model, _ in decode)
    return CostFile(
        machine=str(facts.machine()["processor"]),
        prefill=middle([cost for cost, _, _ in prefill]),
        decode=middle([cost for cost, _, _ in decode]),
        token_bytes=model.token_bytes,
        layers=model.layers,
        kv_pages=max(1, *(load.pages_total for _, _, load in [*prefill, *decode])),
        overhead=overhead,
    )


def learned(workers: list[WorkerStatus], role: Role) -> list[tuple[StepCost, ModelIdentity, Load]]:
    """Of those that know by launches of requests what theirs cost. Raises ConfigError if none does."""
    found = [
        (worker.load.cost, worker.model, worker.load)
        for worker in workers
        if worker.role == role and worker.load and worker.load.cost and worker.model
        if worker.load.counters.get(LAUNCHES, 0) >= LEAST
    ]
    if not found:
        raise ConfigError(f"no {role} worker knows yet what its launches cost: raise --duration")
    return found


def middle(costs: list[StepCost]) -> StepCost:
    """The one of which as many are dearer as are cheaper, or the next cheaper one."""
    by_price = {alone(cost, _TYPICAL): cost for cost in costs}
    return by_price[median_low([alone(cost, _TYPICAL) for cost in costs])]
