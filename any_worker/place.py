"""How a warmed worker takes a place, its own or that of another: name, addresses and role."""

import gc
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import decode_worker.start
import prefill_worker.start
from any_worker.warm import Warm, as_role, at_place
from decode_worker.worker import DecodeWorker
from prefill_worker.worker import PrefillWorker
from xgr_runtime.config import AnyConfig, DecodeConfig, PrefillConfig, parse
from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.published import Publication, PublishedMemory
from xgr_runtime.model.startup import LoadedModel
from xgr_runtime.process.lifecycle import Lifecycle
from xgr_runtime.process.log import configure
from xgr_runtime.process.orders import Order
from xgr_runtime.process.template import show_arguments
from xgr_runtime.transport.keyring import read_keyring
from xgr_runtime.wire.messages import Role
from xgr_runtime.worker.leaving import Leaving

log = logging.getLogger(__name__)

CHANGE_SECONDS = 4000.0  # that a change waits for requests, none of which has more than an hour


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
            told = at_place(parse(PrefillConfig, order.argv, {}), self.own)
            self._called(order.module, told.name)
            self._be_prefill(told)
        elif order.module == "decode_worker" and self.warm.decode is not None:
            mine = at_place(parse(DecodeConfig, order.argv, {}), self.own)
            self._called(order.module, mine.name)
            self._be_decode(mine)
        elif order.module == "any_worker" and self.own.role == "any":
            either = at_place(parse(AnyConfig, order.argv, {}), self.own)
            self._called(order.module, either.name)
            self.change_roles(either)
        else:
            raise ConfigError(
                f"{self.own.name} is warmed for --role {self.own.role}, and was told to be {order.module}"
            )

    def change_roles(self, config: AnyConfig) -> None:
        """Be a worker of one role after the other, as routers say, until it shall end."""
        role: Role | None = config.first_role
        while role is not None and not self.lifecycle.stopping:
            log.info("%s takes %s", config.name, "prompts" if role == "prefill" else "beams")
            if role == "prefill":
                role = self._be_prefill(as_role(PrefillConfig, config), flexible=True)
            else:
                role = self._be_decode(as_role(DecodeConfig, config), flexible=True)
            # What the last role had mapped of others goes with its objects, which `Lifecycle.ready` froze.
            gc.unfreeze()
            gc.collect()

    def _be_prefill(self, config: PrefillConfig, flexible: bool = False) -> Role | None:
        """The role that it was told to take next, None where it shall end."""
        parts = self.warm.prefill
        assert parts is not None
        worker = prefill_worker.start.seat(config, parts, read_keyring(config.curve_key, config.curve_allow))
        worker.desk.flexible = flexible
        prefill_worker.start.serve(
            *(config, self.lifecycle, parts, worker, self.start_seconds),
            publication=published(config.publish_memory, parts.model),
            tried=self.warm.prompts_tried,
            over=_change_of(worker),
        )
        worker.close()
        return worker.desk.wanted

    def _be_decode(self, config: DecodeConfig, flexible: bool = False) -> Role | None:
        """See `_be_prefill`."""
        parts = self.warm.decode
        assert parts is not None
        worker = decode_worker.start.seat(config, parts, read_keyring(config.curve_key, config.curve_allow))
        worker.desk.flexible = flexible
        decode_worker.start.serve(
            *(config, self.lifecycle, parts, worker, self.start_seconds),
            tried=self.warm.searches_tried,
            over=_change_of(worker),
        )
        worker.close()
        return worker.desk.wanted

    def _called(self, module: str, name: str) -> None:
        """From now on it goes by that name, in the log and for `ps`."""
        log.info("%s becomes %s", self.own.name, name)
        configure(name, self.own.log_level)
        was = f"--was={self.own.name}"
        show_arguments([sys.executable, "-P", "-m", module, f"--name={name}", was])


def _change_of(worker: PrefillWorker | DecodeWorker) -> Callable[[], bool]:
    """Whether it was told to take the other role, and has finished what it had."""
    held = partial(_held_by, worker)
    leaving = Leaving(CHANGE_SECONDS, worker.config.heartbeat, held, worker.counters)
    return lambda: leaving.over(worker.desk.wanted is not None)


def _held_by(worker: PrefillWorker | DecodeWorker) -> int:
    """Requests, and memory that a launch or a reader still needs of those that are over."""
    load = worker.load()
    return load.requests + load.pages_used + load.rows_used


def published(path: str, model: LoadedModel) -> Publication | None:
    """What readers of this memory look for at `path`, and nowhere else from now on. Raises `ConfigError`."""
    if model.publication:
        model.publication.withdraw()
    shared = model.pool.memory.shared
    if not path or shared is None:
        return None
    return Publication(Path(path), PublishedMemory(model.backend.identity, shared, model.weights.shared))
