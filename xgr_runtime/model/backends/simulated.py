"""A device that is not there: forwards take what a roofline says and compute nothing.

Everything around them is real: the wire, schedulers, the search over the trie. Answers are legal items, the
same for the same prompt, and mean nothing; nobody gets this backend without asking for it by name.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch import Tensor

from xgr_runtime.checkpoint import read_config, weight_files, weights_hash
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.head import Head
from xgr_runtime.model.base import DTYPES, PacedStage, Stage
from xgr_runtime.scheduling.roofline import Roofline, model_numbers, read_simulation, roofline_of
from xgr_runtime.wire.messages import ModelIdentity

log = logging.getLogger(__name__)

_STATES = 256  # different hidden states


class SimulatedBackend:
    """See `ModelBackend`. KV and logits have the sizes of the checkpoint, time is that of the roofline."""

    name = "simulated"
    prunes = True
    device = torch.device("cpu")

    def __init__(
        self, identity: ModelIdentity, q_heads: int, max_positions: int, roofline: Roofline, slower: float
    ) -> None:
        self.identity = identity
        self.q_heads = q_heads
        self.max_positions = max_positions
        self._roofline = roofline
        self._slower = slower
        random = torch.Generator().manual_seed(0)
        self._states = torch.randn(_STATES, identity.hidden, generator=random)
        weight = torch.randn(identity.vocab, identity.hidden, generator=random) / identity.hidden**0.5
        self.head = Head(weight, None, identity.vocab)

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        """See `ModelBackend.forward`. Layer after layer passes at its time; who sleeps is no load."""
        assert isinstance(stage, PacedStage)
        began, rows = time.monotonic(), len(tokens)
        kept = tokens if keep is None else tokens[keep]
        pairs = int(positions.sum()) + rows
        seconds = self._slower * self._roofline.seconds(rows, pairs, stage.shared_tokens + rows, len(kept))
        for layer in range(self.identity.layers):
            stage.passed(layer)
            until = began + seconds * (layer + 1) / self.identity.layers
            if (left := until - time.monotonic()) > 0:
                time.sleep(left)
        return self._states[kept % _STATES]

    def logits(self, hidden: Tensor) -> Tensor:
        """See `ModelBackend.logits`."""
        return self.head.logits(hidden)


def load_simulated(folder: Path, dtype: str, device: str) -> SimulatedBackend:
    """The device that the checkpoint's `simulation.json` describes. Raises ModelError."""
    if device != "cpu":
        raise ModelError("model backend simulated plays its device on a CPU: use --device cpu")
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not supported: use one of {', '.join(DTYPES)}")
    simulation = read_simulation(folder)
    roofline = roofline_of(simulation, folder)
    own, config = model_numbers(folder), read_config(folder)
    identity = ModelIdentity(
        weights_hash=weights_hash(folder, weight_files(folder)),
        dtype=dtype,
        layers=own.layers,
        kv_heads=own.kv_heads,
        head_dim=own.head_dim,
        hidden=own.hidden,
        vocab=own.vocab,
        tp_size=1,
    )
    log.warning(
        "nothing is computed: this plays a %s, %g times slower; its answers mean nothing",
        roofline.device.name,
        simulation.slower,
    )
    positions = int(config.get("max_position_embeddings") or 1 << 20)
    return SimulatedBackend(identity, own.q_heads, positions, roofline, simulation.slower)
