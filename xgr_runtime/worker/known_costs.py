"""What launches cost when the same model ran on this machine before: a file per worker in the cache folder.

It is where a start begins, and no more: launches of now have the last word. What is damaged is ignored.
"""

import hashlib
import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xgr_runtime.cache.kernels import processor, version_of
from xgr_runtime.config import DecodeConfig, PrefillConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import write_whole
from xgr_runtime.scheduling.cost_model import LEAST, CostModel, Tried, seed_of
from xgr_runtime.wire.messages import ModelIdentity, StepCost

log = logging.getLogger(__name__)

FOLDER = "costs"
KEPT = 256  # files; those written last stay
KEEP_EVERY = 300.0  # seconds
_PACKAGES = ("xgr-runtime", "torch", "sglang")  # what runs the launches
_MOST_BYTES = 4096  # of a file; ours have some 200
_MOST_SECONDS = 3600.0  # that a launch, a token or a pair may cost


class KnownCosts:
    """The costs of one worker's launches, between this run and others."""

    def __init__(self, costs: CostModel, path: Path | None = None) -> None:
        self.costs = costs
        self._path = path  # None: nothing is kept
        self._kept_at = -math.inf
        self._writer: threading.Thread | None = None

    @classmethod
    def of(
        cls,
        costs: CostModel,
        config: PrefillConfig | DecodeConfig,
        model: ModelIdentity,
        cache: Path | None,
        how: Sequence[str],
    ) -> "KnownCosts":
        """Those of a worker with this configuration. `how`: in whose layers and kernels it runs."""
        parts = [
            type(config).__name__,
            config.device,
            config.threads,
            *how,
            *processor(),
            *map(version_of, _PACKAGES),
        ]
        key = hashlib.sha256(repr([parts, model]).encode()).hexdigest()[:24]
        return cls(costs, cache / FOLDER / f"{key}.json" if cache else None)

    def begin(self, tried: Sequence[Tried]) -> None:
        """Seed the model with launches that were tried just now, and with what is remembered."""
        self.costs.seed(seed_of(tried, self.remembered()))

    def remembered(self) -> StepCost | None:
        """What another run has learned; None where there is nothing that can be."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as stream:
                cost = msgspec.json.decode(stream.read(_MOST_BYTES), type=StepCost)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            log.warning("%s is ignored, it is not what launches cost: %s", self._path, error)
            return None
        if not _possible(cost):
            log.warning("%s is ignored, launches cannot cost that", self._path)
            return None
        return cost

    def keep_now_and_then(self, now: float) -> None:
        """Keep what was learned if it is time to, beside what the worker does: a disk may take long."""
        if now - self._kept_at < KEEP_EVERY or (self._writer and self._writer.is_alive()):
            return
        if self.costs.seen >= LEAST:
            self._kept_at = now
            self._writer = threading.Thread(target=self._write, args=[self.costs.cost], daemon=True)
            self._writer.start()

    def keep(self) -> None:
        """Keep what was learned: the worker ends."""
        if self.costs.seen >= LEAST:
            self._write(self.costs.cost)

    def _write(self, cost: StepCost | None) -> None:
        if self._path is None or not _possible(cost):
            return
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(self._path, msgspec.json.encode(cost))
            _remove_old(self._path.parent)
        except (OSError, ConfigError) as error:
            log.info("what launches cost is not kept: %s", error)


def _possible(cost: StepCost | None) -> bool:
    """Whether it is a cost from which finite seconds follow."""
    if cost is None:
        return False
    seconds = (cost.fixed, cost.per_token, cost.per_pair)
    sizes = cost.most_tokens > 0 and cost.most_pairs >= 0
    return sizes and all(0 <= part <= _MOST_SECONDS for part in seconds) and sum(seconds) > 0


def _remove_old(folder: Path) -> None:
    """Raises OSError."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[KEPT:]:
        path.unlink(missing_ok=True)
