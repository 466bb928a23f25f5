"""How a warmed worker takes the place of another: its name, its addresses, its role."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import decode_worker.start
import prefill_worker.start
from any_worker.warm import Warm, at_place
from xgr_runtime.config import AnyConfig, DecodeConfig, PrefillConfig, parse
from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.published import Publication, PublishedMemory
from xgr_runtime.model.startup import LoadedModel
from xgr_runtime.process.lifecycle import Lifecycle
from xgr_runtime.process.log import configure
from xgr_runtime.process.orders import Order
from xgr_runtime.process.template import show_arguments
from xgr_runtime.transport.keyring import read_keyring

log = logging.getLogger(__name__)

MODULES = ("prefill_worker", "decode_worker")


@dataclass(frozen=True)
class Place:
    """Takes one with what is warm. `start_seconds`: what a start takes, from nothing."""

    own: AnyConfig
    warm: Warm
    lifecycle: Lifecycle
    start_seconds: float

    def take(self, order: Order) -> None:
        """Be that worker until it ends. Raises `ConfigError` for a role that this one is not warmed for."""
        self.lifecycle.waited()
        if order.module == "prefill_worker" and self.warm.prefill is not None:
            self._as_prefill(parse(PrefillConfig, order.argv, {}))
        elif order.module == "decode_worker" and self.warm.decode is not None:
            self._as_decode(parse(DecodeConfig, order.argv, {}))
        else:
            raise ConfigError(
                f"{self.own.name} is warmed for --roles {self.own.roles}, and was told to be {order.module}"
            )

    def _as_prefill(self, told: PrefillConfig) -> None:
        assert self.warm.prefill is not None
        config, parts = at_place(told, self.own), self.warm.prefill
        self._called("prefill_worker", config.name)
        worker = prefill_worker.start.seat(config, parts, read_keyring(config.curve_key, config.curve_allow))
        publication = published(config.publish_memory, parts.model)
        prefill_worker.start.serve(
            *(config, self.lifecycle, parts, worker, self.start_seconds),
            publication=publication,
            tried=self.warm.prompts_tried,
        )

    def _as_decode(self, told: DecodeConfig) -> None:
        assert self.warm.decode is not None
        config, parts = at_place(told, self.own), self.warm.decode
        self._called("decode_worker", config.name)
        worker = decode_worker.start.seat(config, parts, read_keyring(config.curve_key, config.curve_allow))
        decode_worker.start.serve(
            *(config, self.lifecycle, parts, worker, self.start_seconds), tried=self.warm.searches_tried
        )

    def _called(self, module: str, name: str) -> None:
        """From now on it goes by that name, in the log and for `ps`."""
        log.info("%s becomes %s", self.own.name, name)
        configure(name, self.own.log_level)
        shown: Sequence[str] = [sys.executable, "-P", "-m", module, f"--name={name}"]
        show_arguments([*shown, f"--was={self.own.name}"])


def published(path: str, model: LoadedModel) -> Publication | None:
    """What readers of this memory look for at `path`, and nowhere else from now on. Raises `ConfigError`."""
    if model.publication:
        model.publication.withdraw()
    shared = model.pool.memory.shared
    if not path or shared is None:
        return None
    return Publication(Path(path), PublishedMemory(model.backend.identity, shared, model.weights.shared))
