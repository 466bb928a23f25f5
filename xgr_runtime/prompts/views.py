"""The templates of one version of a catalog, ready to be filled, and how their texts become tokens."""

from __future__ import annotations

import copy
import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.catalog.scoring import shared_end
from xgr_runtime.catalog.template import MessagesTemplate, PromptTemplate
from xgr_runtime.errors import BadRequest, CatalogError
from xgr_runtime.prompts.bounds import TooMuch
from xgr_runtime.prompts.items import Spelling
from xgr_runtime.prompts.jinja import TemplateFailure
from xgr_runtime.prompts.pieces import Pieces, why_not
from xgr_runtime.prompts.plans import Plan
from xgr_runtime.prompts.texts import Rendered, Texts, check_length
from xgr_runtime.prompts.windows import largest, newest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.prompts.chat import Chat

_log = logging.getLogger(__name__)
# What reads like a token of its own: of chats, and of SIDs.
_MARK = re.compile(r"<[|\uff5c][^<>|\uff5c\s]+[|\uff5c]>|<(?:start|end)_of_[a-z]+>|<(?:[a-z]_)+[0-9]+>")
_TRIED = (0, 1, 2, 7)  # items of the histories that are tried
_SIDS = 256  # that are spelt and read again
_PLENTY = (1 << 31) - 1


