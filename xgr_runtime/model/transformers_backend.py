"""The portable backend: any Hugging Face decoder with rotary, plain causal attention, run with our stages.

transformers looks an attention function up by name; ours is "xgr" and passes q, k, v to the stage. The stage
travels as a keyword argument through the model's forward, never as shared state, so that several backends and
threads in one process cannot mix.
"""

import dataclasses
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from xgr_runtime.errors import ModelError
from xgr_runtime.model.base import Geometry, Stage
from xgr_runtime.model.checkpoint import read_config, weight_files, weights_hash
from xgr_runtime.model.refusals import refuse_unsupported
from xgr_runtime.model.selfcheck import check_against_eager

# transformers' configs and models get their attributes at run time.
HfConfig: TypeAlias = Any
HfModel: TypeAlias = Any
_models: HfModel = AutoModelForCausalLM
_quiet: HfModel = transformers_logging.disable_progress_bar

_ATTENTION = "xgr"
_EXTRAS = ("softcap", "s_aux", "sliding_window")


class TransformersBackend:
    """A Hugging Face causal decoder on the CPU; made by `load_transformers`."""

    name = "transformers"

    def __init__(self, model: HfModel, geometry: Geometry, weights_hash: str) -> None:
        self.geometry = geometry
        self.weights_hash = weights_hash
        self._decoder: nn.Module = model.base_model
        head = model.get_output_embeddings()
        # A bfloat16 product would round logits of 16 to 32 to steps of 0.125, and ties would choose the
        # beams. On a CPU no product of bfloat16 has a float32 result, so the head is kept in float32.
        self._head: Tensor = head.weight.detach().float()
        self._head_bias: Tensor | None = None if head.bias is None else head.bias.detach().float()

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage) -> Tensor:
        """See `ModelBackend.forward`."""
        with torch.inference_mode():
            output = self._decoder(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False, xgr_stage=stage
            )
            hidden: Tensor = output.last_hidden_state[0]
            return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `ModelBackend.logits`."""
        with torch.inference_mode():
            return F.linear(hidden.float(), self._head, self._head_bias)


def load_transformers(folder: Path, dtype: str) -> TransformersBackend:
    """The checkpoint in `folder`, checked against its own attention. Raises ModelError, in one line."""
    raw = read_config(folder)
    config = _parse_config(folder, raw)
    refuse_unsupported(_fields(raw, config), str(folder))
    files = weight_files(folder)
    model = _load_model(folder, config, dtype)
    geometry = _geometry(config, model, dtype)
    backend = TransformersBackend(model, geometry, weights_hash(folder, files))
    # Loaded with the model's own attention: once it has given its answers, ours takes its place for good.
    check_against_eager(model, backend, switch=lambda: model.set_attn_implementation(_ATTENTION))
    return backend


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


def _parse_config(folder: Path, raw: dict[str, Any]) -> HfConfig:
    if raw.get("auto_map"):
        refuse_unsupported(raw, str(folder))
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each means that it cannot read this config
        raise ModelError(f"{folder}: config.json is not understood: {_one_line(error)}") from error


def _fields(raw: dict[str, Any], config: HfConfig) -> dict[str, Any]:
    """What the file says, with the defaults and clean-ups of the architecture's config class."""
    merged = {**raw, **config.to_dict()}
    if "rope_parameters" not in {field.name for field in dataclasses.fields(config)}:
        merged.pop("rope_parameters", None)  # a stray field: this architecture has no rotary positions
    return merged


def _load_model(folder: Path, config: HfConfig, dtype: str) -> HfModel:
    _quiet()
    try:
        model, info = _models.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (
        Exception
    ) as error:  # as above: an architecture without a causal decoder, shapes that do not fit, ...
        raise ModelError(f"{folder}: the checkpoint does not load: {_one_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"{folder}: {len(missing)} weights are missing, {missing[0]} among them")
    return model.eval().requires_grad_(False)


def _geometry(config: HfConfig, model: HfModel, dtype: str) -> Geometry:
    q_heads = int(config.num_attention_heads)
    return Geometry(
        layers=int(config.num_hidden_layers),
        q_heads=q_heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or q_heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // q_heads),
        hidden=int(config.hidden_size),
        vocab=int(model.get_output_embeddings().weight.shape[0]),
        max_positions=int(config.max_position_embeddings),
        dtype=dtype,
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
