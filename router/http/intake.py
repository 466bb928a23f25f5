"""From the body of a request to a query: prompt, widths and filters, within what is served at most."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import msgspec

from router.http.schema import (
    Filters,
    GenerateRequest,
    Histories,
    Items,
    Message,
    ReturnFields,
    SampleItems,
    SamplingParams,
    refuse_sampling,
)
from router.http.settings import HttpSettings
from router.listing import Diversity, Listing
from router.query.conditions import check_condition, condition
from router.query.prompts import UNLIMITED, shorten
from router.query.query import MOST_PRIORITY, Conversation, History, Prompt, Query, Text, TokenIds
from xgr_runtime.catalog import CatalogView, Scoring
from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.messages import Limits

LEAST_ID, MOST_ID = -(1 << 63), (1 << 64) - 1  # of item ids that are numbers
FORMS = ("input_ids", "history", "text", "messages")  # of a prompt
_ONE_OF = "send exactly one of input_ids, history, text and messages"
# What belongs to some forms of a prompt alone.
_BELONGS = {
    "template": ("history", "messages"),
    "variables": ("history",),
    "chat_template_kwargs": ("messages",),
}
# A history's prompts are tried when a deployment starts, with the arguments that the catalog names.
_INSTEAD = {"chat_template_kwargs": "; those of a history stand in the catalog's template"}


class Intake:
    """Reads bodies under one deployment's settings."""

    def __init__(self, settings: HttpSettings, named: Callable[[], Mapping[str, str]] | None = None) -> None:
        """`named`: the deployment's named conditions; None: there are none, as nothing keeps them."""
        self.settings = settings
        self._named = named

    def query(
        self, body: GenerateRequest, rid: str, arrival: float, view: CatalogView, limits: Limits | None
    ) -> Query:
        """What `body`, which arrived at `arrival` (monotonic), asks of `view`.

        Raises `BadRequest` naming the field.
        """
        refuse_sampling(body, view.depth, view.catalog.emitted_tokens)
        params = body.sampling_params or SamplingParams()
        scoring = scores(params, view.catalog.scoring, limits)
        width, results = self.widths(params, limits)
        allow, deny = filters(body)
        return Query(
            rid=rid,
            prompt=prompt(body),
            width=width,
            results=results,
            deadline=arrival + self.seconds(body.timeout_ms),
            score_mode=scoring.score_mode,
            repetition_penalty=scoring.repetition_penalty,
            length_penalty=scoring.length_penalty,
            allow=allow,
            deny=deny,
            where=self._where(body.filters, view),
            listing=listing(body),
            priority=body.priority or 0,
            batch=body.priority_class == "batch",
        )

    def condition(self, given: Filters | None) -> str | None:
        """All that items have to fulfil, as one text, not looked at yet. Raises `BadRequest`."""
        if given is None or not given.named:
            return None if given is None else given.where
        if self._named is None:
            raise BadRequest(
                "filters.named needs a deployment with named filters: restart it with --catalog-store DIR, "
                "or send the condition as filters.where",
                "filters.named",
            )
        return condition(given.named, given.where, self._named())

    def _where(self, given: Filters | None, view: CatalogView) -> str | None:
        found = self.condition(given)
        if found is not None and given is not None and given.named:
            known = {} if self._named is None else self._named()
            check_condition(found, given.named, given.where, known, view)
        return found

    def seconds(self, timeout_ms: int | None) -> float:
        """That a request has."""
        return (timeout_ms or self.settings.timeout_ms) / 1000

    def max_beam_width(self, limits: Limits | None) -> int:
        """What the deployment allows and its workers can do."""
        theirs = limits.max_beam_width if limits else 0
        return min(self.settings.max_beam_width, theirs or UNLIMITED)

    def max_prompt_tokens(self, limits: Limits | None) -> int:
        """What the deployment allows and its workers can do."""
        theirs = limits.max_prompt_tokens if limits else 0
        return min(self.settings.max_prompt_tokens or UNLIMITED, theirs or UNLIMITED)

    def widths(self, params: SamplingParams, limits: Limits | None) -> tuple[int, int]:
        """Beam width and number of results."""
        most = self.max_beam_width(limits)
        width = (
            min(self.settings.default_beam_width, most) if params.beam_width is None else params.beam_width
        )
        if width > most:
            raise BadRequest(
                f"beam_width is {width}, the limit is {most}: lower it or restart with "
                f"--max-beam-width {width}",
                "sampling_params.beam_width",
            )
        results = width if params.n is None else params.n
        if results > width:
            raise BadRequest(
                f"n is {results}, beam_width is {width}: lower n or raise beam_width", "sampling_params.n"
            )
        return width, results


