"""What each file of a checkpoint's folder is to us: used, of no consequence, or weights that nobody loads."""

import re
from pathlib import Path

from xgr_runtime.checkpoint.names import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    CONFIG,
    GENERATION,
    INDEX,
    SINGLE,
    TEMPLATE_FOLDER,
    TEMPLATES,
    TOKENIZER,
)
from xgr_runtime.checkpoint.weights import listed_files
from xgr_runtime.files import is_missing

_USED = {CONFIG, GENERATION, INDEX, TEMPLATE_FOLDER, *TEMPLATES, *TOKENIZER, *ADAPTER_FILES}
# What trainers leave: states of optimisers, schedulers, random numbers and their own settings.
_TRAINING = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)[\w.-]*\.(bin|pt|pth|pkl|safetensors)"
    r"|trainer_state\.json|(all|train|eval|test)_results\.json|global_step\d+|zero_to_fp32\.py|latest|checkpoint-\d+"
    r"|pytorch_model_fsdp_\d+|runs|logs|wandb|events\.out\.tfevents\..*"
)
_TEXTS = re.compile(
    r"(README|LICEN[CS]E|NOTICE|USE_POLICY|CITATION)([._-].*)?|.*\.(md|rst|txt|log|png|jpe?g|gif|svg|pdf|csv|tsv|ya?ml|toml|html)"
    r"|\..*",
    re.IGNORECASE,
)
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|pkl|gguf|ggml|h5|msgpack|ot|onnx|npz|npy|pdparams|mlpackage|tflite)"
    r"|.*\.index\.json|original|onnx|gguf|openvino",
    re.IGNORECASE,
)
_CODE = re.compile(r".*\.(py|so|pyc)")
_LISTED = 5  # names in a line


def passed_over(folder: Path) -> list[str]:
    """Lines about files in `folder` of which somebody might think that they count, and that do not.

    They are for the log: whoever evaluated with one of these has evaluated another model. Raises ModelError.
    """
    has_weights = not (is_missing(folder / SINGLE) and is_missing(folder / INDEX))
    chosen = listed_files(folder, tell=False) if has_weights else []
    used = _USED | {file.name for file in chosen}
    left = [path for path in sorted(folder.iterdir()) if path.name not in used]
    left = [path for path in left if not _TRAINING.fullmatch(path.name) and not _TEXTS.fullmatch(path.name)]
    adapters = [path for path in left if (path / ADAPTER_CONFIG).is_file()]
    weights = [path for path in left if path not in adapters and _WEIGHTS.fullmatch(path.name)]
    code = [path for path in left if _CODE.fullmatch(path.name)]
    nested = [path for path in left if path.name == "adapters" and any(path.glob(f"*/{ADAPTER_CONFIG}"))]
    choice = f"only {_names(chosen)} {'are' if len(chosen) > 1 else 'is'}" if chosen else "none is"
    told = [
        (weights, f"are weights that are not loaded: as with Hugging Face's library, {choice}"),
        (code, "are code, which is never run"),
        (
            adapters + nested,
            "hold adapters that are not applied: to serve one, pass its folder as --model-path, and "
            f"--base-model-path {folder}",
        ),
    ]
    return [f"{folder}: {_names(found)} {what}" for found, what in told if found]


def _names(found: list[Path]) -> str:
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(path.name for path in found[:_LISTED]) + more
