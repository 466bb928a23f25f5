"""A CPU's own way through the layers of the Llama family: few operations, each over all rows at once.

On small models a library's layers take longer to start their operations than to compute them. These are the
same layers with every product that shares its input made one, and with all that lies between products in one
compiled pass each. Whoever loads a checkpoint compares them with the library's own answers.
"""

import logging
from typing import Any, TypeAlias

import torch
from torch import Tensor

from xgr_kernels.row_ops import gated_silu, norm_and_rotate, residual_norm
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.head import Head
from xgr_runtime.model.backends.packed_linear import PackedLinear
from xgr_runtime.model.backends.selfcheck import check_backend
from xgr_runtime.model.base import ModelBackend, Stage

log = logging.getLogger(__name__)

HfModel: TypeAlias = Any  # transformers' models are not typed

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are these."""


class CpuBackend:
    """A checkpoint of the family in float32; weights are copied out of the library's model."""

    name = "transformers"  # whose embedding, rotary positions and weights these are

    def __init__(self, model: HfModel, library: ModelBackend) -> None:
        self.identity = library.identity
        self.q_heads, self.max_positions = library.q_heads, library.max_positions
        self.device = torch.device("cpu")
        self.prunes = True
        decoder, head = model.base_model, model.get_output_embeddings()
        self._embedding: Tensor = decoder.embed_tokens.weight.detach()
        self._rotary = decoder.rotary_emb
        self._layers = [_Layer(layer, index, library) for index, layer in enumerate(decoder.layers)]
        self._norm = _Norm(decoder.norm)
        self._head = Head(head.weight, head.bias, self.identity.vocab)

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        """See `ModelBackend.forward`."""
        with torch.inference_mode():
            x = self._embedding.index_select(0, tokens)  # [N, H], the residual stream
            cos, sin = (part[0].contiguous() for part in self._rotary(x, positions[None]))  # [N, D]
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


def own_way(library: ModelBackend, model: HfModel, want: Tensor) -> ModelBackend:
    """A `CpuBackend` of the library's `model`, if it gives the logits `want` too; else `library` itself."""
    if (
        model.config.model_type not in FAMILY
        or library.identity.dtype != "float32"
        or library.device.type != "cpu"
    ):
        return library
    try:
        backend = CpuBackend(model, library)
        check_backend(backend, want, type(model).__name__)
    except (ModelError, AttributeError) as error:  # a layer of that family with more, or less, in it
        log.warning("the model runs in the library's layers, which is slower: %s", error)
        return library
    return backend


class _Layer:
    """One layer: attention, then the gated products."""

    def __init__(self, layer: HfModel, index: int, library: ModelBackend) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index = index
        self._heads = library.q_heads, library.identity.kv_heads
        self._scale = float(attention.scaling)
        self._before, self._between = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._qkv = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = _joined(attention.o_proj)
        self._gate_up = _joined(mlp.gate_proj, mlp.up_proj)
        self._down = _joined(mlp.down_proj)
        normed = hasattr(attention, "q_norm")
        self._head_norms = (attention.q_norm.weight, attention.k_norm.weight) if normed else None
        self._eps = attention.q_norm.variance_epsilon if normed else 0.0

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

    def __init__(self, norm: HfModel) -> None:
        self._weight: Tensor = norm.weight.detach()
        self._eps = float(norm.variance_epsilon)

    def __call__(self, x: Tensor, delta: Tensor | None) -> Tensor:
        """Adds `delta` to x in place, which stays the residual stream; returns x normed."""
        return residual_norm(x, delta, self._weight, self._eps)


def _joined(*linears: HfModel) -> PackedLinear:
    return PackedLinear([part.weight for part in linears], [part.bias for part in linears])
