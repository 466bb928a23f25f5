"""From a query to a job: text and items become tokens, rows and leaves of one version of a catalog."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from router.job import Job
from router.query.models import Model
from router.query.prompts import check_length, shorten
from router.query.query import History, Query, Text
from xgr_runtime.catalog import CatalogView, resolve_items
from xgr_runtime.errors import BadRequest, CatalogError

Tokens = NDArray[np.int32]


def bind(query: Query, model: Model, view: CatalogView, most_tokens: int) -> Job:
    """The job of a query about a version that is leased. Raises `BadRequest` naming the field.

    `most_tokens`: that its prompt may have.
    """
    tokens, dropped = _prompt(query, model, view, most_tokens)
    return Job(
        rid=query.rid,
        tokens=tokens,
        width=query.width,
        results=query.results,
        score_mode=query.score_mode,
        view=view,
        filter=resolve_items(view.catalog, query.allow, query.deny),
        deadline=query.deadline,
        priority=query.priority,
        dropped_items=dropped,
        probe=query.probe,
    )


def _prompt(query: Query, model: Model, view: CatalogView, most: int) -> tuple[Tokens, int]:
    """Token ids [L], and how many items of the history did not fit."""
    prompt = query.prompt
    if isinstance(prompt, History):
        return _from_history(prompt.items, view, most)
    if isinstance(prompt, Text):
        return _checked(model.texts.tokens(prompt.text, most), model.vocab_size, "text"), 0
    check_length(len(prompt.ids), "input_ids", most)
    return _checked(np.array(prompt.ids, np.int32), model.vocab_size, "input_ids"), 0


def _from_history(history: Sequence[str], view: CatalogView, most: int) -> tuple[Tokens, int]:
    leaves = view.catalog.leaves_of_items(history)
    unknown = np.flatnonzero(leaves < 0)
    if unknown.size:
        first = int(unknown[0])
        raise BadRequest(
            f"history[{first}] is {shorten(history[first])}, which this catalog does not hold "
            f"({unknown.size} unknown in all): leave it out",
            "history",
        )
    try:
        tokens, dropped = view.catalog.prompt_tokens(leaves.tolist(), most)
    except CatalogError as error:
        raise BadRequest(str(error), "history") from None
    check_length(len(tokens), "history", most)
    return np.array(tokens, np.int32), dropped


def _checked(tokens: Tokens, vocab_size: int, field: str) -> Tokens:
    wrong = np.flatnonzero(tokens >= vocab_size)
    if wrong.size:
        first = int(wrong[0])
        where = f"{field}[{first}]" if field == "input_ids" else f"token {first} of {field}"
        raise BadRequest(
            f"{where} is {tokens[first]}, the vocabulary ends at {vocab_size - 1}: correct it", field
        )
    return tokens
