"""From a query to a job: text and items become tokens, rows and leaves of one version of a catalog."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from router.job import Job
from router.query.listings import check_listing
from router.query.models import Model
from router.query.prompts import check_length, shorten
from router.query.query import Conversation, History, Query, Text
from xgr_runtime.catalog import CatalogView, FilterSpec, resolve_items
from xgr_runtime.catalog.scoring import shared_end
from xgr_runtime.errors import BadRequest, CatalogError
from xgr_runtime.prompts import Rendered
from xgr_runtime.scheduling.queue import BATCH

Tokens = NDArray[np.int32]


def bind(query: Query, model: Model, view: CatalogView, most_tokens: int) -> Job:
    """The job of a query about a version that is leased. Raises `BadRequest` naming the field.

    `most_tokens`: that its prompt may have.
    """
    check_listing(query.listing, view.catalog)
    head = np.array(view.catalog.scoring.prompt_head, np.int32)  # behind every prompt
    prompt = _prompt(query, model, view, most_tokens - len(head))
    _check_end(query, view, prompt.tokens)
    return Job(
        rid=query.rid,
        tokens=np.concatenate([prompt.tokens, head]),
        width=query.width,
        results=query.results,
        score_mode=query.score_mode,
        repetition_penalty=query.repetition_penalty,
        length_penalty=query.length_penalty,
        view=view,
        filter=_filter(query, view),
        deadline=query.deadline,
        priority=query.priority - BATCH * query.batch,
        dropped_items=prompt.dropped,
        unknown_history=prompt.unknown,
        listing=query.listing,
        probe=query.probe,
    )


def _filter(query: Query, view: CatalogView) -> FilterSpec:
    return resolve_items(view.catalog, query.allow, query.deny, view.live(query.where))


def _check_end(query: Query, view: CatalogView, tokens: Tokens) -> None:
    """Raises `BadRequest` where a text ends in what scoring puts behind it; ids are taken as they are."""
    head = [forced.token for forced in view.catalog.scoring.head]
    fields = {History: "history", Conversation: "messages", Text: "text"}
    field = fields.get(type(query.prompt))
    if head and field is not None and shared_end(tokens[-len(head) :].tolist(), head):
        raise BadRequest(
            f"{field} gives a prompt that ends in the token {head[0]}, with which the head of this catalog's "
            "scoring begins: it would come twice, leave it out",
            field,
        )


class _Bound(NamedTuple):
    tokens: Tokens  # [L]
    dropped: int = 0  # items of the history that did not fit
    unknown: int = 0  # and that the catalog does not hold


def _prompt(query: Query, model: Model, view: CatalogView, most: int) -> _Bound:
    prompt = query.prompt
    if isinstance(prompt, History):
        return _from_history(prompt, model, view, most)
    if isinstance(prompt, Conversation):
        return _from_chat(prompt, model, view, most)
    if isinstance(prompt, Text):
        return _Bound(_checked(model.texts.tokens(prompt.text, most), model.vocab_size, "text"))
    check_length(len(prompt.ids), "input_ids", most)
    return _Bound(_checked(np.array(prompt.ids, np.int32), model.vocab_size, "input_ids"))


def _from_history(history: History, model: Model, view: CatalogView, most: int) -> _Bound:
    rows = {name: view.catalog.item_rows(items) for name, items in history.items.items()}
    known = {name: found[found >= 0] for name, found in rows.items()}
    asked, kept = sum(map(len, rows.values())), sum(map(len, known.values()))
    if kept < asked and not (history.drop_unknown and kept):
        _refuse_unknown(history, rows, asked - kept)
    leaves = {name: view.catalog.leaf_of_row[found] for name, found in known.items()}
    model.texts.check_room(history.variables.values(), most, "variables")
    rendered = _rendered(
        lambda: model.prompts.of_history(
            view.catalog, history.template, leaves, history.variables, most, rows=known
        ),
        "history",
    )
    check_length(len(rendered.tokens), "history", most)
    tokens = _checked(rendered.tokens, model.vocab_size, "history")
    return _Bound(tokens, rendered.dropped, asked - kept)


def _from_chat(chat: Conversation, model: Model, view: CatalogView, most: int) -> _Bound:
    model.texts.check_size(texts_of(chat.messages), most, "messages")
    rendered = _rendered(
        lambda: model.prompts.of_messages(view.catalog, chat.template, chat.messages, chat.kwargs, most),
        "messages",
    )
    check_length(len(rendered.tokens), "messages", most)
    return _Bound(_checked(rendered.tokens, model.vocab_size, "messages"))


def _rendered(render: Callable[[], Rendered], field: str) -> Rendered:
    """What a template makes of a request. Raises `BadRequest` naming the field, by default `field`."""
    try:
        return render()
    except CatalogError as error:
        raise BadRequest(str(error), field) from None


def texts_of(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whatever of messages may end up in a prompt."""
    for message in messages:
        for value in message.values():
            if isinstance(value, str):
                yield value
            for part in value if isinstance(value, list) else ():
                yield from part.values()


def _refuse_unknown(history: History, leaves: Mapping[str, NDArray[np.integer]], unknown: int) -> NoReturn:
    name = next(name for name, found in leaves.items() if (found < 0).any())
    first = int(np.argmax(leaves[name] < 0))
    where = f"history.{shorten(name)}" if name else "history"
    remedy = (
        "send one that it holds" if history.drop_unknown else 'leave it out or set unknown_history to "drop"'
    )
    raise BadRequest(
        f"{where}[{first}] is {shorten(history.items[name][first])}, which this catalog does not hold "
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
