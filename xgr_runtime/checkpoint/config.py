"""config.json and generation_config.json: what they say of a model, and what makes it one that is refused."""

from pathlib import Path
from typing import Any

from xgr_runtime.checkpoint.names import ADAPTER_FILES, CONFIG, GENERATION, QUANTISED, SENTENCES
from xgr_runtime.errors import ModelError
from xgr_runtime.files import is_missing, read_object

_RUN = ("float32", "bfloat16")  # the number types that a CPU runs weights in; others are made float32
_RUN_ON_GPU = (*_RUN, "float16")
_SAMPLING = {  # fields of generation_config.json, and the values at which they change nothing
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,  # counts where do_sample does
    "top_p": 1.0,
    "top_h": None,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": None,
    "dola_layers": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "bad_words_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "watermarking_config": None,
}


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of the checkpoint in `folder` as it is on disk.

    Raises ModelError, also where another file says that the model is not what weights and config make of it.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder, --model-path must name a local checkpoint")
    if found := [name for name in ADAPTER_FILES if (folder / name).exists()]:
        # Whoever can merge has done it before; see `find_adapter`.
        raise ModelError(
            f"{folder}: {found[0]} changes what the model is, and it has to be merged: `xgr serve` does it, "
            f"anything else takes a merged checkpoint. {merge_by_hand(folder)}"
        )
    config = read_plain_config(folder)
    if not is_missing(folder / SENTENCES):
        raise ModelError(
            f"{folder}: {SENTENCES} makes it an embedding model of sentence-transformers, which generates "
            "nothing: name the checkpoint of a language model, or remove the file if it is one"
        )
    if config.get("auto_map"):
        raise ModelError(
            f"{folder}: auto_map asks for code from the checkpoint, which is never run: save the model "
            "with its library's own class, or remove the field if that computes the same"
        )
    _refuse_quantised(folder, config)
    return config


def read_plain_config(folder: Path) -> dict[str, Any]:
    """The same, whatever lies beside it. Raises ModelError."""
    path = folder / CONFIG
    if is_missing(path):
        raise ModelError(f"{path}: missing, this is not a Hugging Face checkpoint")
    config = read_object(path, ModelError)
    if "model_type" not in config:
        raise ModelError(f"{path}: no model_type, this is not a Hugging Face checkpoint")
    return config


def merge_by_hand(folder: Path) -> str:
    """How to merge the adapter in `folder` with the library that made it."""
    merge = f"M.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('MERGED')"
    return (
        f'By hand: python -c "from peft import AutoPeftModelForCausalLM as M; {merge}", copy the tokenizer '
        "there, and pass --model-path MERGED"
    )


def saved_dtype(folder: Path, device: str) -> str:
    """What the checkpoint was saved in, where `device` runs that; float32 otherwise. Raises ModelError."""
    return dtype_of(read_config(folder), device)


def dtype_of(config: dict[str, Any], device: str) -> str:
    """The same of a config that was read."""
    saved = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return saved if saved in (_RUN if device == "cpu" else _RUN_ON_GPU) else "float32"


def not_applied(folder: Path) -> list[str]:
    """What generation_config.json asks of a sampler, as "field=value": an exact search does none of it.

    Evaluation with Hugging Face's `generate` may well have done it. Without that file the library takes the
    same fields of config.json, where older versions wrote them, and so do we. Raises ModelError.
    """
    fields = read_object(folder / GENERATION, ModelError)
    if is_missing(folder / GENERATION):
        fields = read_object(folder / CONFIG, ModelError)
        inner = fields.get("text_config")
        fields |= inner if isinstance(inner, dict) else {}
    return [
        f"{name}={value!r:.40}"
        for name, value in sorted(fields.items())
        if name in _SAMPLING and value not in (None, _SAMPLING[name])
    ]


def _refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    """Raises ModelError for weights that are numbers only together with scales that are kept beside them."""
    found = config.get("quantization_config") or config.get("compression_config")
    method = found.get("quant_method") if isinstance(found, dict) else None
    other = next((name for name in QUANTISED if not is_missing(folder / name)), None)
    if found or other:
        where = f"quantization_config in {CONFIG}" if found else other
        raise ModelError(
            f"{folder}: {where} says that the weights are quantised ({method or 'no method is named'}), only "
            "float32, bfloat16 and float16 are run: pass the checkpoint that they were made of"
        )
