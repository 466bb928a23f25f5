"""MiniOneRec (AkaliKong/MiniOneRec): NAME.index.json, the info file of its evaluation, test tables.

`evaluate.py` builds its trie of the info file, appends a newline and the end token to each SID, and ranks by
the sum of all their log-probabilities (`--length_penalty 0.0`, 50 beams).
"""

from __future__ import annotations

import ast
import csv
import re
from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.declared import Names, split_sid
from xgr_runtime.catalog.sources import read_columns
from xgr_runtime.cli.imports.artefacts import INDEXES, dataset_of
from xgr_runtime.cli.imports.draft import Draft, Wishes
from xgr_runtime.cli.imports.tables import by_item, check_agreement, index_columns
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel

_PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request. \n\n### Instruction:\nCan you predict the "
    "next possible item that the user may expect?\n\n### User Input: \nCan you predict the next possible "
    "item the user may expect, given the following chronological interaction history: {history}\n\n### "
    "Response:\n"
)
_INFO = re.compile(r"<[^<>\t]+>(<[^<>\t]+>)+\t.*\t?.+")
_ROWS = 2000  # of a test table, enough to see whether it is of this catalog

name = "minionerec"
title = "MiniOneRec"


def knows(artefacts: Artefacts) -> bool:
    """An index with the info file or the test table that its evaluation reads."""
    return any(
        _info_files(artefacts, dataset_of(index)) or _tables(artefacts, dataset_of(index))
        for index in artefacts.named(*INDEXES)
    )


def read(artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft:
    index = artefacts.one(*INDEXES)
    dataset = dataset_of(index)
    columns = index_columns(index)
    known = by_item(columns)
    draft = Draft(index, columns, {"default": _template()}, dataset)
    draft.trained_tokens = set(columns.tokens)
    draft.scoring = {"tail": ["\n", model.end_token], "length_penalty": 0.0}
    draft.found.append(f"SIDs of {index}")
    info = _info_files(artefacts, dataset)
    if len(info) > 1:
        raise CatalogError(
            f"{info[0]} and {info[1]} both are info files of {dataset}: leave one of them in place"
        )
    if info:
        _take_info(draft, info[0], known)
    else:
        draft.assumed.append("every item of the index may be recommended: no info file of evaluation is here")
    for table in _tables(artefacts, dataset):
        _check_table(table, known)
        draft.found.append(f"{table} is of this catalog")
    draft.assumed += [
        "the prompt of its evaluate.py: templates in catalog.json",
        f"a newline and {model.end_token} are scored behind each SID, as a sum: scoring in catalog.json",
    ]
    return draft


def _template() -> dict[str, Any]:
    return {"text": _PROMPT, "item": "{sid}", "separator": ", "}


def _take_info(draft: Draft, path: Path, known: Mapping[str, tuple[Any, ...]]) -> None:
    """The items of evaluation: those of the info file, with their titles."""
    info = read_columns(path, Names())
    check_agreement(info, path, known, draft.source)
    left_out = len(known) - len(info.items)
    draft.source, draft.columns = path, info
    draft.found.append(f"items and titles of {path}")
    if left_out:
        draft.unused.append(
            f"{left_out} items of the index: the info file, of which evaluation is, lacks them"
        )


def _info_files(artefacts: Artefacts, dataset: str) -> list[Path]:
    return [path for path in artefacts.of_dataset(dataset, "*.txt") if _looks_like_info(path)]


def _looks_like_info(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as lines:
            return _INFO.match(lines.readline()) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _tables(artefacts: Artefacts, dataset: str) -> list[Path]:
    """Tables of users with SIDs in them: by dataset's name, or any that is called test."""
    paths = [*artefacts.of_dataset(dataset, "*.csv"), *artefacts.named("test*.csv")]
    return sorted({path for path in paths if "history_item_sid" in _header(path)})


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return next(csv.reader(lines), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _check_table(path: Path, known: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises CatalogError where the SIDs of users' items are not those of the index."""
    number = 0
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for number, row in zip(range(1, _ROWS), csv.DictReader(lines), strict=False):
                items, sids = map(ast.literal_eval, (row["history_item_id"], row["history_item_sid"]))
                for item, sid in zip(map(str, items), map(str, sids), strict=True):
                    _check_item(path, number, item, sid, known)
    except (OSError, KeyError, ValueError, SyntaxError, TypeError, RecursionError, csv.Error) as error:
        raise CatalogError(f"{path}: row {number} cannot be read ({error!s:.200}): correct it") from error


def _check_item(path: Path, row: int, item: str, sid: str, known: Mapping[str, tuple[Any, ...]]) -> None:
    if known.get(item) != tuple(split_sid(sid)):
        there = "".join(known.get(item, ("no such item",)))
        raise CatalogError(
            f"{path}: row {row}, item {item!r:.80} has the SID {sid:.80}, and the index has {there}: it is "
            "of another dataset or run; take both from one, or move it away"
        )
