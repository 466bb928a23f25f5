"""`python -m prefill_worker`: load the model, listen, run."""

import sys

from prefill_worker.engines.base import PrefillEngine
from prefill_worker.engines.cpu import CpuPrefillEngine
from prefill_worker.worker import PrefillWorker
from xgr_kernels.cpu.compiled import spread_threads
from xgr_runtime.config import PrefillConfig
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.model.memory.host_tier import HostTier
from xgr_runtime.model.startup import LoadedModel, choose_kernels, load_model, prompt_limit
from xgr_runtime.process.lifecycle import Lifecycle, age, main
from xgr_runtime.transport import check_listener
from xgr_runtime.transport.keyring import read_keyring
from xgr_runtime.wire.messages import START_SECONDS
from xgr_runtime.worker.leaving import Leaving


def body(config: PrefillConfig, lifecycle: Lifecycle) -> None:
    lifecycle.passed("imports")
    keys = read_keyring(config.curve_key, config.curve_allow)
    check_listener(config.control_address, keys)
    kernels = choose_kernels(config.device)
    model = load_model(config, lambda: lifecycle.stopping)
    lifecycle.passed("load", {"check": model.check_seconds})
    engine = make_engine(config, model, kernels)
    with model.first_calls(lambda: lifecycle.stopping, "prefill", config.batch_tokens):
        engine.warm_up()
    limit = prompt_limit(model, config.max_prompt_tokens)
    memory = model.pool.memory
    pages = PagePool(model.pool.pages, memory.generations)
    size = config.host_cache_bytes
    tier = HostTier(model.pool, size, engine.device) if size else None
    worker = PrefillWorker(
        config, engine, pages, model.backend.identity, limit, memory=memory.shared, tier=tier, keys=keys
    )
    if kernels == "cpu":
        spread_threads()
    worker.learn_costs(model.cache, [model.backend.name, kernels])
    worker.counters[START_SECONDS] = age()
    lifecycle.passed("warm-up")
    lifecycle.ready({"incarnation": worker.desk.incarnation})

    leaving = Leaving(config.leave_timeout, config.heartbeat, lambda: worker.load().requests, worker.counters)

    def turn() -> bool:
        if model.publication:
            model.publication.keep()
        return leaving.over(lifecycle.turn())

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


if __name__ == "__main__":
    sys.exit(main(PrefillConfig, body, "prefill_worker"))
