"""LC-Rec (RUCAIBox/LC-Rec): NAME.index.json, NAME.inter.json, NAME.item.json, a LLaMA with a token per code.

`test.py` ranks 20 beams by the mean log-probability of SID and end token (transformers' length_penalty 1.0).
Its mask is a set of tokens per level, so that some of its beams are no items; ours are items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.imports.artefacts import INDEXES, dataset_of, json_object
from xgr_runtime.cli.imports.draft import Draft, Wishes
from xgr_runtime.cli.imports.tables import add_titles, by_item, index_columns
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel

ITEMS = 20  # its --max_his_len
_AROUND = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{}\n\n### Response:"
)
# Its prompts of sequential recommendation, by number; evaluation asks number 0 unless told otherwise.
_PROMPTS = (
    "The user has interacted with items {history} in chronological order. Can you predict the next possible "
    "item that the user may expect?",
    "I find the user's historical interactive items: {history}, and I want to know what next item the user "
    "needs. Can you help me decide?",
    "Here are the user's historical interactions: {history}, try to recommend another item to the user. Note "
    "that the historical interactions are arranged in chronological order.",
    "Based on the items that the user has interacted with: {history}, can you determine what item would be "
    "recommended to him next?",
    "The user has interacted with the following items in order: {history}. What else do you think the user "
    "need?",
    "Here is the item interaction history of the user: {history}, what to recommend to the user next?",
    "Which item would the user be likely to interact with next after interacting with items {history}?",
    "By analyzing the user's historical interactions with items {history}, what is the next expected "
    "interaction item?",
    "After interacting with items {history}, what is the next item that could be recommended for the user?",
    "Given the user's historical interactive items arranged in chronological order: {history}, can you "
    "recommend a suitable item for the user?",
    "Considering the user has interacted with items {history}. What is the next recommendation for the user?",
    "What is the top recommended item for the user who has previously interacted with items {history} in "
    "order?",
    "The user has interacted with the following items in the past in order: {history}. Please predict the "
    "next item that the user most desires based on the given interaction records.",
    "Using the user's historical interactions as input data, suggest the next item that the user is highly "
    "likely to enjoy. The historical interactions are provided as follows: {history}.",
    "You can access the user's historical item interaction records: {history}. Now your task is to recommend "
    "the next potential item to him, considering his past interactions.",
    "You have observed that the user has interacted with the following items: {history}, please recommend a "
    "next item that you think would be suitable for the user.",
    "You have obtained the ordered list of user historical interaction items, which is as follows: "
    "{history}. Using this history as a reference, please select the next item to recommend to the user.",
)

name = "lcrec"
title = "LC-Rec"


def knows(artefacts: Artefacts) -> bool:
    """An index with the interactions of the same dataset."""
    return any(artefacts.of_dataset(dataset_of(index), "*.inter.json") for index in artefacts.named(*INDEXES))


def read(artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft:
    draft = read_index_of(artefacts)
    draft.templates = {f"prompt-{number}": _template(text) for number, text in enumerate(_PROMPTS)}
    draft.more = {"default_template": "prompt-0"}
    draft.scoring = {"tail": [model.end_token], "length_penalty": 1.0}
    draft.width = 20
    draft.assumed += [
        f"its prompt 0 with the newest {ITEMS} items, of the templates prompt-0 to prompt-16",
        f"{model.end_token} is scored behind each SID, as a mean: scoring in catalog.json",
    ]
    draft.unused.append(
        "its mask of decoding, a set of tokens per level: it allows SIDs that no item has; the trie is exact"
    )
    return draft


def _template(text: str) -> dict[str, Any]:
    return {
        "text": _AROUND.replace("{}", text),
        "item": "{sid}",
        "separator": ", ",
        "max_history_items": ITEMS,
    }


def read_index_of(artefacts: Artefacts) -> Draft:
    """Index, titles and a look at the interactions of one dataset; without templates."""
    index = artefacts.one(*INDEXES)
    dataset = dataset_of(index)
    columns = index_columns(index)
    draft = Draft(index, columns, {}, dataset)
    draft.found.append(f"SIDs of {index}")
    draft.trained_tokens = set(columns.tokens)
    for path in artefacts.of_dataset(dataset, "*.item.json")[:1]:
        draft.found.append(f"{add_titles(columns, path)} titles of {path}")
    for path in artefacts.of_dataset(dataset, "*.inter.json"):
        _check_interactions(path, by_item(columns), index)
        draft.found.append(f"{path} is of this catalog")
    return draft


def _check_interactions(path: Path, known: Mapping[str, object], index: Path) -> None:
    """Raises CatalogError where users have items that the index lacks."""
    for user, items in json_object(path).items():
        if not isinstance(items, list):
            raise CatalogError(f"{path}: user {user!r:.80} has {items!r:.80}: it must be a list of items")
        for item in items:
            if str(item) not in known:
                raise CatalogError(
                    f"{path}: user {user!r:.80} has item {item!r:.80}, and {index} has no such item: it is "
                    "of another dataset; take both from one, or move it away"
                )
