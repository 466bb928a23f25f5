"""How items read: SIDs as the tokenizer spells them, titles, attributes, numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.prompts.formats import Format, parsed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog

_OWN = ("sid", "title", "number")


class Spelling:
    """Tokens as texts, each looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        self._known: dict[int, str] = {}

    def sids(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each SID; rows: their tokens."""
        known = self._known
        try:
            return ["".join([known[token] for token in row]) for row in rows]
        except KeyError:
            for token in {token for row in rows for token in row}:
                known[token] = self._spelt(token)
            return ["".join([known[token] for token in row]) for row in rows]

    def _spelt(self, token: int) -> str:
        if token in self._added:
            return str(self._added[token].content)
        return str(self._tokenizer.decode([token], skip_special_tokens=False))


class ItemFormat:
    """What one item of a history reads like."""

    def __init__(self, text: str) -> None:
        """Raises ValueError."""
        self.format: Format = parsed(text)
        self.attributes = [name for name in dict.fromkeys(self.format.names) if name not in _OWN]
        self._woven = "%s".join([text.replace("%", "%%") for text in self.format.texts])

    @property
    def shows_sid(self) -> bool:
        """Whether the tokens of SIDs stand in it, as often as there are items."""
        return self.format.names.count("sid") == 1

    def problem(self, catalog: Catalog) -> str | None:
        """What it names that no item of the catalog has."""
        if "title" in self.format.names and not catalog.has_titles:
            return "{title} is used, and no item has a title: give titles in the source, or leave it out"
        for name in self.attributes:
            if not catalog.has_attribute(name):
                return (
                    f"{{{name}}} is neither sid, title or number nor an attribute of any item: correct "
                    "it, or write {{ and }} for braces"
                )
        return None

    def texts(self, catalog: Catalog, rows: NDArray[np.integer], sids: Sequence[str]) -> list[str]:
        """One text per row [n] of an item whose SID reads like `sids`."""
        columns = self._columns(catalog, rows, sids)
        cells = zip(*columns, strict=True) if columns else [()] * len(rows)
        return [self._woven % values for values in cells]

    def _columns(
        self, catalog: Catalog, rows: NDArray[np.integer], sids: Sequence[str]
    ) -> list[Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {"sid": sids, "number": range(1, len(rows) + 1)}
        if "title" in self.format.names:
            values["title"] = catalog.titles_at(rows)
        if self.attributes:
            found = catalog.attributes_at(rows)
            values |= {name: [_text(one.get(name)) for one in found] for name in self.attributes}
        return [values[name] for name in self.format.names]


def _text(value: Any) -> str:
    """An attribute in a prompt: lists with commas, other things as JSON writes them."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return msgspec.json.encode(value).decode()
