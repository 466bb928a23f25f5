"""Which adapter a folder holds, of which weights, and whether it is of a kind that can be merged into them.

An adapter is what PEFT saves: small matrices whose products are added to weights (LoRA), and weights that
were trained whole. Every field of its settings is known here; one that is not, or that asks for more, is
refused by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgr_runtime.checkpoint.config import merge_by_hand, read_plain_config
from xgr_runtime.checkpoint.names import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    ADAPTER_FOLDER,
    ADAPTER_PICKLE,
    CONFIG,
    INDEX,
    SINGLE,
)
from xgr_runtime.checkpoint.weights import weight_files
from xgr_runtime.errors import ModelError
from xgr_runtime.files import is_missing, read_object

_MERGED = {  # fields that merging reads, see `merging`, or that say where weights were found
    "peft_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "bias",
    "lora_bias",
    "modules_to_save",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "trainable_token_indices",
    "ensure_weight_tying",
    "init_lora_weights",
}
_TRAINING = {  # fields that matter to training alone, or to a field that is refused
    "auto_mapping",
    "fan_in_fan_out",  # of layers that keep weights transposed, which no decoder here has
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
_KEEPS_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")  # others change weights as they begin
_KINDS = {
    "ADALORA": "AdaLoRA",
    "IA3": "IA3",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "OFT": "OFT",
    "BOFT": "BOFT",
    "VERA": "VeRA",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "ADAPTION_PROMPT": "an adaption prompt",
    "TRAINABLE_TOKENS": "trainable tokens",
}


@dataclass(frozen=True)
class Adapter:
    """A folder with an adapter, the folder of the weights that it changes, and its settings."""

    folder: Path
    base: Path
    settings: dict[str, Any]


def find_adapter(folder: Path, base: str = "") -> Adapter | None:
    """The adapter that `folder` is, holds, or has in a folder `adapter`; None for a plain checkpoint.

    `base`: the folder of the weights that it changes, "" for the one that it names or lies in. Raises
    ModelError for an adapter that cannot be merged, or whose weights are not found.
    """
    where = next((path for path in (folder, folder / ADAPTER_FOLDER) if _adapter_files(path)), None)
    if where is None:
        if base:
            raise ModelError(
                f"--base-model-path {base} is for an adapter, and {folder} holds none: leave it out"
            )
        return None
    settings = _settings(where)
    found = _base(folder, where, settings, base)
    if config := read_object(where / CONFIG, ModelError):
        kinds = [config.get("model_type"), read_plain_config(found).get("model_type")]
        if kinds[0] not in (None, kinds[1]):
            raise ModelError(
                f"{where}: the adapter is one of a {kinds[0]}, {found} is a {kinds[1]}: "
                "name what it was trained on by --base-model-path"
            )
    return Adapter(where, found, settings)


def _adapter_files(folder: Path) -> list[str]:
    return [name for name in ADAPTER_FILES if not is_missing(folder / name)]


def _settings(folder: Path) -> dict[str, Any]:
    """Raises ModelError."""
    if is_missing(folder / ADAPTER_CONFIG):
        raise ModelError(
            f"{folder}: {_adapter_files(folder)[0]} changes what the model is, and {ADAPTER_CONFIG} is "
            "missing, which says how: copy it there, or move the adapter away"
        )
    settings = read_object(folder / ADAPTER_CONFIG, ModelError)
    if reason := _reason(settings):
        raise ModelError(f"{folder}: the adapter is not merged here, {reason}. {merge_by_hand(folder)}")
    if is_missing(folder / ADAPTER):
        there = not is_missing(folder / ADAPTER_PICKLE)
        hint = f" ({ADAPTER_PICKLE} is a pickle and is never read)" if there else ""
        raise ModelError(f"{folder}: {ADAPTER} is missing{hint}. {merge_by_hand(folder)}")
    return settings


def _reason(settings: dict[str, Any]) -> str:
    """Why it cannot be merged; "" where it can."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        return f"it is {_KINDS.get(str(kind), f'of peft_type {kind!r:.40}')}, only LoRA is"
    if settings.get("use_dora"):
        return "it is DoRA (use_dora), only plain LoRA is"
    begin = settings.get("init_lora_weights")
    if not any(begin is one or begin == one for one in _KEEPS_THE_BASE):
        return f"init_lora_weights {begin!r:.40} has changed the weights before training"
    if settings.get("bias") not in (None, "none", "lora_only", "all"):
        return f"its bias is {settings['bias']!r:.40}"
    for name, value in settings.items():
        if name not in _MERGED | _TRAINING and value not in (None, False, {}, [], ""):
            return f"its {name} is {value!r:.60}"
    return ""


def _base(folder: Path, adapter: Path, settings: dict[str, Any], given: str) -> Path:
    """The folder of the weights. Raises ModelError."""
    if given:
        return _checked(Path(given), "--base-model-path names")
    name = settings.get("base_model_name_or_path")
    named = _named(adapter, name) if isinstance(name, str) and name else None
    if any(not is_missing(folder / file) for file in (SINGLE, INDEX)):
        if named and not named.samefile(folder):
            raise ModelError(
                f"{adapter}: {ADAPTER_CONFIG} names the weights in {named}, and {folder} has some, too: say "
                "which the adapter was trained on by --base-model-path"
            )
        return _checked(folder, "the adapter lies in")
    if named is None:
        raise ModelError(
            f"{adapter} is an adapter alone, of {name!r:.200}, which is no folder here: name the folder of "
            "the checkpoint that it was trained on by --base-model-path"
        )
    return _checked(named, f"{ADAPTER_CONFIG} of the adapter names")


def _named(adapter: Path, name: str) -> Path | None:
    """The folder of that name: as it is, or seen from the adapter's folder or the one around it."""
    for place in (Path(), adapter, adapter.parent):
        if (place / name / CONFIG).is_file():
            return place / name
    return None


def _checked(base: Path, who: str) -> Path:
    """Raises ModelError for what is no plain checkpoint."""
    if not base.is_dir():
        raise ModelError(f"{who} {base}, which is no folder: name the checkpoint that was trained on")
    config = read_plain_config(base)
    if config.get("quantization_config"):
        raise ModelError(
            f"{base}: its weights are quantised, an adapter is merged into others only: name the checkpoint "
            "that they were made of by --base-model-path"
        )
    weight_files(base)
    return base
