"""UniGenRec codebooks: NAME.codebook.json (item row -> SID as text), or NAME.npy [items, levels] of codes.

Its decoder (LCRec) has a token <SID_level_code> per code, writes blanks between them in prompts, and ranks 20
beams by the mean log-probability of SID and end token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.columns import Columns, canonical
from xgr_runtime.catalog.declared import Declared
from xgr_runtime.cli.imports.artefacts import json_object
from xgr_runtime.cli.imports.draft import Draft, Wishes
from xgr_runtime.errors import CatalogError
from xgr_runtime.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel

_SPELLINGS = ("<SID_{level}_{code}>", "<L{level}_{code}>")  # of the decoder, and of the codebook itself
_CODE = re.compile(r"<L(\d+)_(\d+)>")
_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nGiven the user's historical interactions in chronological order, "
    "predict the next item Semantic ID.\n\n### Input:\n{history}\n\n### Response:"
)

name = "unigenrec"
title = "UniGenRec"


def knows(artefacts: Artefacts) -> bool:
    return bool(artefacts.named("*.codebook.json")) or any(
        path.parent.name == "codebooks" for path in artefacts.named("*.npy")
    )


def read(artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft:
    texts = artefacts.named("*.codebook.json")
    source = artefacts.one("*.codebook.json") if texts else artefacts.one("*.npy")
    codes = _codes_of_text(source) if texts else _codes_of_array(source)
    spelling = _spelling(source, codes, model)
    stem = source.name.removesuffix(".codebook.json").removesuffix(".npy")
    raw = _raw_ids(source.with_name(f"{stem}.mapping.jsonl"))
    columns = Columns.of_sids(source, list(map(str, codes)), list(codes.values()), lambda row: f"row {row}")
    columns.attributes = [
        canonical({"spaced_sid": _spaced(sid, spelling), "raw_item_id": raw.get(item)})
        for item, sid in codes.items()
    ]
    form = Declared("".join(spelling.format(level=n, code=f"{{{n}}}") for n in range(columns.lengths[0])))
    draft = Draft(source, columns, {"default": _template()}, stem, form, width=20)
    draft.scoring = {"tail": [model.end_token], "length_penalty": 1.0}
    draft.found.append(f"codes of {source}, spelt {form.sid_format:.100}")
    draft.assumed += [
        "items are numbered as in its interactions, from 0; ids of the raw data are the attribute "
        "raw_item_id",
        "the prompt of its LCRec model: templates in catalog.json",
        f"{model.end_token} is scored behind each SID, as a mean: scoring in catalog.json",
        "its evaluation pads prompts on the right, behind which a decoder does not go on: compare with "
        "batches of one",
    ]
    return draft


def _template() -> dict[str, Any]:
    return {
        "text": _PROMPT,
        "item": "{spaced_sid}",
        "separator": ", ",
        "empty_history": "None",
        "special_tokens": False,
    }


def _spaced(codes: list[int], spelling: str) -> str:
    return " ".join(spelling.format(level=level, code=code) for level, code in enumerate(codes))


def _codes_of_text(path: Path) -> dict[int, list[int]]:
    """Codes by row. Raises CatalogError for a level that is missing or out of its place."""
    codes: dict[int, list[int]] = {}
    for row, text in json_object(path).items():
        levels = _CODE.findall(text) if isinstance(text, str) else []
        if (
            not row.isdecimal()
            or not levels
            or [int(level) for level, _ in levels] != list(range(len(levels)))
        ):
            raise CatalogError(
                f"{path}: row {row!r:.40} is {text!r:.80}: it must be <L0_code> <L1_code> ..., without a gap"
            )
        codes[int(row)] = [int(code) for _, code in levels]
    if not codes:
        raise CatalogError(f"{path} is empty: name a codebook with items")
    return codes


def _codes_of_array(path: Path) -> dict[int, list[int]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CatalogError(
            f"{path} is no plain array ({error!s:.200}): save it as integers [items, levels]; pickles are "
            "not read"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        shape = getattr(array, "shape", None)
        raise CatalogError(
            f"{path} holds {getattr(array, 'dtype', None)} {shape}: it must be integers [items, levels]"
        )
    return dict(enumerate(array.tolist()))


def _spelling(path: Path, codes: dict[int, list[int]], model: TrainedModel) -> str:
    """How the checkpoint's tokenizer spells the codes. Raises CatalogError where it has no such tokens."""
    first = next(iter(codes.values()))
    tokenizer = read_tokenizer(model.files)
    tried = [[one.format(level=n, code=code) for n, code in enumerate(first)] for one in _SPELLINGS]
    for spelling, tokens in zip(_SPELLINGS, tried, strict=True):
        if tokenizer is not None and all(tokenizer.token_to_id(token) is not None for token in tokens):
            return spelling
    raise CatalogError(
        f"{path}: the tokenizer of {model.folder} has neither {tried[0][0]} nor {tried[1][0]}: name the "
        "checkpoint that was trained on this codebook with --model-path"
    )


def _raw_ids(path: Path) -> dict[int, str]:
    """Ids of the raw data by row, {} without a mapping. Raises CatalogError."""
    if not path.is_file():
        return {}
    try:
        rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.strip()]
        return {int(row["row_index"]): str(row["raw_item_id"]) for row in rows}
    except (OSError, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise CatalogError(
            f"{path}: a line is an object with row_index and raw_item_id ({error!s:.200}): correct it"
        ) from error
