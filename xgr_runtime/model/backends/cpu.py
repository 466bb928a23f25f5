"""Our own layers on a CPU: float32, products in oneDNN, whose layout is made at load, the rest compiled."""

import logging
from collections.abc import Sequence

from torch import Tensor

from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.fused import (
    FAMILY,
    FusedBackend,
    HfModel,
    LayerFacts,
    Weights,
    facts_of,
    weights_of,
)
from xgr_runtime.model.backends.packed_linear import PackedLinear
from xgr_runtime.model.backends.selfcheck import check_backend
from xgr_runtime.model.base import ModelBackend

log = logging.getLogger(__name__)


class CpuBackend(FusedBackend):
    """A checkpoint of the family in float32; its weights are laid out anew."""

    def __init__(self, facts: LayerFacts, weights: Weights) -> None:
        """Raises KeyError if a weight is missing."""

        def product(names: Sequence[str]) -> PackedLinear:
            return PackedLinear(
                [weights[f"{name}.weight"] for name in names], [weights.get(f"{name}.bias") for name in names]
            )

        super().__init__(facts, weights, product, "cpu")


def own_way(library: ModelBackend, model: HfModel, want: Tensor) -> CpuBackend | None:
    """A backend in these layers, if it gives the logits `want` of the library's `model` too; else None."""
    runs = model.config.model_type in FAMILY and library.device.type == "cpu"
    if not runs or library.identity.dtype != "float32":
        return None
    try:
        facts = facts_of(model, library.identity, library.q_heads, library.max_positions)
        backend = CpuBackend(facts, weights_of(model))
        check_backend(backend, want, type(model).__name__)
    except (ModelError, AttributeError, KeyError) as error:  # a layer with more, or less, in it
        log.warning("the model runs in the library's layers, which is slower: %s", error)
        return None
    return backend