class View:
    """For several threads. Raises CatalogError for templates that cannot be read."""

    def __init__(self, catalog: Catalog, tokenizer: Tokenizer, texts: Texts, chat: Chat) -> None:
        self.catalog = catalog
        self._tokenizer = tokenizer
        self._texts = texts
        self._chat = chat
        self._spelling = Spelling(tokenizer)
        self._pieces: Pieces | None = None
        self.plans: dict[str, Plan] = {}
        for name, template in catalog.templates.named.items():
            if not isinstance(template, PromptTemplate):
                try:
                    self.plans[name] = Plan(name, template)
                except CatalogError as error:
                    raise CatalogError(f"templates.{name}: {error}") from error

    def of(self, catalog: Catalog) -> View:
        """The same for another version, with templates and tokens of SIDs as here."""
        other = copy.copy(self)
        other.catalog = catalog
        return other

    def newest(self, rows: NDArray[Any], most: int | None, step: int) -> NDArray[Any]:
        """`windows.newest` for the rows of items: those of one SID are one."""
        return rows[len(rows) - len(newest(self.catalog.leaf_of_row[rows], most, step)) :]

    def fitting(
        self, plan: Plan, windows: Mapping[str, NDArray[Any]], values: Mapping[str, str], most: int
    ) -> Rendered:
        """With as many of the newest items as fit, of each history as many, if it has so many.

        windows: rows of items. In the place of the dropped items stands how many are shown. Raises
        BadRequest.
        """
        longest = max(map(len, windows.values()), default=0)
        upper = min(longest, most // plan.least_tokens(self.catalog.depth))
        tried: dict[int, Rendered] = {}

        def tokens(count: int) -> int:
            shown = dict(windows)
            if count < longest:
                shown = {key: self.newest(rows, count, plan.window_step) for key, rows in windows.items()}
            found, text = self._render(plan, shown, values, most)
            tried[count] = Rendered(found, sum(map(len, shown.values())), text)
            return len(found)

        count, needed = upper, tokens(upper)
        if needed > most:
            count = largest(upper - 1, lambda count: tokens(count) <= most, upper * most // needed)
        if count < 0:
            raise BadRequest(
                f"the template {plan.name!r} and its variables take {len(tried[0].tokens)} tokens without "
                f"any item, the limit is {most}: shorten them",
                "variables" if plan.needed else "history",
            )
        check_length(len(tried[count].tokens), "history", most)
        return tried[count]

    def check(self, limit: int | None) -> None:
        """Tries all templates; limit: tokens that the model takes. Raises CatalogError: what to change."""
        if any(plan.item.shows_sid for plan in self.plans.values()):
            self._check_spelling()
        reason = why_not(self._tokenizer, self._sid_tokens())
        if reason is None:
            anchor = int(self.catalog.sids[0, 0])
            normalized = self._tokenizer.get_added_tokens_decoder()[anchor].normalized
            self._pieces = Pieces(self._tokenizer, anchor, normalized)
        for name, plan in self.plans.items():
            try:
                reason = self._try(plan, limit) or reason
            except (BadRequest, CatalogError) as error:
                raise CatalogError(f"templates.{name}: {error}") from error
        if reason is not None:
            self._pieces = None
            _log.info("prompts are tokenised whole each time, which takes longer: %s", reason)

    def _render(
        self, plan: Plan, shown: Mapping[str, NDArray[Any]], values: Mapping[str, str], most: int
    ) -> tuple[NDArray[np.int32], str]:
        text = plan.text(self.catalog, self._spelling, self._chat, shown, values)
        self._texts.check_size(text.text, most, "history")
        if self._pieces is not None:
            found = self._texts.fast(text, self._pieces, plan.special_tokens)
            if found is not None:
                return found, text.text
        return self._texts.whole(text.text, plan.special_tokens), text.text

    def _try(self, plan: Plan, limit: int | None) -> str | None:
        """Raises CatalogError, BadRequest. Returns where the fast way gives other tokens than the text."""
        self._check_fields(plan)
        letter = "" if self._is_unknown("a", self._texts.whole("a", special=False)) else "a"
        values = dict.fromkeys(plan.needed, letter) | plan.template.defaults
        leaves = np.linspace(0, self.catalog.leaves - 1, sum(_TRIED)).astype(np.int64)
        prompts, differs = [], False
        for count in _TRIED if plan.template.texts else ():
            trial = dict.fromkeys(plan.histories, self.catalog.places.first(leaves[:count]))
            text = plan.text(self.catalog, self._spelling, self._chat, trial, values)
            whole = self._texts.whole(text.text, plan.special_tokens)
            prompts.append(whole)
            if count == 0:
                self._check_fixed(plan, text.text, whole, limit)
            elif any(sid not in text.text for sid in text.sids):
                raise CatalogError("chat_template: it does not show the SIDs of a history: use another")
            if self._pieces is not None:
                fast = self._texts.fast(text, self._pieces, plan.special_tokens)
                differs |= fast is not None and not np.array_equal(fast, whole)
        self._check_end(prompts)
        return f"pieces of the template {plan.name!r} have other tokens than the whole" if differs else None

    def _check_fields(self, plan: Plan) -> None:
        if problem := plan.item.problem(self.catalog):
            raise CatalogError(f"item: {problem}")
        own = [plan.template.separator, plan.template.empty_history]
        own += [text for one in (plan.item.format, *plan.formats.values()) for text in one.texts]
        self._warn_of_marks(f"templates.{plan.name}", "\n".join(own))
        if not isinstance(plan.template, MessagesTemplate):
            return
        self._chat.template(plan.template.chat_template)
        if "messages" in plan.template.chat_template_kwargs:
            raise CatalogError("chat_template_kwargs: messages are no keyword argument: leave them out")
        prefix = plan.template.generation_prefix
        if (mark := self._unknown_mark(prefix)) is not None:
            raise CatalogError(
                f"generation_prefix: the tokenizer has no token {mark!r:.80}: correct it, or use the "
                "checkpoint that has it"
            )
        self._check_known("generation_prefix", prefix, self._texts.whole(prefix, special=False))
        if not plan.template.texts:
            self._try_messages(plan.template)

    def _try_messages(self, template: MessagesTemplate) -> None:
        """A conversation of one message. Raises CatalogError where none could be served."""
        sids = self._spelling.sids(self.catalog.sids[[0, -1]].tolist())
        try:
            chat = self._chat.template(template.chat_template)
            turns = [[{"role": "user", "content": sid}] for sid in sids]
            text, other = (self._chat.text(chat, turn, template.chat_template_kwargs) for turn in turns)
        except TemplateFailure as error:  # it may want messages of other roles
            if isinstance(error.__cause__, TooMuch):
                raise CatalogError(f"chat_template: {error}") from error
            _log.warning("a conversation of one message has no prompt: %s", error)
            return
        if sids[0] not in text or sids[1] not in other:
            raise CatalogError("chat_template: it does not show what messages hold: use another")
        self._warn_of_marks("the chat template", text.replace(sids[0], ""))
        self._check_end([self._texts.whole(text + template.generation_prefix, special=False)])

    def _check_end(self, prompts: Sequence[NDArray[np.int32]]) -> None:
        """Raises CatalogError where all prompts end in what is put behind them."""
        head = [forced.token for forced in self.catalog.scoring.head]
        if head and prompts and all(shared_end(prompt[-len(head) :].tolist(), head) for prompt in prompts):
            raise CatalogError(
                f"prompts already end in the token {head[0]}, with which the head of scoring begins: it "
                "would come twice; leave it out of one of the two"
            )

    def _check_fixed(self, plan: Plan, text: str, tokens: NDArray[np.int32], limit: int | None) -> None:
        """Of a prompt without items."""
        field = next(iter(plan.formats))
        if limit is not None and len(tokens) > limit:
            raise CatalogError(
                f"{field}: it takes {len(tokens)} tokens without any item, and the model has {limit} "
                "positions: shorten it"
            )
        if isinstance(plan.template, MessagesTemplate):
            self._warn_of_marks(f"templates.{plan.name}: the chat template", text)
        self._check_known(field, text, tokens)
        if not plan.histories:
            _log.warning("template %s shows no history: only variables make its prompts differ", plan.name)

    def _check_known(self, field: str, text: str, tokens: NDArray[np.int32]) -> None:
        if self._is_unknown(text, tokens):
            raise CatalogError(f"{field}: the tokenizer has no token for a part of it: correct it")

    def _unknown_mark(self, text: str) -> str | None:
        """What reads like a token in `text`, and is none of this tokenizer."""
        return next((mark for mark in _MARK.findall(text) if self._tokenizer.token_to_id(mark) is None), None)

    def _warn_of_marks(self, field: str, text: str) -> None:
        """A template for another tokenizer may be meant so: it is said."""
        if (mark := self._unknown_mark(text)) is not None:
            _log.warning(
                "%s holds %r, which is no token of this tokenizer and is read as text: correct it, or use "
                "the checkpoint that has it",
                field,
                mark[:80],
            )

    def _is_unknown(self, text: str, tokens: NDArray[np.int32]) -> bool:
        """Whether the token of what the tokenizer does not know is among those of `text`, unwritten."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        number = self._tokenizer.token_to_id(unknown) if unknown else None
        return unknown is not None and number is not None and unknown not in text and number in tokens

    def _sid_tokens(self) -> set[int]:
        return set(np.flatnonzero(self.catalog.sid_tokens).tolist())

    def _check_spelling(self) -> None:
        """Raises CatalogError where a SID's text is not read as the SID again."""
        at = np.unique(np.linspace(0, self.catalog.leaves - 1, _SIDS).astype(np.int64))
        rows = self.catalog.sids[at].tolist()
        for row, text in zip(rows, self._spelling.sids(rows), strict=True):
            found = self._texts.whole(text, special=False).tolist()
            if found != row:
                raise CatalogError(
                    f"the tokenizer reads the SID {text!r:.80} as the tokens {found!s:.80} and not as {row}: "
                    "use the checkpoint that the SIDs were made for, or a template of ids"
                )
