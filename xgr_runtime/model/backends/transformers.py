"""The portable backend: any Hugging Face decoder with rotary, plain causal attention, run with our stages.

transformers looks an attention function up by name; ours is "xgr" and passes q, k, v to the stage. The stage
travels as a keyword argument through the model's forward, never as shared state, so that several backends and
threads in one process cannot mix.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends import cuda, shims
from xgr_runtime.model.backends.cpu import own_way
from xgr_runtime.model.backends.fused import for_gpu
from xgr_runtime.model.backends.head import Head
from xgr_runtime.model.backends.huggingface import Checkpoint, HfModel, load_eager, open_checkpoint
from xgr_runtime.model.backends.last_layer import KeptRows, prune, prunes
from xgr_runtime.model.backends.saved import keep_check
from xgr_runtime.model.backends.selfcheck import check_backend, reference_logits
from xgr_runtime.model.base import ModelBackend, Place, Stage
from xgr_runtime.model.kept_checks import Check, Finding, KeptChecks

shims.install()
from transformers import AttentionInterface  # noqa: E402, after the shims

_ATTENTION = "xgr"
_EXTRAS = ("softcap", "s_aux", "sliding_window")


class TransformersBackend:
    """A Hugging Face causal decoder; made by `load_transformers`."""

    name = "transformers"

    def __init__(self, model: HfModel, checkpoint: Checkpoint, dtype: str) -> None:
        self.identity = checkpoint.identity(dtype)
        self.q_heads, self.max_positions = checkpoint.q_heads, checkpoint.max_positions
        self._decoder: nn.Module = model.base_model
        head = model.get_output_embeddings()
        self.head = Head(head.weight, head.bias, self.identity.vocab)
        self.device: torch.device = head.weight.device
        self.prunes = False
        layers = getattr(self._decoder, "layers", None)
        if isinstance(layers, nn.ModuleList):
            prune(layers[self.identity.layers - 1], lambda kwargs: kwargs.get("xgr_stage"), rows=1)

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        """See `ModelBackend.forward`."""
        if keep is not None:
            stage = KeptRows(stage, keep, self.identity.layers - 1)
        with torch.inference_mode():
            output = self._decoder(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False, xgr_stage=stage
            )
            hidden: Tensor = output.last_hidden_state[0]
            return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `ModelBackend.logits`."""
        return self.head.logits(hidden)


class _Loaded(NamedTuple):
    """A checkpoint that the library has loaded, with our attention in the place of its own."""

    model: HfModel
    checkpoint: Checkpoint
    dtype: str
    place: Place | None
    checks: KeptChecks
    check: Check
    want: Tensor | None  # its own answers, where they are not known to be right


def load_transformers(
    folder: Path,
    dtype: str,
    device: str = "cpu",
    place: Place | None = None,
    checks: KeptChecks | None = None,
) -> ModelBackend:
    """The checkpoint in `folder`, checked against its own attention. Raises ModelError, in one line.

    It runs in layers of ours where they do the same: on a GPU, and on a CPU if nobody else is to find the
    weights, which are laid out anew. What was checked before, on this machine with all of this, is not
    checked again.
    """
    loaded = _load(folder, dtype, device, place, checks)
    return _on_gpu(loaded, device) or _in_library(loaded)


def load_fused(
    folder: Path,
    dtype: str,
    device: str,
    place: Place | None = None,
    checks: KeptChecks | None = None,
) -> ModelBackend | None:
    """The same, but None where it would run in the library's layers."""
    return _on_gpu(_load(folder, dtype, device, place, checks), device)


def _load(folder: Path, dtype: str, device: str, place: Place | None, checks: KeptChecks | None) -> _Loaded:
    checks = checks or KeptChecks()
    checkpoint = open_checkpoint(folder)
    check = checks.of(folder, checkpoint.weights_hash, "transformers", dtype, device)
    model = load_eager(checkpoint, dtype, device)
    with checks.timed():
        want = None if check.known else reference_logits(model, checkpoint.identity(dtype).vocab)
    # The model has given its own answers: our attention takes the place of its own for good.
    model.set_attn_implementation(_ATTENTION)
    return _Loaded(model, checkpoint, dtype, place, checks, check, want)


def _on_gpu(loaded: _Loaded, device: str) -> ModelBackend | None:
    """In a GPU's own layers, or None."""
    model, checkpoint, dtype, place, checks, check, want = loaded
    if not for_gpu(model.config.model_type, device) or (check.known and not check.known.own):
        return None
    with checks.timed():
        own = cuda.own_way(model, checkpoint, dtype, want, place)
    if own is not None and not check.known:
        check.keep(Finding(own.prunes, own.facts))
    return own


def _in_library(loaded: _Loaded) -> ModelBackend:
    """In the library's layers, or in a CPU's own. Raises ModelError."""
    model, checkpoint, dtype, place, checks, check, want = loaded
    if place is not None:
        place(model)
    backend = TransformersBackend(model, checkpoint, dtype)
    if check.known is not None:
        backend.prunes = check.known.prunes
        return backend
    assert want is not None
    with checks.timed():
        check_backend(backend, want, type(model).__name__)
        backend.prunes = prunes(backend)
        own = own_way(backend, model, want) if place is None else None
        if place is None:
            keep_check(check, backend, own, checkpoint.folder, model)
    return own or backend


def _attention(
    module: HfModel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    xgr_stage: Stage | None = None,
    **extras: object,
) -> tuple[Tensor, None]:
    """query [1, Hq, N, D], key and value [1, Hkv, N, D] -> [1, N, Hq, D], as transformers wants it."""
    if xgr_stage is None:
        raise ModelError(f"{type(module).__name__} does not pass keyword arguments on to its attention")
    for extra in _EXTRAS:
        if extras.get(extra) is not None:
            raise ModelError(
                f"{type(module).__name__} asks its attention for {extra}, which is not supported"
            )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)  # [N, H, D]
    return xgr_stage.attend(int(module.layer_idx), q, k, v, scale)[None], None


# No mask is registered beside it: transformers then builds none, which saves N * N booleans per forward.
AttentionInterface.register(_ATTENTION, _attention)
