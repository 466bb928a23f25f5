"""How a history becomes a prompt: the catalog's template, part of every built catalog file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.vocabulary import MAX_TOKEN
from xgr_runtime.errors import CatalogError
from xgr_runtime.files import read_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from xgr_runtime.catalog.vocabulary import Vocabulary


class PromptTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """prefix, SID, separator, SID, ..., SID, suffix; all parts are token ids."""

    prefix: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    max_history_items: int = 64

    @property
    def max_token(self) -> int:
        """The largest token id the template itself uses, -1 without any."""
        return max((*self.prefix, *self.separator, *self.suffix), default=-1)

    def problem(self) -> str | None:
        """What no template of ours says; it may come from a file."""
        tokens = (*self.prefix, *self.separator, *self.suffix)
        if not all(0 <= token <= MAX_TOKEN for token in tokens) or self.max_history_items < 1:
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
        return min(self.max_history_items, (room + len(self.separator)) // (depth + len(self.separator)))

    def render(self, sids: NDArray[np.int32]) -> list[int]:
        """The prompt of SIDs [n, depth], oldest first."""
        joint = np.tile(np.array(self.separator, np.int32), (len(sids), 1))
        body = np.concatenate([sids, joint], axis=1).ravel()
        body = body[: len(body) - len(self.separator)] if len(sids) else body
        return [*self.prefix, *body.tolist(), *self.suffix]


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


def template_file(source: Path) -> Path:
    """Where the template of that source is, if it has one."""
    return source.with_name("catalog.json")


def read_template(source: Path, vocabulary: Vocabulary) -> PromptTemplate:
    """The template of catalog.json beside `source`; absent fields take their defaults.

    Those of prefix and suffix are what the tokenizer puts around any text.
    """
    path = template_file(source)
    fields = read_object(path, CatalogError) if path.name != source.name else {}
    unknown = sorted(set(fields) - set(PromptTemplate.__struct_fields__))
    if unknown:
        raise CatalogError(f"{path}: unknown fields {unknown!s:.200}: use {PromptTemplate.__struct_fields__}")
    limit = fields.get("max_history_items", 64)
    if type(limit) is not int or limit < 1:
        raise CatalogError(
            f"{path}: max_history_items is {limit!r:.40}: it must be a whole number of at least 1"
        )
    return PromptTemplate(
        prefix=_template_tokens(path, "prefix", fields.get("prefix", list(vocabulary.begin)), vocabulary),
        separator=_template_tokens(path, "separator", fields.get("separator", []), vocabulary),
        suffix=_template_tokens(path, "suffix", fields.get("suffix", list(vocabulary.end)), vocabulary),
        max_history_items=limit,
    )


def _template_tokens(path: Path, name: str, value: Any, vocabulary: Vocabulary) -> tuple[int, ...]:
    tokens = value if isinstance(value, list) else [value]
    if not set(map(type, tokens)) <= {str, int}:
        raise CatalogError(f"{path}: {name} is {value!r:.80}: it must be a list of token strings or ids")
    try:
        return tuple(vocabulary.resolve(token) for token in tokens)
    except CatalogError as error:
        raise CatalogError(f"{path}: {name}: {error}") from error
