"""The files of a checkpoint: that they are there and whole, and one hash that names their content.

All of it runs before any weight is loaded, so that a wrong path costs milliseconds and one line.
"""

import json
import logging
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open

from xgr_runtime.errors import ModelError
from xgr_runtime.files import open_ordinary, read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_SAMPLING = {  # fields of generation_config.json, and the values at which they change nothing
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,  # counts where do_sample does
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "guidance_scale": None,
}

log = logging.getLogger(__name__)

_BLOCK = 64 * 1024
_BLOCKS = 256  # 16 MiB per file: smaller files are read whole, larger ones at even distances
WHOLE = _BLOCK * _BLOCKS  # bytes of a file up to which all of it is read
_RUN = ("float32", "bfloat16")  # the number types that a CPU runs weights in; others are made float32
_RUN_ON_GPU = (*_RUN, "float16")


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of the checkpoint in `folder` as it is on disk. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder, --model-path must name a local checkpoint")
    _refuse_adapter(folder)
    config = _read_json(folder / "config.json")
    if "model_type" not in config:
        raise ModelError(f"{folder / 'config.json'}: no model_type, this is not a Hugging Face checkpoint")
    return config


def saved_dtype(folder: Path, device: str) -> str:
    """What the checkpoint was saved in, where `device` runs that; float32 otherwise. Raises ModelError."""
    raw = read_config(folder)
    saved = str(raw.get("dtype") or raw.get("torch_dtype") or "")
    return saved if saved in (_RUN if device == "cpu" else _RUN_ON_GPU) else "float32"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the checkpoint, each with a whole header. Raises ModelError."""
    files = _listed_files(folder)
    for file in files:
        _check_header(file)
    return files


def weights_hash(folder: Path, files: list[Path]) -> str:
    """32 hex digits that name config and weights: two processes with the same hash compute the same function.

    xxh3_128 over the bytes of config.json and, for each weight file, its name, size and content: files up to
    16 MiB whole, of larger ones the header's start and 256 blocks of 64 KiB at even distances. Reading all of
    a 1.7B checkpoint would take seconds; training changes practically every weight, so samples tell two
    checkpoints apart. It guards against mix-ups, not against someone who forges a checkpoint.
    """
    digest = xxhash.xxh3_128((folder / "config.json").read_bytes())
    for file in sorted(files):
        digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
        _digest_file(file, digest)
    return digest.hexdigest()


def sampled_files(folder: Path) -> list[str]:
    """Name, size, time and inode of each file of weights that `weights_hash` knows in part only.

    A change between two samples shows here. Raises ModelError.
    """
    found = [(file, file.stat()) for file in _listed_files(folder)]
    return [f"{f.name} {s.st_size} {s.st_mtime_ns} {s.st_ino}" for f, s in found if s.st_size > WHOLE]


def not_applied(folder: Path) -> list[str]:
    """What generation_config.json asks of a sampler, as "field=value": an exact search does none of it.

    Evaluation with Hugging Face's `generate` may well have done it. Raises ModelError.
    """
    fields = read_object(folder / "generation_config.json", ModelError)
    return [
        f"{name}={value!r:.40}"
        for name, value in sorted(fields.items())
        if name in _SAMPLING and value not in (None, _SAMPLING[name])
    ]


def _refuse_adapter(folder: Path) -> None:
    """Raises ModelError where files in the folder make another model of the weights beside them."""
    found = [name for name in _ADAPTER if (folder / name).exists()]
    if found:
        merge = f"M.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('MERGED')"
        raise ModelError(
            f"{folder}: {found[0]} changes what the model is, and adapters are not loaded: merge it with "
            f'python -c "from peft import AutoPeftModelForCausalLM as M; {merge}", copy the tokenizer there, '
            "and pass --model-path MERGED"
        )


def _digest_file(file: Path, digest: "xxhash.xxh3_128") -> None:
    size = file.stat().st_size
    step = max(_BLOCK, size // _BLOCKS)
    with file.open("rb") as handle:
        for start in range(0, size, step):
            handle.seek(start)
            digest.update(handle.read(_BLOCK))
        handle.seek(max(0, size - _BLOCK))
        digest.update(handle.read(_BLOCK))


def _listed_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        if (folder / INDEX).is_file():
            log.warning("%s: %s is used, as Hugging Face does, and %s is not", folder, SINGLE, INDEX)
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        shards = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{folder / INDEX}: no weight_map, the index names no shard")
        return [_inside(folder, str(name)) for name in sorted(set(shards.values()))]
    found = [
        name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / name).exists()
    ]
    hint = f" ({found[0]} is a pickle and is never read: convert it to safetensors)" if found else ""
    raise ModelError(f"{folder}: neither {SINGLE} nor {INDEX}{hint}")


def _inside(folder: Path, name: str) -> Path:
    """The shard `name`; a name with a folder in it could reach outside of the checkpoint."""
    if Path(name).name != name:
        raise ModelError(f"{folder / INDEX}: shard {name!r} is not a plain file name")
    if not (folder / name).is_file():
        raise ModelError(f"{folder}: shard {name} is named in {INDEX} but missing: download it again")
    return folder / name


def _check_header(file: Path) -> None:
    try:
        with safe_open(str(file), framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: damaged or incomplete ({error}): download it again") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        with open_ordinary(file) as content:
            value = json.loads(content.read().decode())
    except FileNotFoundError:
        raise ModelError(f"{file}: missing, this is not a Hugging Face checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: a JSON object was expected")
    return value
