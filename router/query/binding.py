"""From a query to a job: text and items become tokens, rows and leaves of one version of a catalog."""

from typing import NamedTuple, NoReturn

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
    head = np.array(view.catalog.scoring.prompt_head, np.int32)  # behind every prompt
    prompt = _prompt(query, model, view, most_tokens - len(head))
    return Job(
        rid=query.rid,
        tokens=np.concatenate([prompt.tokens, head]),
        width=query.width,
        results=query.results,
        score_mode=query.score_mode,
        repetition_penalty=query.repetition_penalty,
        length_penalty=query.length_penalty,
        view=view,
        filter=resolve_items(view.catalog, query.allow, query.deny),
        deadline=query.deadline,
        priority=query.priority,
        dropped_items=prompt.dropped,
        unknown_history=prompt.unknown,
        probe=query.probe,
    )


class _Bound(NamedTuple):
    tokens: Tokens  # [L]
    dropped: int = 0  # items of the history that did not fit
    unknown: int = 0  # and that the catalog does not hold


def _prompt(query: Query, model: Model, view: CatalogView, most: int) -> _Bound:
    prompt = query.prompt
    if isinstance(prompt, History):
        return _from_history(prompt, view, most)
    if isinstance(prompt, Text):
        return _Bound(_checked(model.texts.tokens(prompt.text, most), model.vocab_size, "text"))
    check_length(len(prompt.ids), "input_ids", most)
    return _Bound(_checked(np.array(prompt.ids, np.int32), model.vocab_size, "input_ids"))


def _from_history(history: History, view: CatalogView, most: int) -> _Bound:
    leaves = view.catalog.leaves_of_items(history.items)
    known = leaves >= 0
    unknown = len(leaves) - int(known.sum())
    if unknown and not (history.drop_unknown and known.any()):
        _refuse_unknown(history, int(np.argmin(known)), unknown)
    try:
        tokens, dropped = view.catalog.prompt_tokens(leaves[known].tolist(), most)
    except CatalogError as error:
        raise BadRequest(str(error), "history") from None
    check_length(len(tokens), "history", most)
    return _Bound(np.array(tokens, np.int32), dropped, unknown)


def _refuse_unknown(history: History, first: int, unknown: int) -> NoReturn:
    remedy = (
        "send one that it holds" if history.drop_unknown else 'leave it out or set unknown_history to "drop"'
    )
    raise BadRequest(
        f"history[{first}] is {shorten(history.items[first])}, which this catalog does not hold "
        f"({unknown} unknown in all): {remedy}",
        "history",
    )


def _checked(tokens: Tokens, vocab_size: int, field: str) -> Tokens:
    wrong = np.flatnonzero(tokens >= vocab_size)
    if wrong.size:
        first = int(wrong[0])
        where = f"{field}[{first}]" if field == "input_ids" else f"token {first} of {field}"
        raise BadRequest(
            f"{where} is {tokens[first]}, the vocabulary ends at {vocab_size - 1}: correct it", field
        )
    return tokens
