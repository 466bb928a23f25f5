"""Reading a checkpoint with the Hugging Face library: its config, its sizes, and the model that it makes.

Both backends start here. So both refuse the same configs in the same words, agree on every size that travels
between workers, and are held against the same reference.
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from xgr_runtime.checkpoint import read_config, weight_files, weights_hash
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends import shims
from xgr_runtime.model.backends.refusals import describe, refuse_unsupported
from xgr_runtime.model.base import DTYPES
from xgr_runtime.wire.messages import ModelIdentity

shims.install()
# After the shims: where SGLang is installed, transformers may not import without them.
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

# transformers' configs and models get their attributes at run time.
HfConfig: TypeAlias = Any
HfModel: TypeAlias = Any
log = logging.getLogger(__name__)

_models: HfModel = AutoModelForCausalLM
_quiet: HfModel = transformers_logging.disable_progress_bar


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole and asks for nothing that we do not do; no weight is loaded yet."""

    folder: Path
    config: HfConfig
    weights_hash: str

    @property
    def q_heads(self) -> int:
        return int(self.config.num_attention_heads)

    @property
    def max_positions(self) -> int:
        return int(self.config.max_position_embeddings)

    def identity(self, dtype: str) -> ModelIdentity:
        """What it is when it runs in `dtype`, whole in one process."""
        config, q_heads = self.config, self.q_heads
        return ModelIdentity(
            weights_hash=self.weights_hash,
            dtype=dtype,
            layers=int(config.num_hidden_layers),
            kv_heads=int(getattr(config, "num_key_value_heads", None) or q_heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // q_heads),
            hidden=int(config.hidden_size),
            vocab=int(config.vocab_size),
            tp_size=1,
        )


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`. Raises ModelError, in one line, if it is damaged or not supported."""
    raw = read_config(folder)
    config = _parse_config(folder, raw)
    refuse_unsupported(_fields(raw, config), str(folder))
    files = weight_files(folder)
    return Checkpoint(folder, config, weights_hash(folder, files))


def load_eager(checkpoint: Checkpoint, dtype: str, device: str = "cpu") -> HfModel:
    """The library's own model with its own eager attention, every weight in place on `device`.

    Raises ModelError.
    """
    _quiet()
    folder = checkpoint.folder
    try:
        model, info = _models.from_pretrained(
            folder,
            config=checkpoint.config,
            dtype=DTYPES[dtype],
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # many kinds: no causal decoder of that name, shapes that do not fit, ...
        raise ModelError(f"{folder}: the checkpoint does not load: {describe(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"{folder}: {len(missing)} weights are missing, {missing[0]} among them")
    if extra := sorted(set(info["unexpected_keys"]) - _ignored(model)):
        log.warning(
            "%s: %d saved weights are no part of the model, as its library has it: %s",
            folder,
            len(extra),
            extra[0],
        )
    return model.eval().requires_grad_(False).to(device)


def _ignored(model: HfModel) -> set[str]:
    """What some versions save besides: a head that is the embedding."""
    tied = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ()
    return set(tied)


def _parse_config(folder: Path, raw: dict[str, Any]) -> HfConfig:
    if raw.get("auto_map"):
        refuse_unsupported(raw, str(folder))
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each means that it cannot read this config
        raise ModelError(f"{folder}: config.json is not understood: {describe(error)}") from error


def _fields(raw: dict[str, Any], config: HfConfig) -> dict[str, Any]:
    """What the file says, with the defaults and clean-ups of the architecture's config class."""
    merged = {**raw, **config.to_dict()}
    if "rope_parameters" not in {field.name for field in dataclasses.fields(config)}:
        merged.pop("rope_parameters", None)  # a stray field: this architecture has no rotary positions
    return merged
