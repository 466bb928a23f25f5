"""The files of a checkpoint beside its weights, as one folder: what tokenizers, catalogs and templates need.

Of an adapter they lie in two folders, and the size of the vocabulary is said by its weights.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xgr_runtime.checkpoint.adapter import Adapter, find_adapter
from xgr_runtime.checkpoint.merging import Merger, read_merger
from xgr_runtime.checkpoint.names import (
    CONFIG,
    GENERATION,
    TEMPLATE_FOLDER,
    TEMPLATES,
    TOKENIZER,
    VOCABULARIES,
)
from xgr_runtime.errors import ModelError
from xgr_runtime.files import is_missing


@contextlib.contextmanager
def described(folder: Path, base: str = "") -> Iterator[Path]:
    """A folder with config, tokenizer and templates of the checkpoint: its own, or for an adapter a copy.

    `base` as in `find_adapter`. The copy is gone afterwards. Raises ModelError.
    """
    adapter = find_adapter(folder, base)
    if adapter is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="xgr-") as copy:
        lay_out(read_merger(adapter), Path(copy))
        yield Path(copy)


def lay_out(merger: Merger, out: Path, dtype: str = "") -> None:
    """All of the merged checkpoint but its weights, which are in `dtype`. Raises OSError, ModelError."""
    (out / CONFIG).write_bytes(merger.config_in(dtype))
    for file in small_files(merger.adapter):
        target = shutil.copytree if file.is_dir() else shutil.copyfile
        target(file, out / file.name)


def small_files(adapter: Adapter) -> list[Path]:
    """Tokenizer, templates and generation_config.json, which go with the weights as they are.

    A tokenizer saved beside the adapter is the one that training used. Raises ModelError.
    """
    own = [name for name in TOKENIZER if not is_missing(adapter.folder / name)]
    if own and not any(name in VOCABULARIES for name in own):
        raise ModelError(
            f"{adapter.folder}: {own[0]} is part of a tokenizer whose vocabulary is not there: save all "
            "files of the tokenizer that training used, or none"
        )
    source = adapter.folder if own else adapter.base
    names = (*TOKENIZER, *TEMPLATES, TEMPLATE_FOLDER)
    found = [source / name for name in names if not is_missing(source / name)]
    generation = adapter.base / GENERATION
    return [*found, *([] if is_missing(generation) else [generation])]
