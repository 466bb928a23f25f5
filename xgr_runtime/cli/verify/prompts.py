"""Prompts of cases, rendered here with the code and the files that the deployment has."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.verify.cases import Case, Items
    from xgr_runtime.prompts import Prompts, Rendered

UNLIMITED = (1 << 31) - 1
AROUND = 6  # tokens before and behind the first difference that are shown


def renderer(model_path: str, catalog: Catalog, most_tokens: int, drop_unknown: bool) -> Renderer:
    """With the tokenizer and the templates of a checkpoint. Raises StartupError."""
    from xgr_runtime.prompts import Prompts
    from xgr_runtime.tokenizer import read_tokenizer

    folder = Path(model_path)
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise ConfigError(f"{folder} holds no tokenizer: prompts cannot be compared")
    return Renderer(catalog, Prompts.read(tokenizer, folder), tokenizer, most_tokens, drop_unknown)


class Renderer:
    """Prompts of one catalog and checkpoint. most_tokens: that a prompt may have."""

    def __init__(
        self, catalog: Catalog, prompts: Prompts, tokenizer: Tokenizer, most_tokens: int, drop_unknown: bool
    ) -> None:
        self.catalog, self.tokenizer = catalog, tokenizer
        self._head = list(catalog.scoring.prompt_head)
        self._prompts, self._most, self._drop = prompts, most_tokens - len(self._head), drop_unknown

    def render(self, case: Case) -> list[int]:
        """The token ids that a case is served with: in the end those of the head that are not scored.

        Raises CatalogError or BadRequest as the router does.
        """
        return [*self._rendered(case), *self._head]

    def _rendered(self, case: Case) -> list[int]:
        said = case.said
        if case.source == "messages":
            made = self.of_messages(said.messages or [], said.template, said.chat_template_kwargs or {})
            return list(map(int, made.tokens))
        if case.source == "history":
            made = self.of_history(said.history or [], said.template, said.variables or {})
            return list(map(int, made.tokens))
        if said.prompt_text is not None:
            return list(self.tokenizer.encode(said.prompt_text).ids)
        return without(said.prompt_ids or [], self._head)

    def of_history(
        self, history: Items | Mapping[str, Items], template: str | None, variables: Mapping[str, str]
    ) -> Rendered:
        """Of item ids, oldest first, or of a map of names to such lists. Raises as `render` does."""
        named = {"": history} if isinstance(history, list) else history
        leaves = {name: self._leaves(items) for name, items in named.items()}
        return self._prompts.of_history(self.catalog, template, leaves, variables, self._most)

    def of_messages(
        self, messages: Sequence[Mapping[str, Any]], template: str | None, kwargs: Mapping[str, Any]
    ) -> Rendered:
        """Of a conversation. Raises as `render` does."""
        return self._prompts.of_messages(self.catalog, template, messages, kwargs, self._most)

    def _leaves(self, items: Items) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        leaves = self.catalog.leaves_of_items(items)
        unknown = np.flatnonzero(leaves < 0)
        if len(unknown) and not self._drop:
            raise ConfigError(
                f"the history names item {items[int(unknown[0])]!r:.80}, which the catalog does not hold: "
                "leave it out or pass --unknown-history drop"
            )
        return leaves[leaves >= 0]


def without(ids: Sequence[int], end: Sequence[int]) -> list[int]:
    """`ids`, without `end` where they end so."""
    return list(ids[: len(ids) - len(end)] if len(end) and [*ids[-len(end) :]] == [*end] else ids)


def first_difference(ours: Sequence[int], theirs: Sequence[int], tokenizer: Tokenizer) -> str:
    """Where two prompts part, with the text around it; empty where they do not."""
    pairs = enumerate(zip_longest(ours, theirs))
    place = next((place for place, (one, other) in pairs if one != other), None)
    if place is None:
        return ""
    first = max(0, place - AROUND)
    shown = [
        f"{name} {ids[place] if place < len(ids) else 'ends'} in "
        # Quoted, so that blanks and line ends are seen.
        f"{tokenizer.decode(list(ids[first : place + AROUND]), skip_special_tokens=False)!r}"
        for name, ids in (("ours", ours), ("theirs", theirs))
    ]
    return f"token {place} of {len(ours)} (theirs has {len(theirs)}): {', '.join(shown)}"
