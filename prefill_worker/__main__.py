"""`python -m prefill_worker`: load the model, listen, run."""

import sys

from prefill_worker.start import load_parts, seat, serve
from xgr_runtime.config import PrefillConfig
from xgr_runtime.process.lifecycle import Lifecycle, age, main
from xgr_runtime.transport import check_listener
from xgr_runtime.transport.keyring import read_keyring


def body(config: PrefillConfig, lifecycle: Lifecycle) -> None:
    lifecycle.passed("imports")
    keys = read_keyring(config.curve_key, config.curve_allow)
    check_listener(config.control_address, keys)
    parts = load_parts(config, lifecycle)
    parts.warm_up(config, lifecycle)
    worker = seat(config, parts, keys)
    serve(config, lifecycle, parts, worker, age(), parts.model.publication)


if __name__ == "__main__":
    sys.exit(main(PrefillConfig, body, "prefill_worker"))
