"""A template of text or messages as it is rendered: read once, filled for each request."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.template import MessagesTemplate, TextTemplate
from xgr_runtime.errors import BadRequest, CatalogError
from xgr_runtime.prompts.formats import Format, parsed
from xgr_runtime.prompts.items import ItemFormat
from xgr_runtime.prompts.jinja import TemplateFailure
from xgr_runtime.prompts.texts import PromptText

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.prompts.chat import Chat
    from xgr_runtime.prompts.items import Spelling

HISTORY = "history"


class Plan:
    """One template. Raises CatalogError for texts that are no formats."""

    def __init__(self, name: str, template: TextTemplate | MessagesTemplate) -> None:
        self.name = name
        self.template = template
        self.window_step = template.window_step
        self.special_tokens = isinstance(template, TextTemplate) and template.special_tokens
        self.formats = {field: _parsed(field, text) for field, text in template.texts.items()}
        try:
            self.item = ItemFormat(template.item)
        except ValueError as error:
            raise CatalogError(f"item: {error}") from error
        names = dict.fromkeys(name for one in self.formats.values() for name in one.names)
        found = {name: _history(name) for name in names}
        self.histories = {key: name for name, key in found.items() if key is not None}
        self.needed = [name for name, key in found.items() if key is None]
        self._check_names()

    def _check_names(self) -> None:
        """Raises CatalogError for what can only be a mistake."""
        unused = [name for name in self.template.defaults if name not in self.needed]
        if unused:
            raise CatalogError(
                f"defaults.{unused[0]:.80}: no text names {{{unused[0]:.80}}}: remove it or name it"
            )
        for name in self.needed:
            if name not in self.template.defaults and _is_misspelt(name):
                raise CatalogError(
                    f"{{{name:.80}}} reads like {{{HISTORY}}}: correct it, or if it is a variable, give it a "
                    f"default: {{{json.dumps(name[:80])}: ...}} under defaults"
                )
        if self.histories and not self.item.format.names:
            raise CatalogError("item: it names nothing of an item: write {sid} where its SID is to stand")
        if self.template.texts and not self.histories and not self.needed:
            raise CatalogError(
                f"{next(iter(self.formats))}: it names no {{history}}: write it where items are to stand"
            )

    def variables(self, given: Mapping[str, str]) -> dict[str, str]:
        """A value for each variable that the texts name. Raises BadRequest."""
        for name in given:
            if name not in self.needed:
                known = ", ".join(self.needed) or "none"
                raise BadRequest(
                    f"variables.{name:.80} is not in the template {self.name!r}, which has {known}: "
                    "leave it out or correct it",
                    "variables",
                )
        values = {**self.template.defaults, **given}
        for name in self.needed:
            if name not in values:
                raise BadRequest(
                    f"the template {self.name!r} needs variables.{name:.80}: send it, or give it a default "
                    "in catalog.json",
                    "variables",
                )
        return values

    def check_histories(self, given: Mapping[str, Any]) -> None:
        """Raises BadRequest unless there is one for each that the texts show."""
        if not self.template.texts:
            raise BadRequest(
                f"the template {self.name!r} is for messages that a request carries: send messages, or name "
                "another template",
                "template",
            )
        if set(given) == set(self.histories) or (not self.histories and not any(map(len, given.values()))):
            return
        wanted = [name or "history" for name in self.histories]
        shape = "a list" if list(self.histories) == [""] else f"an object with lists of {', '.join(wanted)}"
        raise BadRequest(
            f"the template {self.name!r} shows {', '.join(wanted) or 'no history'}: send history as {shape}",
            "history",
        )

    def least_tokens(self, depth: int) -> int:
        """That an item takes at least."""
        return depth if self.item.shows_sid else 1

    def text(
        self,
        catalog: Catalog,
        spelling: Spelling,
        chat: Chat,
        histories: Mapping[str, NDArray[Any]],
        variables: Mapping[str, str],
    ) -> PromptText:
        """The whole prompt; histories: rows of items. Raises BadRequest where a chat template fails."""
        values, sids, rows = dict(variables), [], []
        for key, name in self.histories.items():
            shown = catalog.sids[catalog.leaf_of_row[histories[key]]].tolist()
            spelt = spelling.sids(shown)
            values[name] = self._history(catalog, histories[key], spelt)
            if self.item.shows_sid:
                sids += spelt
                rows += shown
        return PromptText(self._filled(values, chat), sids, rows)

    def _filled(self, values: Mapping[str, str], chat: Chat) -> str:
        filled = {field: one.filled(values) for field, one in self.formats.items()}
        if isinstance(self.template, TextTemplate):
            return filled["text"]
        turns = zip(self.template.messages, filled.values(), strict=True)
        messages = [{"role": turn.role, "content": content} for turn, content in turns]
        try:
            template = chat.template(self.template.chat_template)
            text = chat.text(template, messages, self.template.chat_template_kwargs)
        except TemplateFailure as error:
            raise BadRequest(f"the template {self.name!r}: {error}", "template") from error
        return text + self.template.generation_prefix

    def _history(self, catalog: Catalog, rows: NDArray[Any], sids: Sequence[str]) -> str:
        if not len(rows):
            return self.template.empty_history
        return self.template.separator.join(self.item.texts(catalog, rows, sids))


def _history(name: str) -> str | None:
    """The history that a name in a text means, None for a variable."""
    if name == HISTORY:
        return ""
    return name.removeprefix(f"{HISTORY}.") if name.startswith(f"{HISTORY}.") else None


def _is_misspelt(name: str) -> bool:
    """Whether a variable is called nearly as a history is; what begins with that name is meant so."""
    first = name.partition(".")[0]
    return not first.startswith(HISTORY) and bool(get_close_matches(first.lower()[:40], [HISTORY], 1, 0.85))


def _parsed(field: str, text: str) -> Format:
    try:
        return parsed(text)
    except ValueError as error:
        raise CatalogError(f"{field}: {error}") from error
