"""LETTER and TIGER: the files of LC-Rec with a T5, whose encoder reads the history.

Encoders are not served. The catalog and a template can still be written for a decoder that was trained on
the same SIDs: SIDs alone, one behind the other, and the end token scored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgr_runtime.cli.imports import lcrec
from xgr_runtime.cli.imports.draft import Draft, Wishes

if TYPE_CHECKING:
    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel

name = "letter"
title = "LETTER or TIGER"


def knows(artefacts: Artefacts) -> bool:
    """Never by its files, which are LC-Rec's: by the checkpoint, or by --as."""
    return False


def read(artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft:
    draft = lcrec.read_index_of(artefacts)
    draft.templates = {
        "default": {
            "text": "{history}",
            "item": "{sid}",
            "separator": "",
            "max_history_items": lcrec.ITEMS,
        }
    }
    draft.scoring = {"tail": [model.end_token], "length_penalty": 1.0}
    draft.width = 20
    draft.assumed += [
        f"a decoder that was trained on SIDs alone, the newest {lcrec.ITEMS} items: templates in "
        "catalog.json",
        f"{model.end_token} is scored behind each SID, as a mean: scoring in catalog.json",
    ]
    return draft
