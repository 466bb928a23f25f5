"""A CPU's own way through the layers of the Llama family: few operations, each over all rows at once.

On small models a library's layers take longer to start their operations than to compute them. These are the
same layers with every product that shares its input made one, and with all that lies between products in one
compiled pass each. Whoever loads a checkpoint compares them with the library's own answers.
"""

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import torch
from torch import Tensor

from xgr_kernels.row_ops import gated_silu, norm_and_rotate, residual_norm
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.head import Head
from xgr_runtime.model.backends.packed_linear import PackedLinear
from xgr_runtime.model.backends.selfcheck import check_backend
from xgr_runtime.model.base import ModelBackend, Stage
from xgr_runtime.wire.messages import ModelIdentity

log = logging.getLogger(__name__)

HfModel: TypeAlias = Any  # transformers' models are not typed

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are these."""
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
HEAD, HEAD_BIAS = "lm_head.weight", "lm_head.bias"


STATIC_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary positions whose frequencies do not depend on the prompt."""

Weights: TypeAlias = Mapping[str, Tensor]  # float32, by their names in the library's model


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


class CpuBackend:
    """A checkpoint of the family in float32; its weights are laid out anew."""

    name = "transformers"  # whose embedding, rotary positions and weights these are

    def __init__(self, facts: LayerFacts, weights: Weights) -> None:
        """Raises KeyError if a weight is missing."""
        self.facts = facts
        self.identity = identity = facts.identity
        self.q_heads, self.max_positions = facts.q_heads, facts.max_positions
        self.device = torch.device("cpu")
        self.prunes = True
        self._embedding: Tensor = weights[EMBEDDING]
        self._rotary = _Rotary(facts)
        self._layers = [_Layer(weights, index, facts) for index in range(identity.layers)]
        self._norm = _Norm(weights[NORM], facts.eps)
        self._head = Head(weights[head_of(facts)], weights.get(HEAD_BIAS), identity.vocab)

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        """See `ModelBackend.forward`."""
        with torch.inference_mode():
            x = self._embedding.index_select(0, tokens)  # [N, H], the residual stream
            cos, sin = self._rotary(positions)  # [N, D / 2]
            delta: Tensor | None = None
            for layer in self._layers:
                kept = keep if layer is self._layers[-1] else None
                x, delta = layer.run(x, delta, cos, sin, stage, kept)
            return self._norm(x, delta)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `ModelBackend.logits`."""
        return self._head.logits(hidden)

    def logits_into(self, hidden: Tensor, out: Tensor) -> None:
        """See `ModelBackend.logits_into`."""
        self._head.logits_into(hidden, out)


def own_way(library: ModelBackend, model: HfModel, want: Tensor) -> CpuBackend | None:
    """A backend in these layers, if it gives the logits `want` of the library's `model` too; else None."""
    runs = model.config.model_type in FAMILY and library.device.type == "cpu"
    if not runs or library.identity.dtype != "float32":
        return None
    try:
        backend = CpuBackend(facts_of(model, library), weights_of(model))
        check_backend(backend, want, type(model).__name__)
    except (ModelError, AttributeError, KeyError) as error:  # a layer with more, or less, in it
        log.warning("the model runs in the library's layers, which is slower: %s", error)
        return None
    return backend


def facts_of(model: HfModel, library: ModelBackend) -> LayerFacts:
    """Of the `library`'s `model`. Raises AttributeError for one with other parts, ModelError."""
    decoder = model.base_model
    attention, rotary = decoder.layers[0].self_attn, decoder.rotary_emb
    if rotary.rope_type not in STATIC_ROTARY:
        raise ModelError(f"rotary positions of type {rotary.rope_type} may depend on the prompt")
    return LayerFacts(
        library.identity,
        library.q_heads,
        library.max_positions,
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


class _Rotary:
    """Rotary positions, as the library computes them, to the bit."""

    def __init__(self, facts: LayerFacts) -> None:
        self._frequencies = torch.tensor(facts.frequencies, dtype=torch.float32)
        self._scale = facts.rotary_scale

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [N] -> cosines and sines [N, D / 2]."""
        angles = positions[:, None].float() * self._frequencies
        return angles.cos() * self._scale, angles.sin() * self._scale


class _Layer:
    """One layer: attention, then the gated products."""

    def __init__(self, weights: Weights, index: int, facts: LayerFacts) -> None:
        self._index = index
        self._heads = facts.q_heads, facts.identity.kv_heads
        self._scale = facts.scale

        def joined(*names: str) -> PackedLinear:
            parts = [f"model.layers.{index}.{name}" for name in names]
            return PackedLinear(
                [weights[f"{part}.weight"] for part in parts], [weights.get(f"{part}.bias") for part in parts]
            )

        def norm(name: str) -> Tensor:
            return weights[f"model.layers.{index}.{name}.weight"]

        self._before = _Norm(norm("input_layernorm"), facts.eps)
        self._between = _Norm(norm("post_attention_layernorm"), facts.eps)
        self._qkv = joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self._out = joined("self_attn.o_proj")
        self._gate_up = joined("mlp.gate_proj", "mlp.up_proj")
        self._down = joined("mlp.down_proj")
        self._head_norms: tuple[Tensor, Tensor] | None = None
        if facts.head_eps is not None:
            self._head_norms = norm("self_attn.q_norm"), norm("self_attn.k_norm")
        self._eps = facts.head_eps or 0.0

    def run(
        self, x: Tensor, delta: Tensor | None, cos: Tensor, sin: Tensor, stage: Stage, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream x [N, H], to which `delta` is still to be added; so is what is returned.

        With `keep` [M] the stage answers for these rows alone, and only they go on.
        """
        qkv = self._qkv(self._before(x, delta))
        q, k, v = norm_and_rotate(qkv, self._heads, cos, sin, self._head_norms, self._eps)
        o = stage.attend(self._index, q, k, v, self._scale)  # [N or M, Hq, D]
        if keep is not None:
            x = x[keep]
        delta = self._out(o.reshape(len(o), -1))
        return x, self._down(gated_silu(self._gate_up(self._between(x, delta))))


class _Norm:
    """An RMS norm of the residual stream."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, x: Tensor, delta: Tensor | None) -> Tensor:
        """Adds `delta` to x in place, which stays the residual stream; returns x normed."""
        return residual_norm(x, delta, self._weight, self._eps)
