"""How a history becomes a prompt: the catalog's templates, part of every built catalog file.

A template is of ids, whose parts are put together as they are, or of text or messages, which `prompts`
renders and gives to the tokenizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.vocabulary import MAX_TOKEN
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DEFAULT = "default"  # the template that counts where a request names none


class PromptTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ids"):
    """prefix, SID, separator, SID, ..., SID, suffix; all parts are token ids."""

    prefix: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    max_history_items: int | None = None  # None: as many as fit
    window_step: int = 1

    @property
    def max_token(self) -> int:
        """The largest token id the template itself uses, -1 without any."""
        return max((*self.prefix, *self.separator, *self.suffix), default=-1)

    def problem(self) -> str | None:
        """What no template of ours says; it may come from a file."""
        tokens = (*self.prefix, *self.separator, *self.suffix)
        if not all(0 <= token <= MAX_TOKEN for token in tokens) or not _possible(self):
            return "the template holds an impossible number"
        return None

    def items_that_fit(self, depth: int, max_prompt_tokens: int) -> int:
        """How many SIDs of `depth` tokens fit into a prompt.

        Raises CatalogError when not even the prefix and the suffix fit.
        """
        room = max_prompt_tokens - len(self.prefix) - len(self.suffix)
        if room < 0:
            fixed = len(self.prefix) + len(self.suffix)
            raise CatalogError(
                f"the template's prefix and suffix take {fixed} tokens, the limit is {max_prompt_tokens}: "
                "raise --max-prompt-tokens or shorten them in catalog.json"
            )
        fit = (room + len(self.separator)) // (depth + len(self.separator))
        return fit if self.max_history_items is None else min(self.max_history_items, fit)

    def render(self, sids: NDArray[np.int32]) -> list[int]:
        """The prompt of SIDs [n, depth], oldest first."""
        joint = np.tile(np.array(self.separator, np.int32), (len(sids), 1))
        body = np.concatenate([sids, joint], axis=1).ravel()
        body = body[: len(body) - len(self.separator)] if len(sids) else body
        return [*self.prefix, *body.tolist(), *self.suffix]


class TextTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text"):
    """A text with `{history}`; `item` says what each of its items reads like, `separator` what is between."""

    text: str
    item: str = "{sid}"
    separator: str = ""
    empty_history: str = ""
    max_history_items: int | None = None  # None: as many as fit
    window_step: int = 1
    defaults: dict[str, str] = {}  # of variables that a request leaves out
    special_tokens: bool = True  # what the tokenizer puts around any text

    @property
    def texts(self) -> dict[str, str]:
        """Field -> what is formatted with a history and variables."""
        return {"text": self.text}

    def problem(self) -> str | None:
        return None if _possible(self) else "the template holds an impossible number"


class TurnTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message for a chat template; its content is a text as that of a `TextTemplate`."""

    role: str
    content: str


class MessagesTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="messages"):
    """Messages for a chat template; without any, for requests that carry their own.

    `chat_template` is the template's text, None for that of the checkpoint; in catalog.json it names a file.
    """

    messages: tuple[TurnTemplate, ...] = ()
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = {}
    generation_prefix: str = ""
    item: str = "{sid}"
    separator: str = ""
    empty_history: str = ""
    max_history_items: int | None = None  # None: as many as fit
    window_step: int = 1
    defaults: dict[str, str] = {}

    @property
    def texts(self) -> dict[str, str]:
        """Field -> what is formatted with a history and variables."""
        return {f"messages[{number}].content": turn.content for number, turn in enumerate(self.messages)}

    def problem(self) -> str | None:
        return None if _possible(self) else "the template holds an impossible number"


Template = PromptTemplate | TextTemplate | MessagesTemplate


class Templates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All templates of a catalog by name, and which of them a request means that names none."""

    named: dict[str, Template]
    default_template: str = ""

    @classmethod
    def of(cls, template: Template) -> Templates:
        """The one template of a catalog."""
        return cls({DEFAULT: template})

    @property
    def default(self) -> Template | None:
        """None: a request has to name one."""
        if self.default_template:
            return self.named[self.default_template]
        return self.named.get(DEFAULT) or (next(iter(self.named.values())) if len(self.named) == 1 else None)

    @property
    def max_token(self) -> int:
        """The largest token id that any template itself uses, -1 without any."""
        of_ids = [one for one in self.named.values() if isinstance(one, PromptTemplate)]
        return max((one.max_token for one in of_ids), default=-1)

    def problem(self) -> str | None:
        """What no templates of ours say; they may come from a file."""
        if not self.named or (self.default_template and self.default_template not in self.named):
            return "there is no template"
        return next(filter(None, (template.problem() for template in self.named.values())), None)


def _possible(template: Template) -> bool:
    limit = template.max_history_items
    return (limit is None or limit >= 1) and template.window_step >= 1


def prompt_tokens(
    template: PromptTemplate,
    sids: NDArray[np.int32],
    history: Sequence[int] | NDArray[np.integer],
    max_prompt_tokens: int,
) -> tuple[list[int], int]:
    """Prompt of the newest leaves of `history` (oldest first) that fit, and how many items were dropped.

    sids [leaves, depth] int32. Raises CatalogError when the template alone is longer than the limit.
    """
    keep = min(len(history), template.items_that_fit(sids.shape[1], max_prompt_tokens))
    dropped = len(history) - keep
    return template.render(sids[np.array(history[dropped:], np.int64)]), dropped
