"""`Prompts`: a checkpoint's way from a history, or from messages, to token ids."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.catalog.template import MessagesTemplate, PromptTemplate, Template, prompt_tokens
from xgr_runtime.errors import BadRequest, CatalogError, ModelError
from xgr_runtime.files import read_object
from xgr_runtime.prompts.bounds import TooMuch, check_nesting
from xgr_runtime.prompts.chat import Chat, without_absent
from xgr_runtime.prompts.jinja import TemplateFailure
from xgr_runtime.prompts.parts import as_read
from xgr_runtime.prompts.texts import Rendered, Texts, check_length
from xgr_runtime.prompts.views import View
from xgr_runtime.prompts.windows import newest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog

_VERSIONS = 4  # catalogs whose templates are kept as they were read
NO_TOKENIZER = "the checkpoint has no tokenizer, which templates of text need: save its files in the folder"


class Prompts:
    """Of one checkpoint; for all versions of its catalogs, and for several threads."""

    def __init__(self, tokenizer: Tokenizer | None, chat: Chat, positions: int | None = None) -> None:
        """Without a tokenizer there are prompts of ids alone. positions: of the model, if they are known."""
        self.chat = chat
        self.positions = positions
        self._tokenizer = tokenizer
        self._texts = Texts(tokenizer) if tokenizer is not None else None
        self._views: dict[str, View] = {}  # by `Catalog.basis`
        self._lock = threading.Lock()

    @classmethod
    def read(cls, tokenizer: Tokenizer | None, folder: Path | None) -> Prompts:
        """Of the checkpoint in `folder`. Raises ModelError for files that cannot be read."""
        return cls(tokenizer, *((Chat(),) if folder is None else (Chat.read(folder), positions(folder))))

    @property
    def bytes_per_token(self) -> int:
        """That a text has at most."""
        assert self._texts is not None, "a router has a tokenizer"
        return self._texts.bytes_per_token

    def check(self, catalog: Catalog) -> None:
        """Tries every template. Raises CatalogError that names the template, its field and what to change."""
        texts = [name for name, one in catalog.templates.named.items() if not isinstance(one, PromptTemplate)]
        if texts and self._texts is None:
            raise CatalogError(f"templates.{texts[0]}: {NO_TOKENIZER}")
        for one in catalog.templates.named.values():
            if isinstance(one, PromptTemplate) and self.positions is not None:
                one.items_that_fit(catalog.depth, self.positions)
        if texts:
            self._view(catalog)

    def of_history(
        self,
        catalog: Catalog,
        template: str | None,
        histories: Mapping[str, NDArray[Any]],
        variables: Mapping[str, str],
        most_tokens: int,
        rows: Mapping[str, NDArray[Any]] | None = None,
    ) -> Rendered:
        """The prompt of the newest items of each history that fit.

        histories: name -> leaves, oldest first; a plain list is the history named "". rows: their items,
        whose titles and attributes are shown; without them those of each leaf's first item are. Raises
        BadRequest that names the field.
        """
        name, found = _named(catalog, template)
        if isinstance(found, PromptTemplate):
            return _of_ids(catalog, found, histories, variables, most_tokens)
        view = self._view(catalog)
        plan = view.plans[name]
        plan.check_histories(histories)
        values = plan.variables(variables)
        shown = {
            key: view.newest(
                catalog.places.first(leaves) if rows is None else rows[key],
                found.max_history_items,
                found.window_step,
            )
            for key, leaves in histories.items()
        }
        prompt = view.fitting(plan, shown, values, most_tokens)
        return prompt._replace(dropped=sum(map(len, histories.values())) - prompt.dropped)

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
        if self._texts is None:
            raise BadRequest(NO_TOKENIZER, "messages")
        if "messages" in kwargs:
            raise BadRequest("chat_template_kwargs names messages: leave them out", "chat_template_kwargs")
        try:
            check_nesting([messages, kwargs])
            chat = self.chat.template(found.chat_template)
            given = [without_absent(number, message) for number, message in enumerate(messages)]
            read = as_read(given, found.chat_template or self.chat.source() or "")
            text = self.chat.text(chat, read, {**found.chat_template_kwargs, **kwargs})
        except (CatalogError, TemplateFailure, TooMuch) as error:
            raise BadRequest(f"messages: {error}", "messages") from error
        text += found.generation_prefix
        self._texts.check_size(text, most_tokens, "messages")
        tokens = self._texts.whole(text, special=False)
        check_length(len(tokens), "messages", most_tokens)
        return Rendered(tokens, 0, text)

    def _view(self, catalog: Catalog) -> View:
        """Its templates as they are read, tried and kept for the newest versions. Raises CatalogError.

        What was tried for one version holds for edits of it, as long as no SID has a token that none had.
        """
        with self._lock:
            found = self._views.get(catalog.basis)
            if found is None:
                if self._tokenizer is None or self._texts is None:
                    raise BadRequest(NO_TOKENIZER, "template")
                found = View(catalog, self._tokenizer, self._texts, self.chat)
                found.check(self.positions)
                for basis in list(self._views)[: 1 - _VERSIONS]:
                    del self._views[basis]
                self._views[catalog.basis] = found
            elif found.catalog.version != catalog.version:
                found = self._views[catalog.basis] = found.of(catalog)
            return found


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


def positions(folder: Path) -> int | None:
    """How many tokens the checkpoint's model takes in, None if its config.json does not say."""
    config = read_object(folder / "config.json", ModelError)
    inner = config.get("text_config")
    for one in (config, inner if isinstance(inner, dict) else {}):
        found = one.get("max_position_embeddings")
        if type(found) is int and found > 0:
            return found
    return None
