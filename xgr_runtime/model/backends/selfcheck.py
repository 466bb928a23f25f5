"""The start-up self-check: does a checkpoint, run through a stage, compute what Hugging Face's model does?

Configs cannot be trusted to name everything a model does, so two short sequences are run both ways on the
real weights, before any port opens. It costs two forwards of a few tokens.
"""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from xgr_kernels.row_ops import KvSlots
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.refusals import describe
from xgr_runtime.model.base import DTYPES, ModelBackend

_SEQUENCES, _LENGTH = 2, 8

# Relative to the largest logit. The two ways differ in the order of sums only. float32 rounds to 6e-8 and a
# few dozen layers add up to about 1e-5. bfloat16 rounds to 4e-3, float16 to 5e-4; our stage keeps attention
# weights in float32 where transformers' eager attention rounds them, and every layer rounds again.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2, "float16": 1e-2}

# The share of rows that must keep to it. In 16 bits rounding may send a token to another expert where two
# are all but equal, and then its whole row is another one.
_SHARE = {"float32": 1.0, "bfloat16": 0.75, "float16": 0.75}


HfModel: TypeAlias = Any  # transformers' models are not typed


def reference_logits(model: HfModel, vocab: int) -> Tensor:
    """What `model` answers with its own eager attention, [16, vocab] float32; for `check_backend`.

    Eager is the reference because it is each architecture's own code: the shared SDPA path would ignore soft
    caps just as we do. Raises ModelError if the model does not run at all.
    """
    try:
        with torch.inference_mode():
            tokens = _tokens(vocab).to(model.device)
            logits: Tensor = model(input_ids=tokens, use_cache=False).logits
            return logits.float().flatten(0, 1)
    except Exception as error:  # a config that the model was built from but cannot be run with
        raise ModelError(f"{type(model).__name__} does not run: {describe(error)}") from error


def check_backend(backend: ModelBackend, want: Tensor, architecture: str, storing: bool = False) -> None:
    """Raises ModelError, naming `architecture`, unless `backend` gives the logits `want` through a stage.

    `storing`: the stage says where keys and values go, and the layers put them there.
    """
    stage = (_StoringCheckStage if storing else _CheckStage)(backend, architecture)
    # Packed into one row of tokens: an architecture that mixes neighbours outside of attention shows here.
    tokens = _tokens(backend.identity.vocab).flatten().to(backend.device)
    hidden = backend.forward(tokens, torch.arange(_LENGTH, device=backend.device).repeat(_SEQUENCES), stage)
    stage.finish()
    dtype, errors = backend.identity.dtype, (backend.logits(hidden) - want).abs().amax(dim=-1)  # [16]
    error = float(errors.quantile(_SHARE[dtype]) / want.abs().max().clamp_min(1e-6))
    limit = _TOLERANCE[dtype]
    if not error <= limit:  # NaN fails too
        raise ModelError(
            f"{architecture} is not supported: with plain causal attention its logits are off by "
            f"{error:.1e} of the largest from Hugging Face's, {limit:.0e} is allowed"
        )


def attention_scale(backend: ModelBackend) -> float:
    """What the scores of attention are multiplied with, in every layer.

    Attention that is planned before a forward needs it in advance. Raises ModelError if layers differ.
    """
    probe = _ScaleProbe()
    token = torch.zeros(1, dtype=torch.int64, device=backend.device)
    backend.forward(token, token, probe)
    if len(probe.scales) != 1:
        raise ModelError(
            f"its layers scale attention differently, by {sorted(probe.scales)}: use --device cpu"
        )
    return probe.scales.pop()


class _ScaleProbe:
    """Attention of a single token, which is its value; keeps the scales that layers ask for."""

    def __init__(self) -> None:
        self.scales: set[float] = set()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.scales.add(scale)
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def _tokens(vocab: int) -> Tensor:
    """Two different sequences of token ids spread over the vocabulary, [2, 8]."""
    count = _SEQUENCES * _LENGTH
    return (torch.arange(count) * 7919 + 3).remainder(vocab).view(_SEQUENCES, _LENGTH)


class _CheckStage:
    """Causal attention over the packed sequences; checks shapes and that each layer calls once, in order."""

    def __init__(self, backend: ModelBackend, architecture: str) -> None:
        self._model, self._q_heads = backend.identity, backend.q_heads
        self._architecture = architecture
        self._calls = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        model, rows = self._model, _SEQUENCES * _LENGTH
        kv_shape = (rows, model.kv_heads, model.head_dim)
        if q.shape != (rows, self._q_heads, model.head_dim) or k.shape != kv_shape or v.shape != kv_shape:
            shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
            raise ModelError(f"{self._architecture} is not supported: attention got {shapes}")
        if layer != self._calls:
            raise ModelError(
                f"{self._architecture} is not supported: layer {layer} came as call {self._calls}"
            )
        self._calls += 1
        q, k, v = (x.reshape(_SEQUENCES, _LENGTH, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return o.transpose(1, 2).flatten(0, 1)

    def finish(self) -> None:
        """Raises ModelError."""
        if self._calls != self._model.layers:
            raise ModelError(
                f"{self._architecture} is not supported: {self._calls} of {self._model.layers} layers "
                "have attention"
            )


class _StoringCheckStage(_CheckStage):
    """The same for layers that put keys and values into their places, which are not in the rows' order."""

    def __init__(self, backend: ModelBackend, architecture: str) -> None:
        super().__init__(backend, architecture)
        model, rows = backend.identity, _SEQUENCES * _LENGTH
        self._slots = torch.arange(rows, device=backend.device).flip(0)
        self._shape = (2, rows, model.kv_heads, model.head_dim)
        self._kv = torch.empty(0)  # of the layer that runs

    def places(self, layer: int) -> KvSlots:
        """See `StoringStage.places`."""
        dtype = DTYPES[self._model.dtype]
        self._kv = torch.full(self._shape, torch.nan, dtype=dtype, device=self._slots.device)
        return KvSlots(self._kv[0], self._kv[1], self._slots)

    def attend_stored(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """See `StoringStage.attend_stored`."""
        return self.attend(layer, q, self._kv[0][self._slots], self._kv[1][self._slots], scale)
