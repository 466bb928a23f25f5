"""`python -m any_worker`: load and warm up for both roles, wait for a place, take it."""

import sys

from any_worker.place import Place
from any_worker.warm import warm
from xgr_runtime.config import AnyConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.process.lifecycle import Lifecycle, age, main
from xgr_runtime.process.orders import Orders


def body(config: AnyConfig, lifecycle: Lifecycle) -> None:
    if config.orders_fd < 0:
        raise ConfigError("nobody would say which place to take: start it by `xgr serve --standby`")
    orders = Orders(config.orders_fd)
    lifecycle.passed("imports")
    place = Place(config, warm(config, lifecycle), lifecycle, age())
    lifecycle.passed("warm-up")
    lifecycle.ready({"waits": True})
    order = orders.next(lifecycle.turn)
    if order is not None:
        place.take(order)


if __name__ == "__main__":
    sys.exit(main(AnyConfig, body, "any_worker"))
