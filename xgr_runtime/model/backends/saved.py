"""A checked checkpoint without its library: a CPU's own layers, right from the files of weights.

Importing transformers and building its model is most of what a worker would do, only to copy the weights out
of it. Once they were seen to be those of the files, and the layers to give its answers, the files are enough.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xgr_runtime.checkpoint import weight_files, weights_hash
from xgr_runtime.model.backends.cpu import CpuBackend
from xgr_runtime.model.backends.fused import HEAD, LayerFacts, Weights, weights_of
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.kept_checks import Check, Finding, KeptChecks

log = logging.getLogger(__name__)

HfModel: TypeAlias = Any  # transformers' models are not typed


def load_saved(folder: Path, dtype: str, device: str, checks: KeptChecks) -> CpuBackend | None:
    """The checkpoint in `folder` in a CPU's own layers, if it was checked in them; else None.

    Raises ModelError for a checkpoint that is damaged.
    """
    if (found := _find(folder, dtype, device, checks)) is None:
        return None
    facts, files = found
    try:
        return CpuBackend(facts, dict(_read(files)))
    except (KeyError, RuntimeError, SafetensorError) as error:  # as good as no finding
        log.warning("the checkpoint is loaded by its library, its files are not as they were: %s", error)
        return None


def is_saved(folder: Path, dtype: str, device: str, checks: KeptChecks) -> bool:
    """Whether `load_saved` will load it. Raises ModelError."""
    return _find(folder, dtype, device, checks) is not None


def keep_check(
    check: Check, library: ModelBackend, own: CpuBackend | None, folder: Path, model: HfModel
) -> None:
    """Keep what was found. `own` is a way that the next start may take at once, if the files allow it."""
    if own is None:
        check.keep(Finding(library.prunes))
    elif _same(weights_of(model), weight_files(folder), own.facts):
        check.keep(Finding(library.prunes, own.facts))


def _find(folder: Path, dtype: str, device: str, checks: KeptChecks) -> tuple[LayerFacts, list[Path]] | None:
    """What an earlier start has found, and the files of weights. Raises ModelError."""
    if device != "cpu" or dtype != "float32":
        return None
    files = weight_files(folder)
    digest = weights_hash(folder, files)
    known = checks.of(folder, digest, "transformers", dtype, device).known
    return (known.own, files) if known and known.own else None


def _read(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """All weights of the files in float32, by their names. Raises SafetensorError."""
    for file in files:
        with safe_open(str(file), framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118, it is no dict
                yield name, saved.get_tensor(name).float()


def _same(loaded: Weights, files: list[Path], facts: LayerFacts) -> bool:
    """Whether the library's weights are the saved ones, under the same names. Raises SafetensorError."""
    left = set(loaded) - ({HEAD} if facts.tied else set())
    for name, saved in _read(files):
        if name in left and not torch.equal(loaded[name], saved):
            return False
        left.discard(name)
    return not left
