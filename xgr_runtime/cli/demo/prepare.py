"""Makes the demo's catalog, histories and trained checkpoint once, and finds them again afterwards.

A finished set lies in a folder named after a hash of everything that decided it. It is built beside its place
and renamed into it, so that an interrupted start leaves nothing half made to trip over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from xgr_runtime.cli.demo import files
from xgr_runtime.cli.demo.data import Shop, ShopSettings, generate
from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from xgr_runtime.cli.demo.training import TrainingProgress

    Report: TypeAlias = Callable[[TrainingProgress], None]

FORMAT = 1  # raise it when the generator, the model or the training changes


@dataclass(frozen=True)
class TrainingPlan:
    """The knobs of training that the demo offers; the rest keeps the defaults of `TrainSettings`."""

    seconds: float = 60.0
    least_steps: int = 200
    most_steps: int = 500
    rows: int = 8
    hidden: int = 128


@dataclass(frozen=True)
class DemoSettings:
    """What decides the prepared files."""

    shop: ShopSettings = field(default_factory=ShopSettings)
    training: TrainingPlan = field(default_factory=TrainingPlan)

    def folder(self, cache: Path) -> Path:
        """Where these files lie under `cache`."""
        digest = hashlib.sha256(f"{FORMAT} {self}".encode()).hexdigest()
        return cache / digest[:12]


@dataclass(frozen=True)
class DemoFiles:
    """The prepared files."""

    folder: Path

    @property
    def model(self) -> Path:
        """Checkpoint and tokenizer in Hugging Face form."""
        return self.folder / "model"

    @property
    def catalog(self) -> Path:
        """JSONL: item, sid, title, popularity."""
        return self.folder / "catalog.jsonl"

    @property
    def histories(self) -> Path:
        """JSONL: user, history, next."""
        return self.folder / "histories.jsonl"

    def write_summary(self, final: TrainingProgress | None) -> None:
        """Notes how the training ended, for whoever looks into the folder."""
        steps, loss = (final.step, round(final.loss, 4)) if final else (0, None)
        (self.folder / "summary.json").write_text(json.dumps({"steps": steps, "loss": loss}) + "\n")


def prepare(settings: DemoSettings, cache: Path, report: Report) -> DemoFiles:
    """The files of these settings under `cache`, made now if missing. Raises `ConfigError` on a full disk."""
    folder = settings.folder(cache)
    if folder.is_dir():
        return DemoFiles(folder)
    try:
        _make(settings, cache, folder, report)
    except OSError as error:
        if not folder.is_dir():  # else another start was faster, and its files are the same
            raise ConfigError(
                f"the demo's files cannot be written to {cache} ({error.strerror or error}): "
                "free space there, or name another folder: --cache"
            ) from error
    return DemoFiles(folder)


def _make(settings: DemoSettings, cache: Path, folder: Path, report: Report) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache, prefix=".unfinished-"))
    try:
        _build(settings, DemoFiles(unfinished), report)
        _sync(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Put its files on the disk, so that all are whole once the folder has its name. Raises OSError."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def training_sequences(shop: Shop, codebook: int) -> list[npt.NDArray[np.int64]]:
    """One token sequence per user, as in a prompt: <bos>, then the SIDs of the history, oldest first."""
    ids = files.token_ids(shop.codes, codebook)
    begin = np.array([files.BOS])
    return [np.concatenate([begin, ids[history].ravel()]) for history in shop.histories]


def _build(settings: DemoSettings, made: DemoFiles, report: Report) -> None:
    from xgr_runtime.cli.demo.training import TrainSettings, train  # torch loads only where a model is made

    shop, codebook = generate(settings.shop), settings.shop.codebook
    made.model.mkdir()
    files.write_catalog(shop, made.catalog)
    files.write_histories(shop, made.histories)
    files.write_tokenizer(codebook, made.model)
    vocabulary = files.vocabulary_size(codebook)
    plan = TrainSettings(vocabulary, files.BOS, seed=settings.shop.seed, **asdict(settings.training))
    made.write_summary(train(training_sequences(shop, codebook), plan, made.model, report))
