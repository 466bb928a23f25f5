"""The production backend: SGLang's own layers, with our stage in the place of its attention backend.

SGLang's models ask a `ForwardContext` for the attention backend of the running forward. Ours passes q, k, v
to the stage; SGLang's memory pools, scheduler and sampler are never made.
"""

import inspect
import threading
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from xgr_runtime.checkpoint import check_globbed
from xgr_runtime.errors import ConfigError, ModelError
from xgr_runtime.model.backends.head import Head
from xgr_runtime.model.backends.huggingface import Checkpoint, load_eager, open_checkpoint
from xgr_runtime.model.backends.last_layer import KeptRows, prune, prunes
from xgr_runtime.model.backends.refusals import describe
from xgr_runtime.model.backends.selfcheck import check_backend, reference_logits
from xgr_runtime.model.base import Place, Stage
from xgr_runtime.model.kept_checks import Finding, KeptChecks
from xgr_runtime.model.sglang.startup import start_model, undisturbed
from xgr_runtime.model.sglang.versions import check_version, installed_version

with undisturbed():  # and after the shims, which `startup` installs
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
    from sglang.srt.model_executor import forward_batch_info as batches
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

Layer: TypeAlias = Any  # a RadixAttention; SGLang is not typed
Batch: TypeAlias = Any

_FOREIGN = "sglang.srt.models.transformers"  # where SGLang wraps models that it has no layers for
_INPUTS = ("input_ids", "positions", "forward_batch")
_REMEDY = "use --model-backend transformers"
_running = threading.RLock()  # SGLang keeps the running forward's context in a global


class SGLangBackend:
    """A causal decoder in SGLang's layers; made by `load_sglang`."""

    name = "sglang"

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, dtype: str) -> None:
        """Raises ModelError where `model` is not built as expected."""
        self.identity = checkpoint.identity(dtype)
        self.q_heads, self.max_positions = checkpoint.q_heads, checkpoint.max_positions
        _refuse_layers(model)
        self._decoder = _decoder(model)
        self.head = _head(model, self._decoder, self.identity.vocab)
        self.device: torch.device = next(model.parameters()).device
        self._stage: Stage | None = None  # of the running forward
        self.prunes = False
        layers = getattr(self._decoder, "layers", None)
        if isinstance(layers, nn.ModuleList):
            prune(layers[self.identity.layers - 1], lambda _: self._stage, rows=0)

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        """See `ModelBackend.forward`."""
        if keep is not None:
            stage = KeptRows(stage, keep, self.identity.layers - 1)
        context = ForwardContext(attn_backend=_StageAttention(stage))
        with torch.inference_mode(), _running, forward_context(context):
            self._stage = stage
            hidden = self._decoder(
                input_ids=tokens, positions=positions, forward_batch=_batch(tokens, positions)
            )
        assert isinstance(hidden, Tensor), "nobody asked for hidden states of inner layers"
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `ModelBackend.logits`."""
        return self.head.logits(hidden)


def load_sglang(
    folder: Path,
    dtype: str,
    any_version: bool = False,
    device: str = "cpu",
    place: Place | None = None,
    checks: KeptChecks | None = None,
) -> SGLangBackend:
    """The checkpoint in `folder`, checked against Hugging Face's model. Raises ModelError, in one line.

    Hugging Face's model is the reference, because SGLang's own attention would prove nothing about SGLang's
    layers, which differ on a CPU from those that most people run. It is gone before SGLang loads the
    weights, so that there is never a second copy of them. What was checked before, on this machine with all
    of this, is not checked again.
    """
    version = installed_version()
    assert version is not None, "this module imports sglang"
    check_version(version, any_version)
    checkpoint = open_checkpoint(folder)
    check_globbed(folder)
    checks = checks or KeptChecks()
    check = checks.of(folder, checkpoint.weights_hash, f"sglang {version}", dtype, device)
    with checks.timed():
        reference = None if check.known else _reference(checkpoint, dtype, device)
    architecture = reference[1] if reference else str(checkpoint.config.model_type)
    try:
        model = start_model(folder, dtype, device)
        if place is not None:
            place(model)
        backend = SGLangBackend(model, checkpoint, dtype)
        with checks.timed():
            if check.known:
                backend.prunes = check.known.prunes
            else:
                backend.prunes = _checked(backend, reference)
                check.keep(Finding(backend.prunes))
    except ModelError as error:
        raise ModelError(f"sglang {version} on {folder}: {error}: {_REMEDY}") from error
    except ConfigError:
        raise
    except Exception as error:  # of any kind: its layers meet a machine or a config that they are not for
        reason = f"cannot run {architecture} here: {describe(error)}"
        raise ModelError(f"sglang {version} {reason}: {_REMEDY}") from error
    return backend


def _checked(backend: SGLangBackend, reference: tuple[Tensor, str] | None) -> bool:
    """Whether it prunes, after its answers were found to be those of the reference. Raises ModelError."""
    assert reference is not None, "only what was found before needs none"
    check_backend(backend, *reference)
    return prunes(backend)


def _reference(checkpoint: Checkpoint, dtype: str, device: str) -> tuple[Tensor, str]:
    """Hugging Face's logits, and the name of its model's class."""
    model = load_eager(checkpoint, dtype, device)
    return reference_logits(model, checkpoint.identity(dtype).vocab), type(model).__name__


class _StageAttention(AttentionBackend):  # type: ignore[misc]
    """What SGLang's layers take for an attention backend; one per forward."""

    token_to_kv_pool = None  # some layers ask whether they could write to it themselves

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def support_triton(self) -> bool:
        """No: there is no KV memory for its kernels to work on."""
        return False

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Layer,
        forward_batch: Batch,
        save_kv_cache: bool = True,
        **extras: object,
    ) -> Tensor:
        """q [N, Hq * D], k and v [N, Hkv, D] -> [N, Hq * D]."""
        if k is None or v is None:
            _refuse(layer, "shares the keys and values of another layer")
        for extra, value in extras.items():
            if value is not None:
                _refuse(layer, f"asks its attention for {extra}")
        rows = q.shape[0]
        q = q.view(rows, layer.tp_q_head_num, layer.qk_head_dim)
        return self._stage.attend(int(layer.layer_id), q, k, v, float(layer.scaling)).reshape(rows, -1)

    forward_extend = forward_decode


