"""Which of the folders is the checkpoint, and what its files say of how it was trained."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.checkpoint import described, find_adapter, read_config, weight_files
from xgr_runtime.cli.imports.artefacts import listing
from xgr_runtime.errors import ModelError
from xgr_runtime.files import read_object
from xgr_runtime.tokenizer.added import NAMED, SETTINGS, token_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xgr_runtime.cli.imports.artefacts import Artefacts

ADAPTER = "adapter_config.json"
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_STEP = re.compile(r"checkpoint-(\d+)")
FINAL = "final_checkpoint"


@dataclass(frozen=True)
class TrainedModel:
    """A folder in Hugging Face form, or an adapter, and what it was trained on.

    `files`: where config, tokenizer and chat templates lie, for an adapter a copy. `passed_over`: the folders
    that would have done as well.
    """

    folder: Path
    files: Path
    base: Path | None = None
    passed_over: tuple[Path, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """config.json, {} without one. Raises ModelError."""
        return read_object(self.files / "config.json", ModelError)

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the history, as in T5."""
        return bool(self.config.get("is_encoder_decoder"))

    @property
    def end_token(self) -> str:
        """What the tokenizer calls its end token. Raises ModelError."""
        settings = read_object(self.files / SETTINGS, ModelError)
        named = read_object(self.files / NAMED, ModelError)
        text = token_text(settings.get("eos_token") or named.get("eos_token"))
        if not text:
            raise ModelError(
                f"{self.folder}: {SETTINGS} names no eos_token, and scores include it: name the one that "
                "training had"
            )
        return text


@contextlib.contextmanager
def found_model(artefacts: Artefacts, named: Path | None, base: str) -> Iterator[TrainedModel]:
    """The checkpoint that `named` says, else the only one, the final one, or the newest of a training run.

    `base`: what an adapter was trained on, "" for what it names itself. Raises ModelError where there is
    none, where several are left, for weights that are not there, and for an encoder.
    """
    folder, passed_over = _find(artefacts, named)
    adapter = find_adapter(folder, base)
    with described(folder, base) as files:
        model = TrainedModel(folder, files, adapter.base.absolute() if adapter else None, passed_over)
        if model.encoder_decoder:
            kind = ", ".join(model.config.get("architectures") or ["an encoder-decoder model"])
            raise ModelError(
                f"{folder}: {kind} has an encoder (as TIGER and LETTER have), and decoders alone are served: "
                "name a decoder that was trained on these SIDs with --model-path, and --as letter"
            )
        if adapter is None:
            read_config(folder)
            weight_files(folder)
        yield model


def _find(artefacts: Artefacts, named: Path | None) -> tuple[Path, tuple[Path, ...]]:
    """Its folder, and the others. Raises ModelError."""
    if named is not None:
        if not (named / "config.json").is_file() and not (named / ADAPTER).is_file():
            raise ModelError(f"--model-path {named}: no config.json there: name a checkpoint folder")
        return named.absolute(), ()
    all_of_them = _folders(artefacts)
    if not all_of_them:
        raise ModelError(
            f"{artefacts.roots[0]}: no checkpoint (config.json with weights) in it: name it with --model-path"
        )
    left = _without_bases(_without_older(all_of_them))
    if len(left) > 1:
        raise ModelError(f"several checkpoints, {listing(left)}: choose one with --model-path")
    others = tuple(folder for folder in all_of_them if folder != left[0])
    return left[0].absolute(), others


def _folders(artefacts: Artefacts) -> list[Path]:
    weights = {path.parent for path in artefacts.named(*_WEIGHTS)}
    configs = {path.parent for path in artefacts.named("config.json", ADAPTER)}
    return sorted(weights & configs)


def _without_older(folders: list[Path]) -> list[Path]:
    """Of a run's folder and those in it: `final_checkpoint`, else the folder, else its newest checkpoint."""
    left = set(folders)
    for run in {folder.parent for folder in folders} | set(folders):
        steps = [folder for folder in folders if folder.parent == run and _STEP.fullmatch(folder.name)]
        steps.sort(key=lambda folder: int(_STEP.fullmatch(folder.name)[1]))  # type: ignore[index]
        if run / FINAL in left:
            left -= {run, *steps}
        elif run in left:
            left -= set(steps)
        else:
            left -= set(steps[:-1])
    return sorted(left)


def _without_bases(folders: list[Path]) -> list[Path]:
    """Without the folders that adapters among them name as what they change."""
    bases: set[Path] = set()
    for folder in folders:
        name = read_object(folder / ADAPTER, ModelError).get("base_model_name_or_path")
        if isinstance(name, str) and name:
            bases |= {(folder / name).resolve(), (folder.parent / name).resolve(), Path(name).resolve()}
    return [folder for folder in folders if folder.resolve() not in bases]
