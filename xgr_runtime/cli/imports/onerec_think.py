"""OneRec-Think (wangshy31/OneRec-Think): NAME.pretrain.json, item -> SID as text, title, categories.

Its evaluation ranks 10 beams by the mean log-probability of seven tokens: begin of SID, four codes, end of
SID, end of text. Its table of allowed tokens knows pairs of neighbours alone, so some beams are no items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.declared import Names
from xgr_runtime.catalog.sources import read_columns
from xgr_runtime.cli.imports.artefacts import dataset_of
from xgr_runtime.cli.imports.draft import Draft, Wishes
from xgr_runtime.cli.imports.tables import check_depth, sids
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from xgr_runtime.catalog.columns import Columns
    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel

_ENDING = ".pretrain.json"
_BEGIN, _END = "<|sid_begin|>", "<|sid_end|>"
_PROMPT = (
    "<|im_start|>system\nYou are a professional recommendation expert who needs to recommend the next "
    "possible purchase for users based on their purchase history. Please predict the most likely next "
    "product that the user will purchase based on the user's historical purchase "
    "information.<|im_end|>\n<|im_start|>user\nThe user has purchased the following items: "
    "{history};<|im_end|>\n<|im_start|>assistant\n<think>\n%s\n</think>\n"
)

name = "onerec-think"
title = "OneRec-Think"


def knows(artefacts: Artefacts) -> bool:
    return bool(artefacts.named("*" + _ENDING))


def read(artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft:
    source = artefacts.one("*" + _ENDING)
    columns = read_columns(source, Names())
    draft = Draft(source, columns, _templates(), dataset_of(source, _ENDING))
    draft.found.append(f"items, SIDs and titles of {source}")
    _strip(draft, columns)
    check_depth(source, columns)
    draft.scoring = {"head": [_BEGIN], "tail": [_END, model.end_token], "length_penalty": 1.0}
    draft.width = 10
    draft.assumed += [
        "its prompt without thinking; the template think takes a thought from a request's variables",
        f"{_BEGIN}, {_END} and {model.end_token} are scored, as a mean: scoring in catalog.json",
    ]
    for path in artefacts.named("*.pkl"):
        draft.unused.append(
            f"{path}: a pickle, which is never read; such a table knows pairs of neighbouring tokens alone "
            "and allows SIDs that no item has"
        )
    return draft


def _templates() -> dict[str, dict[str, Any]]:
    fields = {"item": f"{_BEGIN}{{sid}}{_END}", "separator": "; "}
    return {
        "default": {"text": _PROMPT % "", **fields},
        "think": {"text": _PROMPT % "{thought}", **fields},
    }


def _strip(draft: Draft, columns: Columns) -> None:
    """SIDs without their begin and end, which are scored and not part of the trie."""
    kept: list[Any] = []
    for row, sid in enumerate(sids(columns)):
        if len(sid) < 3 or (sid[0], sid[-1]) != (_BEGIN, _END):
            raise CatalogError(
                f"{draft.source}: {columns.place(row)}, item {columns.items[row]!r:.80}: the SID "
                f"{''.join(map(str, sid))!r:.80} must begin with {_BEGIN} and end with {_END}: correct it"
            )
        kept += sid[1:-1]
    columns.tokens, columns.lengths = kept, [length - 2 for length in columns.lengths]
