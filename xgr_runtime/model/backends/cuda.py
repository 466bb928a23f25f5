"""Our own layers on a GPU: products in cuBLAS, the rest in Triton, all of it fit for a captured graph.

The library's weights are joined where products share their input, so that they can still be shared with
another worker, and are never held twice.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.fused import (
    GATE_UP,
    QKV,
    FusedBackend,
    HfModel,
    LayerFacts,
    Product,
    facts_of,
)
from xgr_runtime.model.backends.huggingface import Checkpoint
from xgr_runtime.model.backends.last_layer import prunes
from xgr_runtime.model.backends.refusals import describe
from xgr_runtime.model.backends.selfcheck import check_backend
from xgr_runtime.model.base import Place, Stage
from xgr_runtime.model.memory.shared_weights import give_back_unused

log = logging.getLogger(__name__)


class JoinedWeights(nn.Module):
    """All weights of a model; of those whose products share an input, the first one's name holds all."""

    def __init__(self, weights: Mapping[str, nn.Parameter], layers: int) -> None:
        """The library's `weights`, by name, become views: its model still runs, until these are moved.

        Raises KeyError where one of several has no weight or no bias and another has.
        """
        super().__init__()
        left = dict(weights)
        for layer in range(layers):
            for group in (QKV, GATE_UP):
                for kind in ("weight", "bias"):
                    names = [f"model.layers.{layer}.{part}.{kind}" for part in group]
                    if kind == "weight" or any(name in left for name in names):
                        self._register(names[0], _join([left.pop(name) for name in names]))
        for name, weight in left.items():
            self._register(name, weight)

    def by_name(self) -> dict[str, Tensor]:
        """The weights as they are now."""
        named = self.named_parameters(remove_duplicate=False)
        return {name.replace("/", "."): weight.detach() for name, weight in named}

    def _register(self, name: str, weight: nn.Parameter) -> None:
        self.register_parameter(name.replace(".", "/"), weight)  # a dot would mean a module


class CudaBackend(FusedBackend):
    """A checkpoint of the family in the weights' own type, on their device."""

    def __init__(self, facts: LayerFacts, weights: Mapping[str, Tensor]) -> None:
        """`weights` are joined. Raises KeyError if one is missing."""

        def product(names: Sequence[str]) -> Product:
            weight, bias = weights[f"{names[0]}.weight"], weights.get(f"{names[0]}.bias")
            return lambda x: torch.nn.functional.linear(x, weight, bias)

        super().__init__(facts, weights, product, "cuda")

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        """See `ModelBackend.forward`."""
        # Triton launches on the device in use, whatever it is given.
        with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]
            return super().forward(tokens, positions, stage, keep)


def own_way(
    model: HfModel, checkpoint: Checkpoint, dtype: str, want: Tensor | None, place: Place | None
) -> CudaBackend | None:
    """A backend in these layers, if it gives the logits `want` of the library's `model` too; else None.

    Without `want` it was checked before, and is right. `model` must not run again where there is a backend:
    `place` may have moved its weights.
    """
    try:
        facts = facts_of(model, checkpoint.identity(dtype), checkpoint.q_heads, checkpoint.max_positions)
        weights = JoinedWeights(dict(model.named_parameters(remove_duplicate=False)), facts.identity.layers)
        if want is not None:
            _check(CudaBackend(facts, weights.by_name()), want, type(model).__name__)
    except (
        Exception
    ) as error:  # of any kind: a layer with other parts in it, kernels that do not compile here
        if want is None:
            raise
        log.warning("the model does not run in our own layers: %s", describe(error))
        return None
    if place is not None:
        _forget_parts(model, weights)
        place(weights)
    give_back_unused()
    return CudaBackend(facts, weights.by_name())


def _check(backend: CudaBackend, want: Tensor, architecture: str) -> None:
    """Raises ModelError unless all ways through the layers give these logits."""
    check_backend(backend, want, architecture)
    check_backend(backend, want, architecture, storing=True)
    if not prunes(backend):
        raise ModelError(f"{architecture}: the last layer computes something else for the last tokens alone")


def _forget_parts(model: HfModel, joined: JoinedWeights) -> None:
    """Or they would keep memory that nothing else needs once `joined` has moved."""
    kept = {id(weight) for weight in joined.parameters()}
    for weight in model.parameters():
        if id(weight) not in kept:
            weight.data = weight.data.new_empty(0)


def _join(parts: Sequence[nn.Parameter]) -> nn.Parameter:
    """One behind the other along their first dimension, in memory that the parts share from here on."""
    whole = torch.cat([part.data for part in parts])
    end = 0
    for part in parts:
        end += len(part)
        part.data = whole[end - len(part) : end]
    return nn.Parameter(whole, requires_grad=False)
