"""Our own way through the layers of the Llama family: few operations, each over all rows at once.

A library's layers take longer to start their operations than to compute them: small models on a CPU, decode
steps on a GPU. These are the same layers with every product that shares its input made one, and with all that
lies between products in one kernel each. A CPU and a GPU have their own kernels and products (`cpu`, `cuda`).
Whoever loads a checkpoint compares them with the library's own answers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
import torch
from torch import Tensor

from xgr_kernels.row_ops import gated_silu, norm_and_rotate, residual_norm
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.head import Head
from xgr_runtime.model.base import Stage
from xgr_runtime.model.stages import StoringStage
from xgr_runtime.wire.messages import ModelIdentity

HfModel: TypeAlias = Any  # transformers' models are not typed

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are these."""
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
HEAD, HEAD_BIAS = "lm_head.weight", "lm_head.bias"

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
"""Parts of a layer that share their input."""

STATIC_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary positions whose frequencies do not depend on the prompt."""

Weights: TypeAlias = Mapping[str, Tensor]  # by their names in the library's model
Product: TypeAlias = Callable[[Tensor], Tensor]  # x [N, in] -> [N, out]
MakeProduct: TypeAlias = Callable[
    [Sequence[str]], Product
]  # of linear layers, by name, that share their input


class LayerFacts(msgspec.Struct, frozen=True):
    """What these layers need to know of a checkpoint besides its weights."""

    identity: ModelIdentity
    q_heads: int
    max_positions: int
    scale: float  # of attention
    eps: float  # of the norms of the residual stream
    head_eps: float | None  # of those of queries and keys; None: there are none
    tied: bool  # whether the embedding is also the head
    frequencies: list[float]  # of rotary positions, [D / 2]
    rotary_scale: float


class FusedBackend:
    """A checkpoint of the family, run by the kernels that are named `kernels`."""

    name = "transformers"  # whose embedding, rotary positions and weights these are

    def __init__(self, facts: LayerFacts, weights: Weights, product: MakeProduct, kernels: str) -> None:
        """`weights` has at least those that are in no product. Raises KeyError if a weight is missing."""
        self.facts = facts
        self.identity = identity = facts.identity
        self.q_heads, self.max_positions = facts.q_heads, facts.max_positions
        self.prunes = True
        self._stores = kernels == "cuda"
        self._embedding: Tensor = weights[EMBEDDING]
        self.device = self._embedding.device
        self._rotary = _Rotary(facts, self.device)
        self._layers = [_Layer(index, facts, weights, product, kernels) for index in range(identity.layers)]
        self._norm = _Norm(weights[NORM], facts.eps, kernels)
        self.head = Head(weights[head_of(facts)], weights.get(HEAD_BIAS), identity.vocab)

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        """See `ModelBackend.forward`."""
        with torch.inference_mode():
            x = self._embedding.index_select(0, tokens)  # [N, H], the residual stream
            storing = stage if self._stores and isinstance(stage, StoringStage) else None
            run = _Run(*self._rotary(positions), stage, storing)
            delta: Tensor | None = None
            for layer in self._layers:
                x, delta = layer(x, delta, run, keep if layer is self._layers[-1] else None)
            return self._norm(x, delta)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `ModelBackend.logits`."""
        return self.head.logits(hidden)


def for_gpu(model_type: str, device: str) -> bool:
    """Whether models of this type have layers of ours on `device`, a GPU."""
    return model_type in FAMILY and torch.device(device).type == "cuda"


def facts_of(model: HfModel, identity: ModelIdentity, q_heads: int, max_positions: int) -> LayerFacts:
    """Of the library's `model`. Raises AttributeError for one with other parts, ModelError."""
    decoder = model.base_model
    attention, rotary = decoder.layers[0].self_attn, decoder.rotary_emb
    if rotary.rope_type not in STATIC_ROTARY:
        raise ModelError(f"rotary positions of type {rotary.rope_type} may depend on the prompt")
    return LayerFacts(
        identity,
        q_heads,
        max_positions,
        scale=float(attention.scaling),
        eps=float(decoder.norm.variance_epsilon),
        head_eps=float(attention.q_norm.variance_epsilon) if hasattr(attention, "q_norm") else None,
        tied=model.get_output_embeddings().weight is decoder.embed_tokens.weight,
        frequencies=rotary.inv_freq.float().tolist(),
        rotary_scale=float(rotary.attention_scaling),
    )


