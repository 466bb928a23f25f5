"""Texts with `{name}` in them: `{{` and `}}` are braces, everything else is as it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Format:
    """Texts and, between them, names: one text more than names."""

    texts: Sequence[str]
    names: Sequence[str]

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with a value for each name. Raises KeyError for a name without one."""
        parts = [self.texts[0]]
        for name, text in zip(self.names, self.texts[1:], strict=True):
            parts += values[name], text
        return "".join(parts)


def parsed(text: str) -> Format:
    """Raises ValueError for a brace without its partner, and for a name that is empty."""
    texts, names, at = [""], [], 0
    for found in _PIECE.finditer(text):
        texts[-1] += text[at : found.start()]
        at = found.end()
        if found[0] in ("{{", "}}"):
            texts[-1] += found[0][0]
        elif found[1]:
            names.append(found[1])
            texts.append("")
        else:
            raise ValueError(
                f"{text[max(0, found.start() - 20) : found.end() + 20]!r} has a brace that begins or ends no "
                "name: write {{ and }} for braces"
            )
    texts[-1] += text[at:]
    return Format(texts, names)
