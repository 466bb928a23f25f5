"""`python -m decode_worker`: load the model and the catalog, listen, run."""

import logging
import sys

import numba

from decode_worker.engine import DecodeEngine
from decode_worker.worker import DecodeWorker
from xgr_kernels.backend import choose_backend
from xgr_runtime.addresses import check_address
from xgr_runtime.catalog import load_catalog
from xgr_runtime.config import DecodeConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.messages import Limits
from xgr_runtime.model.startup import load_model, prompt_limit
from xgr_runtime.process import Lifecycle, main

log = logging.getLogger(__name__)


def body(config: DecodeConfig, lifecycle: Lifecycle) -> None:
    max_rows = config.max_rows or 2 * config.max_beam_width
    if max_rows < config.max_beam_width:
        raise ConfigError(
            f"--max-rows is {max_rows}, less than --max-beam-width {config.max_beam_width}: raise it"
        )
    if config.advertise_data_address:
        check_address(config.advertise_data_address)
    catalog = load_catalog(config.catalog, config.model_path)
    model = load_model(config, lambda: lifecycle.stopping)
    numba.set_num_threads(min(model.threads, numba.get_num_threads()))
    kernels, reason = choose_backend("auto", config.device)
    log.info("kernels: %s (%s)", kernels, reason)
    tail_tokens = max(0, catalog.depth - 2)  # the newest token's keys and values are never stored
    engine = DecodeEngine(model.backend, model.pool, tail_tokens, max_rows, kernels)
    limits = Limits(prompt_limit(model, config.max_prompt_tokens, catalog.depth - 1), config.max_beam_width)
    worker = DecodeWorker(config, engine, catalog, model.identity, limits)
    worker.warm_up()
    lifecycle.ready({"incarnation": worker.incarnation})
    worker.run(lambda: lifecycle.stopping or worker.finished)


if __name__ == "__main__":
    sys.exit(main(DecodeConfig, body, "decode_worker"))
