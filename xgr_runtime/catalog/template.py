"""How a history becomes a prompt: the catalog's template, part of every built catalog file."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.declared import Declared
from xgr_runtime.catalog.vocabulary import MAX_TOKEN
from xgr_runtime.errors import CatalogError
from xgr_runtime.files import read_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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


_PARTS = ("prefix", "separator", "suffix")


def template_file(source: Path) -> Path:
    """Where the template of that source is, if it has one."""
    return source.with_name("catalog.json")


def read_beside(source: Path) -> dict[str, Any]:
    """The fields of catalog.json beside `source`, {} without one. Raises CatalogError."""
    path = template_file(source)
    fields = read_object(path, CatalogError) if path.name != source.name else {}
    known = (*PromptTemplate.__struct_fields__, *Declared.__struct_fields__)
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise CatalogError(f"{path}: unknown fields {unknown!s:.200}: use {known}")
    return fields


def read_template(fields: Mapping[str, Any], path: Path, vocabulary: Vocabulary) -> PromptTemplate:
    """The template of catalog.json, which `path` names; absent fields take their defaults.

    Those of prefix and suffix are what the tokenizer puts around any text; it also goes around a prefix and a
    suffix that are written as text. Raises CatalogError.
    """
    limit = fields.get("max_history_items", 64)
    if type(limit) is not int or limit < 1:
        raise CatalogError(
            f"{path}: max_history_items is {limit!r:.40}: it must be a whole number of at least 1"
        )
    return PromptTemplate(
        prefix=_tokens(path, "prefix", fields, vocabulary, before=vocabulary.begin),
        separator=_tokens(path, "separator", fields, vocabulary),
        suffix=_tokens(path, "suffix", fields, vocabulary, behind=vocabulary.end),
        max_history_items=limit,
    )


def _tokens(
    path: Path,
    name: str,
    fields: Mapping[str, Any],
    vocabulary: Vocabulary,
    before: Sequence[int] = (),
    behind: Sequence[int] = (),
) -> tuple[int, ...]:
    """The ids of one part: of a list of token strings and ids, or of text that is no single token."""
    value = fields.get(name, [])
    if name not in fields:
        return (*before, *behind)
    parts = _listed(value)
    if not set(map(type, parts)) <= {str, int}:
        raise CatalogError(
            f"{path}: {name} is {value!r:.80}: it must be text, or a list of token strings or ids"
        )
    try:
        if any(type(part) is str and not vocabulary.holds(part) for part in parts):
            return (*before, *_of_text(parts, vocabulary), *behind)
        return tuple(vocabulary.resolve(part) for part in parts)
    except CatalogError as error:
        raise CatalogError(f"{path}: {name}: {error}") from error


def check_whole(
    fields: Mapping[str, Any], path: Path, sids: NDArray[np.int32], vocabulary: Vocabulary
) -> None:
    """Raises CatalogError where the tokenizer makes other ids of a whole prompt's text than of its parts.

    A prompt is put together of ids. sids [some, depth] are those of one that is tried.
    """
    parts = [_listed(fields.get(name, [])) for name in _PARTS]
    every = [part for one in parts for part in one]
    if vocabulary.tokenizer is None or all(type(part) is int or vocabulary.holds(part) for part in every):
        return
    if int in set(map(type, every)):  # then no text says what the whole is
        return
    prefix, separator, suffix = ("".join(map(str, one)) for one in parts)
    spell = vocabulary.tokenizer.id_to_token
    spelt = ["".join(spell(token) or "" for token in sid) for sid in sids.tolist()]
    whole = vocabulary.text_tokens(prefix + separator.join(spelt) + suffix)
    first, between, last = (
        tuple(vocabulary.text_tokens(text)) if text else () for text in (prefix, separator, suffix)
    )
    if whole != PromptTemplate(first, between, last).render(sids):
        raise CatalogError(
            f"{path}: the tokenizer makes other tokens of a whole prompt than of prefix, SIDs, separator and "
            "suffix: give SIDs tokens of their own in the tokenizer, or write the parts as ids"
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _of_text(parts: Sequence[str | int], vocabulary: Vocabulary) -> list[int]:
    """Neighbouring texts are one text: a tokenizer makes other ids of a text than of its pieces."""
    ids: list[int] = []
    for is_text, run in itertools.groupby(parts, key=lambda part: type(part) is str):
        neighbours = list(run)
        if is_text:
            ids += vocabulary.text_tokens("".join(map(str, neighbours)))
        else:
            ids += map(vocabulary.resolve, neighbours)
    return ids