def scores(params: SamplingParams, defaults: Scoring, limits: Limits | None) -> Scoring:
    """What the request says of scores, else the catalog. Raises `BadRequest` for what no worker could do."""
    names = ("score_mode", "repetition_penalty", "length_penalty")
    given = {name: getattr(params, name) for name in names if getattr(params, name) is not None}
    scoring = msgspec.structs.replace(defaults, **given)
    if limits is not None and limits.plain_scores:
        for name, asks in (
            ("score_mode", scoring.score_mode == "level"),
            ("repetition_penalty", scoring.repetition_penalty != 1),
        ):
            if asks:
                raise BadRequest(
                    f"{name} is {getattr(scoring, name)}, which searches on a GPU lack: leave it out, or use "
                    "--device cpu",
                    f"sampling_params.{name}",
                )
    return scoring


def probe(rid: str, deadline: float, view: CatalogView) -> Query:
    """The smallest real request there is: one SID, one beam. Load is no illness.

    It goes through no template, which may need more than a history.
    """
    sid = view.catalog.sids[0].tolist()
    return Query(rid, TokenIds(sid), 1, 1, deadline, priority=MOST_PRIORITY, probe=True)


def prompt(body: GenerateRequest) -> Prompt:
    """Whichever of its forms the request has. Raises `BadRequest` naming the field."""
    given = [name for name in FORMS if getattr(body, name) is not None]
    if len(given) != 1:
        names = f"{' and '.join(given)} are" if given else "no prompt is"
        raise BadRequest(f"{names} given: {_ONE_OF}", given[-1] if given else "input_ids")
    for name, forms in _BELONGS.items():
        if getattr(body, name) is not None and given[0] not in forms:
            raise BadRequest(
                f"{name} needs {' or '.join(forms)}: send that, or leave {name} out{_INSTEAD.get(name, '')}",
                name,
            )
    if body.history is not None:
        drop = body.unknown_history == "drop"
        return History(histories(body.history), drop, body.template, body.variables or {})
    if body.messages is not None:
        return Conversation(chat(body.messages), body.template, chat_arguments(body))
    return TokenIds(cast("list[int]", body.input_ids)) if body.text is None else Text(body.text)


def histories(given: Items | Histories) -> dict[str, list[str]]:
    """Item ids of each list, by its name; one that came alone has the empty name."""
    if isinstance(given, list):
        return {"": item_ids(given, "history")}
    return {name: item_ids(items, f"history.{shorten(name)}", "history") for name, items in given.items()}


def chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages that hold a role and text alone. Raises `BadRequest` naming the one that does not."""
    for at, message in enumerate(messages):
        if type(message.get("role")) is not str:
            _refuse_message(f"messages[{at}].role", 'must be text such as "user"')
        content = message.get("content")
        if content is None:
            _refuse_message(f"messages[{at}].content", "is missing: send text, or a list of parts")
        for part, fields in enumerate(content if isinstance(content, list) else ()):
            if fields.get("type") != "text" or "text" not in fields:
                must = 'must be {"type": "text", "text": ...}: nothing else is read'
                _refuse_message(f"messages[{at}].content[{part}]", must)
    return cast("list[dict[str, Any]]", messages)


def chat_arguments(body: GenerateRequest) -> dict[str, Any]:
    """What the chat template is given besides messages. Raises `BadRequest`."""
    given = body.chat_template_kwargs or {}
    if "messages" in given:
        raise BadRequest(
            "chat_template_kwargs holds messages: leave them out there, send messages alone",
            "chat_template_kwargs",
        )
    return given


def _refuse_message(where: str, what: str) -> NoReturn:
    raise BadRequest(f"{where} {what}", "messages")


def filters(body: GenerateRequest) -> tuple[list[str] | None, list[str]]:
    """Items that are allowed, None for all, and denied: the history's too where the request wants that."""
    given = body.filters or Filters()
    allow = None if given.allow is None else item_ids(given.allow, "filters.allow")
    deny = item_ids(given.deny or [], "filters.deny")
    if given.exclude_history:
        if body.history is None:
            raise BadRequest(
                "exclude_history needs history: send it, or name the items in filters.deny",
                "filters.exclude_history",
            )
        deny += [item for items in histories(body.history).values() for item in items]
    return allow, deny


def listing(body: GenerateRequest) -> Listing:
    """Which items of the results are listed, and what is said of them."""
    which, said = body.items_per_sid or "all", body.returned or ReturnFields()
    diverse = body.diversity
    return Listing(
        per_sid=body.max_items_per_sid or (None if which == "all" else 1),
        sample=which.sample if isinstance(which, SampleItems) else None,
        most_items=body.max_items,
        diversity=None if diverse is None else Diversity(diverse.attribute, diverse.at_most),
        title=said.title,
        attributes=tuple(said.attributes),
    )


def item_ids(items: Sequence[int | str], where: str, field: str = "") -> list[str]:
    """Item ids as text, the form in which the catalog knows them.

    Raises `BadRequest` naming the entry; `field` where that is not what `where` says.
    """
    for at, item in enumerate(items):
        if type(item) is int and not LEAST_ID <= item <= MOST_ID:
            what = f"{where}[{at}] is a number of more than 64 bits: send it as text"
            raise BadRequest(what, field or where)
    return [item if type(item) is str else str(item) for item in items]
