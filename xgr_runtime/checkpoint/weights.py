"""Which files hold a checkpoint's weights, that they are whole, and one hash that names their content.

The choice among several is Hugging Face's: one file comes before shards, and an index says which those are.
"""

import logging
from pathlib import Path

import xxhash
from safetensors import SafetensorError, safe_open

from xgr_runtime.checkpoint.names import CONFIG, INDEX, SINGLE
from xgr_runtime.checkpoint.tensors import FLOATS, Tensors, open_tensors
from xgr_runtime.errors import ModelError
from xgr_runtime.files import is_missing, read_object

log = logging.getLogger(__name__)

_BLOCK = 64 * 1024
_BLOCKS = 256  # 16 MiB per file: smaller files are read whole, larger ones at even distances
WHOLE = _BLOCK * _BLOCKS  # bytes of a file up to which all of it is read
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"  # how their names end
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the checkpoint, each with a whole header, for the config beside them.

    Raises ModelError.
    """
    files = listed_files(folder)
    for file in files:
        _check_header(file)
    _check_tensors(folder, [open_tensors(file) for file in files])
    return files


def weights_hash(folder: Path, files: list[Path]) -> str:
    """32 hex digits that name config and weights: two processes with the same hash compute the same function.

    xxh3_128 over the bytes of config.json and, for each weight file, its name, size and content: files up to
    16 MiB whole, of larger ones the header's start and 256 blocks of 64 KiB at even distances. Reading all of
    a 1.7B checkpoint would take seconds; training changes practically every weight, so samples tell two
    checkpoints apart. It guards against mix-ups, not against someone who forges a checkpoint.
    """
    digest = xxhash.xxh3_128((folder / CONFIG).read_bytes())
    for file in sorted(files):
        digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
        _digest_file(file, digest)
    return digest.hexdigest()


def sampled_files(folder: Path) -> list[str]:
    """Name, size, time and inode of each file of weights that `weights_hash` knows in part only.

    A change between two samples shows here. Raises ModelError.
    """
    return times_of(listed_files(folder, tell=False))


def times_of(files: list[Path]) -> list[str]:
    """The same of any files."""
    found = [(file, file.stat()) for file in files]
    return [f"{f.name} {s.st_size} {s.st_mtime_ns} {s.st_ino}" for f, s in found if s.st_size > WHOLE]


def check_globbed(folder: Path) -> None:
    """For SGLang, which loads every *.safetensors, or those of an index if there is one.

    Raises ModelError where these are not what Hugging Face's library loads and `weights_hash` names.
    """
    there = {path.name for path in folder.glob("*.safetensors")}
    if not is_missing(folder / INDEX):
        there &= set(_shard_names(folder))
    chosen = {path.name for path in listed_files(folder, tell=False)}
    if strays := sorted(there ^ chosen):
        raise ModelError(
            f"{folder}: SGLang would load other weights than Hugging Face's library, {strays[0]} is the "
            "difference: move what is not part of the checkpoint away, or use --model-backend transformers"
        )


def digest_of(files: list[Path]) -> "xxhash.xxh3_128":
    """A digest of names, sizes and content of files, as `weights_hash` reads them."""
    digest = xxhash.xxh3_128()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
        _digest_file(file, digest)
    return digest


def listed_files(folder: Path, tell: bool = True) -> list[Path]:
    """The files of weights that are loaded. `tell`: log what is not. Raises ModelError."""
    if (folder / SINGLE).is_file():
        if tell and (folder / INDEX).is_file():
            log.warning("%s: %s is used, as Hugging Face does, and %s is not", folder, SINGLE, INDEX)
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [_inside(folder, name) for name in _shard_names(folder)]
    found = [name for name in _PICKLES if (folder / name).exists()]
    hint = f" ({found[0]} is a pickle and is never read: convert it to safetensors)" if found else ""
    raise ModelError(f"{folder}: neither {SINGLE} nor {INDEX}{hint}")


def _shard_names(folder: Path) -> list[str]:
    """Raises ModelError."""
    shards = read_object(folder / INDEX, ModelError).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{folder / INDEX}: no weight_map, the index names no shard")
    return sorted(set(map(str, shards.values())))


def _digest_file(file: Path, digest: "xxhash.xxh3_128") -> None:
    size = file.stat().st_size
    step = max(_BLOCK, size // _BLOCKS)
    with file.open("rb") as handle:
        for start in range(0, size, step):
            handle.seek(start)
            digest.update(handle.read(_BLOCK))
        handle.seek(max(0, size - _BLOCK))
        digest.update(handle.read(_BLOCK))


def _inside(folder: Path, name: str) -> Path:
    """The shard `name`; a name with a folder in it could reach outside of the checkpoint."""
    if Path(name).name != name:
        raise ModelError(f"{folder / INDEX}: shard {name!r} is not a plain file name")
    if not (folder / name).is_file():
        raise ModelError(f"{folder}: shard {name} is named in {INDEX} but missing: download it again")
    return folder / name


def _check_header(file: Path) -> None:
    try:
        with safe_open(str(file), framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: damaged or incomplete ({error}): download it again") from error


def _check_tensors(folder: Path, files: list[Tensors]) -> None:
    """Raises ModelError for weights that are no floating-point numbers, or not those of config.json."""
    config = read_object(folder / CONFIG, ModelError)
    rows = config.get("vocab_size")
    ends: dict[str, tuple[Tensors, str]] = {}
    for file in files:
        for name, tensor in file.items():
            if name.endswith(".weight") and tensor.dtype not in FLOATS:
                raise ModelError(
                    f"{file.path}: {name} is saved as {tensor.dtype}, so the weights are quantised: pass the "
                    "checkpoint that they were made of"
                )
            end = next((end for end in (EMBEDDING, HEAD) if name.endswith(end)), None)
            if end is None:
                continue
            ends[end] = (file, name)
            if type(rows) is int and tensor.shape and tensor.shape[0] != rows:
                raise ModelError(
                    f"{file.path}: {name} has {tensor.shape[0]} rows, config.json says vocab_size {rows}: "
                    "they are of two checkpoints, copy the one that belongs to the other"
                )
    if len(ends) == 2 and config.get("tie_word_embeddings", False):
        _tell_tied(folder, *ends.values())


def _tell_tied(folder: Path, *ends: tuple[Tensors, str]) -> None:
    """The library's versions do not agree on a head of its own in a checkpoint that shall have none."""
    one, other = (file.content(name) for file, name in ends)
    if one.shape != other.shape or not (one == other).all():
        log.warning(
            "%s: config.json says tie_word_embeddings, and the saved %s is not %s: transformers 5 keeps them "
            "apart, older versions take the embedding for both. Set the field to what training had",
            *(folder, ends[1][1], ends[0][1]),
        )
