"""`python -m prefill_worker`: load the model, listen, run."""

import sys

from prefill_worker.engine import PrefillEngine
from prefill_worker.worker import PrefillWorker
from xgr_runtime.config import PrefillConfig
from xgr_runtime.model.startup import load_model, prompt_limit
from xgr_runtime.pages import PagePool
from xgr_runtime.process import Lifecycle, main


def body(config: PrefillConfig, lifecycle: Lifecycle) -> None:
    model = load_model(config, lambda: lifecycle.stopping)
    engine = PrefillEngine(model.backend, model.pool)
    engine.warm_up()
    limit = prompt_limit(model, config.max_prompt_tokens)
    memory = model.pool.memory
    pages = PagePool(model.pool.pages, memory.generations)
    worker = PrefillWorker(config, engine, pages, model.identity, limit, memory=memory.shared)
    lifecycle.ready({"incarnation": worker.incarnation})
    worker.run(lambda: lifecycle.stopping)


if __name__ == "__main__":
    sys.exit(main(PrefillConfig, body, "prefill_worker"))
