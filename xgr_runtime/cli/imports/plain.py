"""Any table of items and SIDs that a catalog is built from, without a project that would say more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from xgr_runtime.catalog.declared import Declared, declared
from xgr_runtime.catalog.sources import read_columns
from xgr_runtime.cli.imports.artefacts import json_object
from xgr_runtime.cli.imports.draft import Draft, Wishes

if TYPE_CHECKING:
    from pathlib import Path

    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import Checkpoint

_NAMES = ("*index*.json", "items*.json", "items*.jsonl", "items*.parquet", "items*.tsv", "catalog*.jsonl")
_WEIGHTS = "*.safetensors.index.json"

name = "plain"
title = "a plain table of items and SIDs"


def knows(artefacts: Artefacts) -> bool:
    """A file that was named itself, or one that is called index or items."""
    return bool(_candidates(artefacts))


def read(artefacts: Artefacts, checkpoint: Checkpoint, wishes: Wishes) -> Draft:
    candidates = _candidates(artefacts)
    source = candidates[0] if len(candidates) == 1 else artefacts.one(*{path.name for path in candidates})
    beside = source.with_name("catalog.json")
    fields = json_object(beside) if beside.is_file() else {}
    form = declared(fields, beside, wishes.form)
    columns = read_columns(source, form.columns)
    draft = Draft(
        source,
        columns,
        dict(fields.get("templates") or {}),
        form=msgspec.structs.replace(form, columns=Declared().columns),
    )
    draft.scoring = dict(fields.get("scoring") or {})
    draft.found.append(f"items and SIDs of {source}")
    if draft.templates:
        draft.found.append(f"templates and scoring of {beside}")
    else:
        draft.templates = {"default": {"text": "{history}", "item": "{sid}", "separator": ""}}
        draft.assumed.append("prompts are SIDs alone, one behind the other: templates in catalog.json")
    if not draft.scoring:
        draft.assumed.append("the SID's own tokens are scored, as a sum: scoring in catalog.json")
    return draft


def _candidates(artefacts: Artefacts) -> list[Path]:
    if named := [root for root in artefacts.roots if root.is_file()]:
        return named[:1]
    weights = artefacts.named(_WEIGHTS)
    return [path for path in artefacts.named(*_NAMES) if path not in weights]
