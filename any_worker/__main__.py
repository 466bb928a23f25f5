"""`python -m any_worker`: load and warm up for both roles, and take one of them, or wait for a place."""

import sys

from any_worker.place import Place
from any_worker.warm import warm
from xgr_runtime.config import AnyConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.process.lifecycle import Lifecycle, age, main
from xgr_runtime.process.orders import Orders
from xgr_runtime.transport import check_listener, told_address
from xgr_runtime.transport.keyring import read_keyring


def body(config: AnyConfig, lifecycle: Lifecycle) -> None:
    lifecycle.passed("imports")
    if config.orders_fd >= 0:
        wait(config, lifecycle, Orders(config.orders_fd))
        return
    check_place(config)
    place = Place(config, warm(config, lifecycle), lifecycle, age())
    place.change_roles(config)


def wait(config: AnyConfig, lifecycle: Lifecycle, orders: Orders) -> None:
    """A standby: whoever is lost first, it takes the place of."""
    place = Place(config, warm(config, lifecycle), lifecycle, age())
    lifecycle.passed("warm-up")
    lifecycle.ready({"waits": True})
    order = orders.next(lifecycle.turn)
    orders.close()
    if order is not None:
        place.take(order)


def check_place(config: AnyConfig) -> None:
    """What is wrong here needs no model to be said. Raises `ConfigError`."""
    if config.role != "any":
        raise ConfigError(
            f"--role {config.role} never changes: start a worker of that role, `python -m "
            f"{config.role}_worker`, or give --role any"
        )
    if config.memory_of or config.publish_memory:
        raise ConfigError(
            "--memory-of and --publish-memory are for two workers that stay what they are: leave them out"
        )
    for setting, address in (
        ("--control-address", config.control_address),
        ("--data-address", config.data_address),
    ):
        if not address:
            raise ConfigError(f"{setting} is required")
    keys = read_keyring(config.curve_key, config.curve_allow)
    check_listener(config.control_address, keys)
    check_listener(config.data_address, keys)
    told_address(config.advertise_data_address or config.data_address, keys)


if __name__ == "__main__":
    sys.exit(main(AnyConfig, body, "any_worker"))
