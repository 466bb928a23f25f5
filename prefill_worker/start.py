"""How a prefill worker starts: what it needs before it is anywhere, and how it takes its place then.

The two are apart because a standby does the first long before it knows the second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefill_worker.engines.base import PrefillEngine
from prefill_worker.engines.cpu import CpuPrefillEngine
from prefill_worker.trials import try_forwards
from prefill_worker.worker import PrefillWorker
from xgr_kernels.cpu.compiled import spread_threads
from xgr_runtime.config import PrefillConfig
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.published import Publication
from xgr_runtime.model.memory.host_tier import HostTier
from xgr_runtime.model.startup import LoadedModel, choose_kernels, load_model, prompt_limit
from xgr_runtime.process.lifecycle import Lifecycle
from xgr_runtime.scheduling.cost_model import Tried
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.messages import START_SECONDS
from xgr_runtime.worker.device_turns import PREFILL_SIDE, trial_turn
from xgr_runtime.worker.leaving import Leaving


@dataclass(frozen=True)
class PrefillParts:
    """Model, engine and memory of a prefill worker, wherever it will listen."""

    model: LoadedModel
    engine: PrefillEngine
    tier: HostTier | None
    limit: int  # tokens of a prompt
    kernels: str

    def warm_up(self, config: PrefillConfig, lifecycle: Lifecycle) -> None:
        """Pay all first-use costs before the first request."""
        with self.model.first_calls(lambda: lifecycle.stopping, "prefill", config.batch_tokens):
            self.engine.warm_up()

    def try_ahead(self, config: PrefillConfig) -> list[Tried]:
        """What some forwards take that nobody asked for, of one who has no place yet."""
        with trial_turn(config.turns_file, PREFILL_SIDE, config.device):
            return try_forwards(self.engine, min(config.batch_tokens, self.limit))


def load_parts(config: PrefillConfig, lifecycle: Lifecycle) -> PrefillParts:
    """Raises `StartupError`."""
    kernels = choose_kernels(config.device)
    model = load_model(config, lambda: lifecycle.stopping)
    lifecycle.passed("load", {"check": model.check_seconds})
    engine = make_engine(config, model, kernels)
    size = config.host_cache_bytes
    tier = HostTier(model.pool, size, engine.device) if size else None
    return PrefillParts(model, engine, tier, prompt_limit(model, config.max_prompt_tokens), kernels)


def seat(config: PrefillConfig, parts: PrefillParts, keys: Keyring | None) -> PrefillWorker:
    """A worker that listens where `config` says. Raises `ConfigError`."""
    memory = parts.model.pool.memory
    return PrefillWorker(
        config,
        parts.engine,
        PagePool(parts.model.pool.pages, memory.generations),
        parts.model.backend.identity,
        parts.limit,
        memory=memory.shared,
        tier=parts.tier,
        keys=keys,
    )


def serve(
    config: PrefillConfig,
    lifecycle: Lifecycle,
    parts: PrefillParts,
    worker: PrefillWorker,
    start_seconds: float,
    publication: Publication | None,
    tried: Sequence[Tried] | None = None,
    over: Callable[[], bool] = bool,
) -> None:
    """Say that it is ready, and run until it shall end, or is `over`.

    `start_seconds`: what a start takes, from nothing. `publication` of the memory that others read is kept
    up. `tried`: see `PrefillWorker.learn_costs`.
    """
    if parts.kernels == "cpu":
        spread_threads()
    worker.learn_costs(parts.model.cache, [parts.model.backend.name, parts.kernels], tried)
    worker.counters[START_SECONDS] = start_seconds
    lifecycle.passed("warm-up")
    lifecycle.ready({"incarnation": worker.desk.incarnation})
    leaving = Leaving(config.leave_timeout, config.heartbeat, lambda: worker.load().requests, worker.counters)

    def turn() -> bool:
        if publication:
            publication.keep()
        return leaving.over(lifecycle.turn()) or over()

    worker.run(turn)


def make_engine(config: PrefillConfig, model: LoadedModel, kernels: str) -> PrefillEngine:
    """The engine for `kernels`; on a GPU its forwards are captured in buckets. Raises `ConfigError`."""
    if kernels != "cuda":
        return CpuPrefillEngine(model.backend, model.pool)
    from prefill_worker.engines.cuda import MAX_PROMPTS, BucketEngine
    from xgr_runtime.model.device.device import CudaDevice
    from xgr_runtime.model.device_attention import DeviceAttention

    device = CudaDevice(model.backend.device.index or 0)
    attention = DeviceAttention(
        model.backend, model.pool, device, rows=config.batch_tokens, requests=MAX_PROMPTS, causal=True
    )
    return BucketEngine(model.backend, model.pool, device, config.batch_tokens, attention.one)
