"""`python -m decode_worker`: load the model and the catalog, listen, run."""

import sys

from decode_worker.start import load_parts, seat, serve
from xgr_runtime.config import DecodeConfig
from xgr_runtime.process.lifecycle import Lifecycle, age, main
from xgr_runtime.transport import check_listener, told_address
from xgr_runtime.transport.keyring import read_keyring


def body(config: DecodeConfig, lifecycle: Lifecycle) -> None:
    lifecycle.passed("imports")
    keys = read_keyring(config.curve_key, config.curve_allow)  # what is wrong here needs no model to be said
    check_listener(config.control_address, keys)
    check_listener(config.data_address, keys)
    told_address(config.advertise_data_address or config.data_address, keys)
    parts = load_parts(config, lifecycle)
    worker = seat(config, parts, keys)
    parts.warm_up(config, lifecycle)
    serve(config, lifecycle, parts, worker, age())


if __name__ == "__main__":
    sys.exit(main(DecodeConfig, body, "decode_worker"))