def _batch(tokens: Tensor, positions: Tensor) -> Batch:
    """One row, one sequence: which rows see which keys is the stage's business, not SGLang's."""
    nowhere = torch.zeros_like(tokens)
    return batches.ForwardBatch(
        forward_mode=batches.ForwardMode.DECODE,
        batch_size=tokens.shape[0],
        input_ids=tokens,
        req_pool_indices=nowhere,
        seq_lens=positions + 1,
        out_cache_loc=nowhere,
        seq_lens_sum=0,
        positions=positions,
        capture_hidden_mode=batches.CaptureHiddenMode.NULL,
    )


def _decoder(model: nn.Module) -> nn.Module:
    """The layers between embedding and final norm, without SGLang's head and its logits processor."""
    if type(model).__module__ == _FOREIGN:
        raise ModelError("SGLang has no layers of its own for this architecture")
    inner = getattr(model, "model", None)
    if not isinstance(inner, nn.Module):
        raise ModelError(f"{type(model).__name__} has no `model` of decoder layers")
    parameters = inspect.signature(inner.forward).parameters
    missing = [name for name in _INPUTS if name not in parameters]
    if missing:
        raise ModelError(f"{type(inner).__name__}.forward takes no {missing[0]}")
    return inner


def _head(model: nn.Module, decoder: nn.Module, vocab: int) -> Head:
    """The model's own head, or its embedding where the two are tied; SGLang pads the rows of either."""
    own = getattr(model, "lm_head", None)
    head = getattr(decoder, "embed_tokens", None) if own is None else own
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape[0] < vocab:
        raise ModelError(f"{type(model).__name__} has neither `lm_head` nor tied `embed_tokens`")
    return Head(weight, getattr(head, "bias", None), vocab)


def _refuse_layers(model: nn.Module) -> None:
    """What an attention layer needs beyond causal softmax attention, SGLang writes on the layer."""
    for layer in model.modules():
        if not isinstance(layer, RadixAttention):
            continue
        if layer.logit_cap:
            _refuse(layer, f"caps its scores at {layer.logit_cap}")
        if layer.sliding_window_size not in (-1, None):
            _refuse(layer, f"sees {layer.sliding_window_size} tokens only")
        if layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
            _refuse(layer, "is not causal self-attention")
        if layer.qk_head_dim != layer.v_head_dim:
            _refuse(layer, "has keys and values of different sizes")


def _refuse(layer: Layer, why: str) -> NoReturn:
    raise ModelError(f"the attention of layer {layer.layer_id} {why}, which is not supported")
