"""MIMIGenRec and GenRec: id2sid.json, new_tokens.json, sft/test.json, a chat model with one token per code.

`evaluate.py` sends system text, instruction and input through the checkpoint's chat template and ranks 50
beams by the sum of log-probabilities of SID and end token (`length_penalty=0.0`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.columns import decoded
from xgr_runtime.catalog.declared import split_sid
from xgr_runtime.cli.imports.draft import Draft, Wishes
from xgr_runtime.cli.imports.tables import add_titles, by_item, index_columns
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel

_SYSTEM = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_INSTRUCTION = "Can you predict the next possible item that the user may expect?"
_INPUT = (
    "Can you predict the next possible item the user may expect, given the following chronological "
    "interaction history: {history}"
)
_RUN = re.compile(r"(?:<[a-z]_\d+>)+(?:(?:[^<]{1,8})(?:<[a-z]_\d+>)+)*")
_ROWS = 2000

name = "genrec"
title = "MIMIGenRec or GenRec"


def knows(artefacts: Artefacts) -> bool:
    return bool(artefacts.named("id2sid.json"))


def read(artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft:
    source = artefacts.one("id2sid.json")
    columns = index_columns(source)
    draft = Draft(source, columns, {}, source.parent.name)
    draft.found.append(f"SIDs of {source}")
    draft.trained_tokens = set(columns.tokens)
    for path in artefacts.of_dataset(draft.dataset, "*.item.json")[:1]:
        draft.found.append(f"{add_titles(columns, path)} titles of {path}")
    system, instruction, asked = _SYSTEM, _INSTRUCTION, _INPUT
    test = source.parent / "sft" / "test.json"
    if test.is_file():
        system, instruction, asked = _wording(test, {sid for sid in by_item(columns).values()})
        draft.found.append(f"the wording of {test}")
    draft.templates = {
        "default": _template(system, f"{instruction}\n\n{asked}"),
        "rl": _template(system, asked),
    }
    draft.scoring = {"tail": [model.end_token], "length_penalty": 0.0}
    draft.assumed += [
        "the prompt of evaluate.py; the template rl is that of training by rewards: templates in "
        "catalog.json",
        f"{model.end_token} is scored behind each SID, as a sum: scoring in catalog.json",
        "no repetition penalty. evaluate.py applies 1.1 unless told otherwise, also to what pads a batch, "
        "and normalises again: run it with --repetition_penalty 1.0, or write repetition_penalty 1.1 and "
        "renormalize true into scoring in catalog.json",
    ]
    return draft


def _template(system: str, user: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "item": "{sid}",
        "separator": ", ",
    }


def _wording(path: Path, known: set[tuple[Any, ...]]) -> tuple[str, str, str]:
    """System text, instruction and input of the project's own test set, with {history} for the SIDs.

    Raises CatalogError where its SIDs are not of the catalog, or where no record is such a question.
    """
    try:
        records = json.loads(decoded(path, path.read_bytes()))
        asked = [(r.get("system", ""), r["instruction"], r["input"]) for r in records[:_ROWS]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CatalogError(
            f"{path} must be a list of objects with instruction and input ({error!s:.200}): correct or "
            "move it away"
        ) from error
    questions = [(one, _RUN.findall(one[2])) for one in asked]
    for one, runs in questions:
        if len(runs) == 1:
            _check(path, runs[0], known)
            system, instruction, text = (part.replace("{", "{{").replace("}", "}}") for part in one)
            return system, instruction, text.replace(runs[0], "{history}")
    raise CatalogError(f"{path}: no record's input holds one list of SIDs: correct it or move it away")


def _check(path: Path, run: str, known: set[tuple[Any, ...]]) -> None:
    depth = len(next(iter(known)))
    for sid in run.split(", "):
        if tuple(split_sid(sid)) not in known:
            raise CatalogError(
                f"{path}: the SID {sid:.80} is none of the catalog's, which have {depth} levels: it is of "
                "another dataset or run; take both from one, or move it away"
            )
