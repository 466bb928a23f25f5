"""The files under the folders that were named, looked at once and within bounds."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.errors import CatalogError
from xgr_runtime.files import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INDEXES = ("*.index.json", "*.index_*.json")  # of several projects: item -> SID
DEEPEST = 6  # folders below the one that was named
MOST_FILES = 20_000
_OF_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # no index of items
_TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt")  # of no use to anybody else
_SKIPPED = ("__pycache__", "node_modules", "wandb", "tb_logs")


class Artefacts:
    """Paths of all files under `roots`, each root a folder or one file. Raises CatalogError.

    `without`, a whole path, is not looked into. `dataset`: where several files would do, the one whose
    name begins so.
    """

    def __init__(self, roots: Sequence[Path], without: Path | None = None, dataset: str = "") -> None:
        self.roots = roots
        self.dataset = dataset
        self.paths = list(dict.fromkeys(path for root in roots for path in _below(root, without)))

    def named(self, *patterns: str) -> list[Path]:
        """Files with such a name, in order of their paths."""
        return sorted(
            path
            for path in self.paths
            if any(fnmatchcase(path.name, pattern) for pattern in patterns)
            and (path.name not in _OF_WEIGHTS or path.name in patterns)
        )

    def pickles(self, named: Sequence[str]) -> list[str]:
        """A line for those that training meant to be read again, but for what `named` says already."""
        found = [
            path for path in self.named("*.pkl", "*.pickle", "*.pt", "*.pth") if path.name not in _TRAINER
        ]
        left = [path for path in found if not any(line.startswith(f"{path}:") for line in named)]
        return [f"{listing(left)}: pickles, which are never read"] if left else []

    def of_dataset(self, dataset: str, *patterns: str) -> list[Path]:
        """Those of `named` whose name begins as the dataset's files do, and not as a longer dataset's."""
        longer = {dataset_of(index) for index in self.named(*INDEXES)}
        longer = {other for other in longer if other != dataset and other.startswith(dataset)}
        return [
            path
            for path in self.named(*patterns)
            if path.name.startswith(dataset) and not path.name.startswith(tuple(longer))
        ]

    def one(self, *patterns: str) -> Path:
        """The file with such a name. Raises CatalogError where several have one and no dataset decides."""
        found = self.named(*patterns)
        if not found:
            raise CatalogError(
                f"{self.roots[0]}: no {' or '.join(patterns)} in it, which the project of --as has: name its "
                "folder with --data, or leave --as out"
            )
        if self.dataset:
            exact = [
                path for path in found if path.name.startswith((f"{self.dataset}.", f"{self.dataset}_pid2"))
            ]
            begun = [path for path in found if path.name.startswith(self.dataset)]
            within = [path for path in found if path.parent.name == self.dataset]
            if not (narrowed := exact or begun or within):
                raise CatalogError(
                    f"--dataset {self.dataset!r:.80}: no such one among {listing(found)}: correct it"
                )
            found = narrowed
        if len(found) != 1:
            raise CatalogError(
                f"{found[0].parent}: several catalogs, {listing(found)}: choose one with --dataset NAME, or "
                "name its folder"
            )
        return found[0]


def _below(root: Path, without: Path | None) -> Iterator[Path]:
    if not root.is_dir():
        if not root.is_file():
            raise CatalogError(f"{root}: no such file or folder: name what training left behind")
        yield root
        return
    count, seen = 0, set()
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        real = here.resolve()
        if len(here.relative_to(root).parts) >= DEEPEST or real in seen:
            folders.clear()
        if real in seen:  # links lead here twice, or in a circle
            continue
        if real == without:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in _SKIPPED)
        for name in sorted(names):
            if name[0] == ".":
                continue
            count += 1
            if count > MOST_FILES:
                raise CatalogError(
                    f"{root} holds more than {MOST_FILES} files: name a folder further down, and the others "
                    "with --data and --model-path"
                )
            yield here / name


def dataset_of(path: Path, ending: str = ".index.json") -> str:
    """NAME of NAME.index.json, of NAME.index_VARIANT.json, and of NAME.pretrain.json."""
    return path.name.removesuffix(ending).split(".index", 1)[0]


def listing(paths: Sequence[Path], most: int = 6) -> str:
    """A few of them, for a message."""
    shown = ", ".join(str(path) for path in paths[:most])
    return f"{shown} and {len(paths) - most} more" if len(paths) > most else shown


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that exists. Raises CatalogError."""
    return read_object(path, CatalogError)
