"""`python -m decode_worker`: load the model and the catalog, listen, run."""

import sys
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
from xgr_runtime.process.lifecycle import Lifecycle, age, main
from xgr_runtime.transport import check_listener, told_address
from xgr_runtime.transport.keyring import read_keyring
from xgr_runtime.wire.messages import START_SECONDS, Limits
from xgr_runtime.worker.leaving import Leaving

SWITCH_EVERY = 0.0005  # seconds that a thread which takes in a version keeps the interpreter from the loop


def body(config: DecodeConfig, lifecycle: Lifecycle) -> None:
    lifecycle.passed("imports")
    max_rows = config.max_rows or 2 * config.max_beam_width
    keys = read_keyring(config.curve_key, config.curve_allow)  # what is wrong here needs no model to be said
    check_listener(config.control_address, keys)
    check_listener(config.data_address, keys)
    told_address(config.advertise_data_address or config.data_address, keys)
    kernels = choose_kernels(config.device)
    with described(Path(config.model_path), config.base_model_path) as files:
        catalogs = Catalogs(CatalogView(load_catalog(config.catalog, files), config.filter_bytes))
    model = load_model(config, lambda: lifecycle.stopping)
    lifecycle.passed("load", {"check": model.check_seconds})
    engine = make_engine(config, model, catalogs.newest.catalog, max_rows, kernels)
    emitted_tokens = catalogs.newest.catalog.emitted_tokens
    limits = Limits(
        prompt_limit(model, config.max_prompt_tokens, emitted_tokens - 1),
        config.max_beam_width,
        plain_scores=kernels == "cuda",
    )
    worker = DecodeWorker(config, engine, catalogs, model.backend.identity, limits, keys=keys)
    beams = (max_rows, config.max_beam_width, emitted_tokens)
    with model.first_calls(lambda: lifecycle.stopping, "decode", *beams):
        worker.warm_up()
    if kernels == "cpu":
        spread_threads(backwards=True)  # prefill workers do it forwards
    worker.learn_costs(model.cache, [model.backend.name, kernels])
    sys.setswitchinterval(SWITCH_EVERY)
    worker.counters[START_SECONDS] = age()
    lifecycle.passed("warm-up")
    lifecycle.ready({"incarnation": worker.desk.incarnation})
    leaving = Leaving(config.leave_timeout, config.heartbeat, lambda: worker.load().requests, worker.counters)
    worker.run(lambda: leaving.over(lifecycle.turn()) or worker.finished)


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


if __name__ == "__main__":
    sys.exit(main(DecodeConfig, body, "decode_worker"))