def weights_of(model: HfModel) -> Weights:
    """Those of the library's `model`."""
    return {name: weight.detach() for name, weight in model.named_parameters(remove_duplicate=False)}


def head_of(facts: LayerFacts) -> str:
    """The name of the head's weights."""
    return EMBEDDING if facts.tied else HEAD


class _Run(NamedTuple):
    """What all layers of one forward are given."""

    cos: Tensor  # [N, D / 2]
    sin: Tensor
    stage: Stage
    storing: (
        StoringStage | None
    )  # the same stage, if it says where keys and values go and kernels put them there


class _Rotary:
    """Rotary positions, as the library computes them, to the bit."""

    def __init__(self, facts: LayerFacts, device: torch.device) -> None:
        self._frequencies = torch.tensor(facts.frequencies, dtype=torch.float32, device=device)
        self._scale = facts.rotary_scale

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [N] -> cosines and sines [N, D / 2]."""
        angles = positions[:, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self._scale == 1.0 else (cos * self._scale, sin * self._scale)


class _Layer:
    """One layer: attention, then the gated products."""

    def __init__(
        self, index: int, facts: LayerFacts, weights: Weights, product: MakeProduct, kernels: str
    ) -> None:
        self._index = index
        self._heads = facts.q_heads, facts.identity.kv_heads
        self._scale = facts.scale
        self._kernels = kernels

        def name(part: str) -> str:
            return f"model.layers.{index}.{part}"

        def norm(part: str) -> _Norm:
            return _Norm(weights[name(f"{part}.weight")], facts.eps, kernels)

        self._before, self._between = norm("input_layernorm"), norm("post_attention_layernorm")
        self._qkv = product([name(part) for part in QKV])
        self._out = product([name("self_attn.o_proj")])
        self._gate_up = product([name(part) for part in GATE_UP])
        self._down = product([name("mlp.down_proj")])
        self._head_norms: tuple[Tensor, Tensor] | None = None
        if facts.head_eps is not None:
            q_norm, k_norm = (weights[name(f"self_attn.{x}_norm.weight")] for x in "qk")
            self._head_norms = q_norm, k_norm
        self._eps = facts.head_eps or 0.0

    def __call__(
        self, x: Tensor, delta: Tensor | None, run: _Run, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream x [N, H], to which `delta` is still to be added; so is what is returned.

        With `keep` [M] the stage answers for these rows alone, and only they go on.
        """
        o = self._attend(self._qkv(self._before(x, delta)), run)  # [N or M, Hq, D]
        if keep is not None:
            x = x[keep]
        delta = self._out(o.reshape(len(o), -1))
        gate_up = self._gate_up(self._between(x, delta))
        return x, self._down(gated_silu(gate_up, self._kernels))

    def _attend(self, qkv: Tensor, run: _Run) -> Tensor:
        stored = run.storing.places(self._index) if run.storing else None
        q, k, v = norm_and_rotate(
            qkv, self._heads, run.cos, run.sin, self._head_norms, self._eps, self._kernels, stored
        )
        if run.storing:
            return run.storing.attend_stored(self._index, q, self._scale)
        return run.stage.attend(self._index, q, k, v, self._scale)


class _Norm:
    """An RMS norm of the residual stream."""

    def __init__(self, weight: Tensor, eps: float, kernels: str) -> None:
        self._weight = weight
        self._eps = eps
        self._kernels = kernels

    def __call__(self, x: Tensor, delta: Tensor | None) -> Tensor:
        """Adds `delta` to x in place, which stays the residual stream; returns x normed."""
        return residual_norm(x, delta, self._weight, self._eps, self._kernels)
