"""`Prompts`: a checkpoint's way from a history, or from messages, to token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xgr_runtime.catalog.template import MessagesTemplate, PromptTemplate, Template, prompt_tokens
from xgr_runtime.errors import BadRequest, CatalogError
from xgr_runtime.prompts.chat import Chat
from xgr_runtime.prompts.items import Spelling
from xgr_runtime.prompts.jinja import TemplateFailure
from xgr_runtime.prompts.plans import Plan
from xgr_runtime.prompts.texts import Texts
from xgr_runtime.prompts.windows import largest, newest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog

    Int32 = NDArray[np.int32]

_VERSIONS = 4  # catalogs whose templates are kept as they were read


class Rendered(NamedTuple):
    """A prompt: its tokens [L], how many items of the history it does not show, its text if it has one."""

    tokens: Int32
    dropped: int
    text: str | None


class Prompts:
    """Of one checkpoint; for all versions of its catalogs, and for several threads."""

    def __init__(self, tokenizer: Tokenizer | None, chat: Chat) -> None:
        """Without a tokenizer there are prompts of ids alone."""
        self.chat = chat
        self._tokenizer = tokenizer
        self._texts = Texts(tokenizer) if tokenizer is not None else None
        self._spelling = Spelling(tokenizer) if tokenizer is not None else None
        self._plans: dict[tuple[str, str], Plan] = {}

    @classmethod
    def read(cls, tokenizer: Tokenizer | None, folder: Path | None) -> Prompts:
        """Of the checkpoint in `folder`. Raises ModelError for files that cannot be read."""
        return cls(tokenizer, Chat() if folder is None else Chat.read(folder))

    def check(self, catalog: Catalog) -> None:
        """Renders every template once. Raises CatalogError that names the template and what to change."""
        for name, template in catalog.templates.named.items():
            try:
                self._check(catalog, name, template)
            except (BadRequest, TemplateFailure, CatalogError) as error:
                raise CatalogError(f"templates.{name}: {error}") from error

    def of_history(
        self,
        catalog: Catalog,
        template: str | None,
        histories: Mapping[str, NDArray[Any]],
        variables: Mapping[str, str],
        most_tokens: int,
    ) -> Rendered:
        """The prompt of the newest items of each history that fit.

        histories: name -> leaves, oldest first; a plain list is the history named "". Raises BadRequest that
        names the field.
        """
        name, found = _named(catalog, template)
        if isinstance(found, PromptTemplate):
            return _of_ids(catalog, found, histories, variables, most_tokens)
        plan = self._plan(catalog, name, found)
        values = plan.variables(variables)
        plan.check_histories(histories)
        full = {
            key: newest(leaves, found.max_history_items, found.window_step)
            for key, leaves in histories.items()
        }
        return self._fitting(catalog, plan, full, histories, values, most_tokens)

    def of_messages(
        self,
        catalog: Catalog,
        template: str | None,
        messages: Sequence[Mapping[str, Any]],
        kwargs: Mapping[str, Any],
        most_tokens: int,
    ) -> Rendered:
        """The prompt of messages that a request carries. Raises BadRequest that names the field."""
        found = _for_messages(catalog, template)
        texts, _ = self._read_by()
        try:
            chat = self.chat.template(found.chat_template)
            text = self.chat.text(chat, messages, {**found.chat_template_kwargs, **kwargs})
        except (CatalogError, TemplateFailure) as error:
            raise BadRequest(f"messages: {error}", "messages") from error
        text += found.generation_prefix
        tokens = texts.tokens(text, most_tokens, "messages", special=False)
        if len(tokens) > most_tokens:
            raise _too_long("messages", len(tokens), most_tokens)
        return Rendered(tokens, 0, text)

    def _fitting(
        self,
        catalog: Catalog,
        plan: Plan,
        windows: Mapping[str, NDArray[Any]],
        histories: Mapping[str, NDArray[Any]],
        values: Mapping[str, str],
        most: int,
    ) -> Rendered:
        """With as many items of each window as fit, the same number of each that has so many."""
        texts, spelling = self._read_by()
        tried: dict[int, tuple[Int32, str]] = {}

        def tokens(count: int) -> int:
            shown = {key: leaves[max(0, len(leaves) - count) :] for key, leaves in windows.items()}
            if plan.window_step > 1 and count < longest:
                shown = {key: newest(leaves, count, plan.window_step) for key, leaves in shown.items()}
            text = plan.text(catalog, spelling, self.chat, shown, values)
            tried[count] = texts.tokens(text, most, "history", special=plan.special_tokens), text
            kept[count] = sum(map(len, shown.values()))
            return len(tried[count][0])

        kept: dict[int, int] = {}
        longest = max(map(len, windows.values()), default=0)
        upper = min(longest, most // plan.least_tokens(catalog.depth))
        count = upper
        if (needed := tokens(upper)) > most:
            count = largest(upper - 1, lambda n: tokens(n) <= most, upper * most // needed)
        if count < 0:
            raise _too_long("history", len(tried[0][0]), most)
        found, text = tried[count]
        return Rendered(found, sum(map(len, histories.values())) - kept[count], text)

    def _check(self, catalog: Catalog, name: str, template: Template) -> None:
        if isinstance(template, PromptTemplate):
            return
        plan = self._plan(catalog, name, template)
        _, spelling = self._read_by()
        plan.check(catalog, spelling, self.chat)

    def _plan(self, catalog: Catalog, name: str, template: Any) -> Plan:
        key = (catalog.version, name)
        if (plan := self._plans.get(key)) is None:
            self._read_by()
            versions = list(dict.fromkeys(version for version, _ in self._plans))
            if catalog.version not in versions and len(versions) >= _VERSIONS:
                self._plans = {at: one for at, one in self._plans.items() if at[0] != versions[0]}
            plan = self._plans[key] = Plan(name, template)
        return plan

    def _read_by(self) -> tuple[Texts, Spelling]:
        if self._texts is None or self._spelling is None:
            raise BadRequest(
                "the checkpoint has no tokenizer, which templates of text need: save its files in the "
                "checkpoint's folder",
                "template",
            )
        return self._texts, self._spelling


def _named(catalog: Catalog, name: str | None) -> tuple[str, Template]:
    """The template that a request means. Raises BadRequest."""
    templates = catalog.templates
    names = ", ".join(templates.named)
    if name is not None and name not in templates.named:
        raise BadRequest(f"template is {name!r:.80}, this catalog has {names}: name one of these", "template")
    found = templates.default if name is None else templates.named[name]
    if found is None:
        raise BadRequest(f"no template is named, and this catalog has {names}: name one", "template")
    return name or next(key for key, one in templates.named.items() if one is found), found


def _for_messages(catalog: Catalog, name: str | None) -> MessagesTemplate:
    """The template for messages that a request carries; the checkpoint's own where the catalog has none."""
    if name is not None:
        found = _named(catalog, name)[1]
        if not isinstance(found, MessagesTemplate):
            raise BadRequest(f"template {name!r:.80} is not one of messages: name another", "template")
        return found
    if isinstance(catalog.templates.default, MessagesTemplate):
        return catalog.templates.default
    alone = [
        one
        for one in catalog.templates.named.values()
        if isinstance(one, MessagesTemplate) and not one.messages
    ]
    if len(alone) > 1:
        raise BadRequest(
            "no template is named, and this catalog has several for messages: name one", "template"
        )
    return alone[0] if alone else MessagesTemplate()


def _of_ids(
    catalog: Catalog,
    template: PromptTemplate,
    histories: Mapping[str, NDArray[Any]],
    variables: Mapping[str, str],
    most: int,
) -> Rendered:
    if variables:
        raise BadRequest("the template is of ids and takes no variables: leave them out", "variables")
    if set(histories) != {""}:
        raise BadRequest("the template is of ids and takes one list: send history as a list", "history")
    leaves = newest(histories[""], template.max_history_items, template.window_step)
    try:
        tokens, _ = prompt_tokens(template, catalog.sids, leaves, most)
    except CatalogError as error:
        raise BadRequest(str(error), "history") from None
    fixed = len(template.prefix) + len(template.suffix)
    per_item = catalog.depth + len(template.separator)
    shown = (len(tokens) - fixed + len(template.separator)) // per_item if len(tokens) > fixed else 0
    return Rendered(np.array(tokens, np.int32), len(histories[""]) - shown, None)


def _too_long(field: str, count: int, most: int) -> BadRequest:
    what = "the template alone" if field == "history" else field
    return BadRequest(f"{what} gives a prompt of {count} tokens, the limit is {most}: shorten it", field)
