"""How a decode worker starts: what it needs before it is anywhere, and how it takes its place then.

The two are apart because a standby does the first long before it knows the second.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from decode_worker.engines.base import DecodeEngine
from decode_worker.engines.cpu import CpuDecodeEngine
from decode_worker.search import tail_tokens_of
from decode_worker.worker import DecodeWorker
from xgr_kernels.cpu.compiled import spread_threads
from xgr_runtime.catalog import Catalog, Catalogs, CatalogView, load_catalog
from xgr_runtime.checkpoint import described
from xgr_runtime.config import DecodeConfig
from xgr_runtime.config.machine import check_memory
from xgr_runtime.errors import ConfigError
from xgr_runtime.model.startup import LoadedModel, choose_kernels, load_model, prompt_limit
from xgr_runtime.process.lifecycle import Lifecycle
from xgr_runtime.scheduling.cost_model import Tried
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.messages import START_SECONDS, Limits
from xgr_runtime.worker.device_turns import DECODE_SIDE, trial_turn
from xgr_runtime.worker.leaving import Leaving

SWITCH_EVERY = 0.0005  # seconds that a thread which takes in a version keeps the interpreter from the loop


@dataclass(frozen=True)
class DecodeParts:
    """Model, engine and catalog of a decode worker, wherever it will listen."""

    model: LoadedModel
    engine: DecodeEngine
    catalogs: Catalogs
    limits: Limits
    kernels: str
    max_rows: int

    def warm_up(self, config: DecodeConfig, lifecycle: Lifecycle) -> None:
        """Pay all first-use costs before the first request."""
        newest = self.catalogs.newest
        beams = (self.max_rows, config.max_beam_width, newest.catalog.emitted_tokens)
        with self.model.first_calls(lambda: lifecycle.stopping, "decode", *beams):
            self.engine.warm_up(newest.trie)

    def try_ahead(self, config: DecodeConfig) -> list[Tried]:
        """What some searches take that nobody asked for, of one who has no place yet."""
        with trial_turn(config.turns_file, DECODE_SIDE, config.device):
            return self.engine.try_searches(self.catalogs.newest.trie)


def load_parts(config: DecodeConfig, lifecycle: Lifecycle, model: LoadedModel | None = None) -> DecodeParts:
    """`model`: one that is loaded already. Raises `StartupError`."""
    max_rows = config.max_rows or 2 * config.max_beam_width
    kernels = choose_kernels(config.device)
    with described(Path(config.model_path), config.base_model_path) as files:
        catalogs = Catalogs(CatalogView(load_catalog(config.catalog, files), config.filter_bytes))
    if model is None:
        model = load_model(config, lambda: lifecycle.stopping)
        lifecycle.passed("load", {"check": model.check_seconds})
    catalog = catalogs.newest.catalog
    engine = make_engine(config, model, catalog, max_rows, kernels)
    limits = Limits(
        prompt_limit(model, config.max_prompt_tokens, catalog.emitted_tokens - 1),
        config.max_beam_width,
        plain_scores=kernels == "cuda",
    )
    return DecodeParts(model, engine, catalogs, limits, kernels, max_rows)


def seat(config: DecodeConfig, parts: DecodeParts, keys: Keyring | None) -> DecodeWorker:
    """A worker that listens where `config` says. Raises `ConfigError`."""
    identity = parts.model.backend.identity
    return DecodeWorker(config, parts.engine, parts.catalogs, identity, parts.limits, keys=keys)


def serve(
    config: DecodeConfig,
    lifecycle: Lifecycle,
    parts: DecodeParts,
    worker: DecodeWorker,
    start_seconds: float,
    tried: Sequence[Tried] | None = None,
    over: Callable[[], bool] = bool,
) -> None:
    """Say that it is ready, and run until it shall end, or is `over`.

    `start_seconds`: what a start takes, from nothing. `tried`: see `DecodeWorker.learn_costs`.
    """
    if parts.kernels == "cpu":
        spread_threads(backwards=True)  # prefill workers do it forwards
    worker.learn_costs(parts.model.cache, [parts.model.backend.name, parts.kernels], tried)
    sys.setswitchinterval(SWITCH_EVERY)
    worker.counters[START_SECONDS] = start_seconds
    lifecycle.passed("warm-up")
    lifecycle.ready({"incarnation": worker.desk.incarnation})
    leaving = Leaving(config.leave_timeout, config.heartbeat, lambda: worker.load().requests, worker.counters)
    worker.run(lambda: leaving.over(lifecycle.turn()) or worker.finished or over())


def make_engine(
    config: DecodeConfig, model: LoadedModel, catalog: Catalog, max_rows: int, kernels: str
) -> DecodeEngine:
    """The engine for `kernels`: levels one by one on a CPU, whole cohorts on a GPU. Raises `ConfigError`."""
    if kernels != "cuda":
        _check_rows(config, model, catalog, max_rows)
        return CpuDecodeEngine(
            model.backend, model.pool, tail_tokens_of(catalog.emitted_tokens), max_rows, kernels
        )
    if not catalog.scoring.plain:
        raise ConfigError(
            "the catalog's scoring has score_mode level or a repetition_penalty, which searches on a GPU "
            "lack: use --device cpu, or leave them out of catalog.json"
        )
    # Imported here because they need Triton.
    from decode_worker.engines.cohort import MAX_REQUESTS
    from decode_worker.engines.cohort_engine import CohortEngine
    from decode_worker.engines.cohort_steps import CohortSteps
    from xgr_runtime.model.device.device import CudaDevice
    from xgr_runtime.model.device_attention import DeviceAttention

    device = CudaDevice(model.backend.device.index or 0)
    attention = DeviceAttention(
        model.backend, model.pool, device, rows=max_rows, requests=MAX_REQUESTS, causal=False
    )
    try:
        steps = CohortSteps(
            model.backend,
            model.pool,
            device,
            catalog.scored_levels.trie,
            max_rows,
            config.max_beam_width,
            attention.each,
            filter_bytes=config.filter_bytes,
        )
    except ValueError as error:  # widths or tokens that selection on a GPU cannot tell apart
        raise ConfigError(f"{error}: lower --max-beam-width, or use --device cpu") from None
    return CohortEngine(steps)


def _check_rows(config: DecodeConfig, model: LoadedModel, catalog: Catalog, rows: int) -> None:
    """Raises `ConfigError` for more beams than main memory holds, rather than be killed for them later."""
    identity = model.backend.identity
    needed = rows * (tail_tokens_of(catalog.emitted_tokens) * identity.token_bytes + 4 * identity.vocab)
    setting = "--max-rows" if config.max_rows else "--max-beam-width"
    value = config.max_rows or config.max_beam_width
    check_memory(needed, setting, value, f"logits and KV of {rows} beams")
