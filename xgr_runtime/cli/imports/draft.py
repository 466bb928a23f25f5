"""What a recogniser makes of a project's files: the catalog's rows, its templates, how scores are defined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from xgr_runtime.catalog.declared import Declared

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from xgr_runtime.catalog.columns import Columns
    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel


@dataclass
class Draft:
    """`columns` as they stand in `source`; everything else is what catalog.json is going to say."""

    source: Path
    columns: Columns
    templates: dict[str, dict[str, Any]]
    dataset: str = ""
    form: Declared = field(
        default_factory=Declared
    )  # how `columns` spell SIDs; names of columns no longer count
    scoring: dict[str, Any] = field(default_factory=dict)
    trained_tokens: set[Any] | None = None  # of all items, where training added no other SID tokens
    more: dict[str, Any] = field(default_factory=dict)  # further fields of catalog.json
    messages: Path | None = None  # a table of what users sent, for `xgr verify --messages`
    width: int = 50  # beams of the project's own evaluation
    files: dict[str, str] = field(default_factory=dict)  # written beside catalog.json, by name
    found: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def chat_template_names(fields: Mapping[str, Any]) -> list[str]:
    """The files that templates of a catalog.json name."""
    templates = fields.get("templates")
    of_each = templates.values() if isinstance(templates, dict) else ()
    names = [one.get("chat_template") for one in of_each if isinstance(one, dict)]
    return [name for name in names if isinstance(name, str)]


@dataclass(frozen=True)
class Wishes:
    """What flags say of the source: `form` of its SIDs and columns; by which count pids are popular."""

    form: Declared
    popularity: str


class Recogniser(Protocol):
    """A project: what it is called, whether these are its files, and what they say."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def knows(self, artefacts: Artefacts) -> bool: ...

    def read(self, artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft: ...
