"""Any table of items and SIDs that a catalog is built from, without a project that would say more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.catalog.beside import read_beside, template_file
from xgr_runtime.catalog.columns import decoded
from xgr_runtime.catalog.declared import Declared, declared
from xgr_runtime.catalog.sources import read_columns
from xgr_runtime.cli.imports.draft import Draft, Wishes, chat_template_names
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel

_NAMES = ("*index*.json", "items*.json", "items*.jsonl", "items*.parquet", "items*.tsv", "catalog*.jsonl")

_PARTS = ("part-*.parquet", "part-*.json", "part-*.jsonl", "part-*.tsv")  # of a folder, as Spark writes it

name = "plain"
title = "a plain table of items and SIDs"


def knows(artefacts: Artefacts) -> bool:
    """A file that was named itself, or one that is called index or items."""
    return bool(_candidates(artefacts))


def read(artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft:
    candidates = _candidates(artefacts)
    source = candidates[0] if len(candidates) == 1 else artefacts.one(*{path.name for path in candidates})
    beside = template_file(source)
    fields = read_beside(source)
    form = declared(fields, beside, wishes.form)
    columns = read_columns(source, form.columns)
    draft = Draft(source, columns, {}, form=msgspec.structs.replace(form, columns=Declared().columns))
    draft.found.append(f"items and SIDs of {source}")
    draft.more = {name: value for name, value in fields.items() if name not in Declared.__struct_fields__}
    if draft.more:
        draft.found.append(f"{', '.join(draft.more)} of {beside}")
        draft.files = _chat_templates(draft.more, beside)
    if not draft.more.keys() - {"scoring"}:
        draft.templates = {"default": {"text": "{history}", "item": "{sid}", "separator": ""}}
        draft.assumed.append("prompts are SIDs alone, one behind the other: templates in catalog.json")
    if "scoring" not in draft.more:
        draft.assumed.append("the SID's own tokens are scored, as a sum: scoring in catalog.json")
    return draft


def _chat_templates(fields: Mapping[str, Any], beside: Path) -> dict[str, str]:
    """The files that its templates name, by name. Raises CatalogError."""
    files: dict[str, str] = {}
    for name in chat_template_names(fields):
        try:
            files[name] = decoded(beside.with_name(name), beside.with_name(name).read_bytes())
        except OSError as error:
            raise CatalogError(
                f"{beside}: chat_template is {name!r:.80}, which cannot be read ({error.strerror or error}): "
                "put it beside, or name another"
            ) from error
    return files


def _candidates(artefacts: Artefacts) -> list[Path]:
    if named := [root for root in artefacts.roots if root.is_file()]:
        return named[:1]
    parts = {path.parent for path in artefacts.named(*_PARTS)}
    return [*artefacts.named(*_NAMES), *sorted(parts)]
