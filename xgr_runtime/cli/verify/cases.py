"""Cases: a prompt in one or more forms, and the ranked beams that somebody else's code gave for it.

A file has one JSON object per line; fields that are not named here are somebody's notes and stay unread. A
`rule.json` beside it may say what its beams and scores are.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary, read_object, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from xgr_runtime.catalog import Catalog

Items: TypeAlias = list[str | int]
MOST_RANDOM = 20  # items of a random history
Beam: TypeAlias = "tuple[list[int] | str, float | None]"  # tokens or their text, score


class CaseLine(msgspec.Struct, frozen=True):
    """What a line may say. `beams` are [tokens, score], best first, score null where there is none."""

    history: Items | dict[str, Items] | None = None
    messages: list[dict[str, Any]] | None = None  # before the others
    prompt_text: str | None = None
    prompt_ids: list[int] | None = None
    variables: dict[str, str] | None = None
    template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    width: int | None = None


@dataclass(frozen=True)
class Case:
    """One line, with the beams that were asked for. `name`: how the table calls it."""

    name: str
    said: CaseLine
    width: int
    beams: Sequence[Beam]
    notes: Mapping[str, Any] = field(default_factory=dict)  # the whole line

    @property
    def source(self) -> str:
        """The form in which the deployment is asked: the first that the line has of these."""
        forms = ("messages", "history", "prompt_text", "prompt_ids")
        return next(form for form in forms if getattr(self.said, form) is not None)


class Rule(msgspec.Struct, frozen=True):
    """What `rule.json` beside the cases says of them; other fields stay unread.

    score: `sum`, or `sum / N`, of the log-probabilities; absent: as the catalog's scoring has it.
    """

    scored_head: list[int] | None = None
    scored_tail: list[int] | None = None
    score: str | None = None
    tolerance: float | None = None
    dtype: str | None = None


def read_cases(path: Path, beams: str, most: int | None) -> list[Case]:
    """The first `most` cases of a file, with the beams of that field. Raises ConfigError naming the line."""
    return [_case(number, whole, where, beams) for number, whole, where in _lines(path, "--cases", most)]


def read_histories(path: Path, width: int, most: int) -> list[Case]:
    """The first `most` prompts of a file of JSON lines, without beams. Raises ConfigError naming the line."""
    return [
        Case(f"line {number}", _said(whole, where), width, (), whole)
        for number, whole, where in _lines(path, "--histories", most)
    ]


def of_messages(rows: Sequence[list[dict[str, Any]]], width: int, template: str | None) -> list[Case]:
    """Conversations, without beams."""
    return [
        Case(f"row {number}", CaseLine(messages=row, template=template), width, ())
        for number, row in enumerate(rows, 1)
    ]


def random_cases(catalog: Catalog, count: int, width: int, seed: int) -> list[Case]:
    """Histories of random items, without beams."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(1, count + 1):
        rows = draw.integers(0, catalog.items, int(draw.integers(1, MOST_RANDOM + 1)))
        history: Items = [catalog.item_id(int(row)) for row in rows]
        made.append(Case(f"history {number}", CaseLine(history=history), width, ()))
    return made


def save_cases(path: Path, cases: Sequence[Case]) -> None:
    """As lines that `read_cases` reads. Raises ConfigError."""
    lines = [
        {
            **{name: value for name, value in msgspec.structs.asdict(case.said).items() if value is not None},
            "width": case.width,
            "beams": case.beams,
        }
        for case in cases
    ]
    write_whole(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_rule(path: Path) -> Rule:
    """Of the cases in `path`; an empty one where no rule.json lies beside them. Raises ConfigError."""
    beside = path.with_name("rule.json")
    try:
        return msgspec.convert(read_object(beside, ConfigError), Rule)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{beside}: {error}: correct it or move it away") from None


def completed(
    case: Case, template: str | None, variables: Mapping[str, str], messages: list[dict[str, Any]] | None
) -> Case:
    """With what flags say for all cases; the line's own counts before it.

    `{field}` in a template's name or in a variable is that field of the line. Raises ConfigError.
    """
    try:
        named = None if template is None else template.format_map(case.notes)
        filled = {name: text.format_map(case.notes) for name, text in variables.items()}
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"{case.name} has no field for --template or --variable ({error!s:.80}): {{name}} stands for "
            "a field of the line, {{ and }} for braces"
        ) from None
    said = msgspec.structs.replace(
        case.said,
        template=case.said.template or named,
        variables={**filled, **(case.said.variables or {})} or None,
        messages=case.said.messages or messages,
    )
    return dataclasses.replace(case, said=said)


def by_ids(case: Case) -> Case:
    """The case as its token ids alone. Raises ConfigError where it has none."""
    if case.said.prompt_ids is None:
        raise ConfigError(f"{case.name} has no prompt_ids: leave --prompt-ids out")
    return dataclasses.replace(case, said=CaseLine(prompt_ids=case.said.prompt_ids))


def read_messages(path: Path) -> list[list[dict[str, Any]]]:
    """Conversations, one per row: column or field `messages` of Parquet or of JSON lines, also as JSON text.

    Raises ConfigError.
    """
    try:
        if path.suffix == ".parquet":
            rows = _parquet_rows(path)
        else:
            with open_ordinary(path) as file:
                rows = [json.loads(line)["messages"] for line in file if line.strip()]
        made = [json.loads(row) if isinstance(row, str) else row for row in rows]
        if not made:
            raise ValueError("no rows")
        return msgspec.convert(made, list[list[dict[str, Any]]])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"--messages {path} cannot be read ({error!s:.200}): it needs `messages`") from None


def _parquet_rows(path: Path) -> list[Any]:
    from pyarrow import parquet

    rows: list[Any] = parquet.read_table(path, columns=["messages"])["messages"].to_pylist()
    return rows


def _lines(path: Path, setting: str, most: int | None) -> list[tuple[int, dict[str, Any], str]]:
    """(number, object, how an error names it) of the first lines that are not blank. Raises ConfigError."""
    try:
        with open_ordinary(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{setting} {path} cannot be read ({reason}): name a file of JSON lines") from None
    found = []
    for number, line in [(number, line) for number, line in enumerate(lines, 1) if line.strip()][:most]:
        where = f"{setting} {path}: line {number}"
        try:
            found.append((number, msgspec.json.decode(line, type=dict[str, Any]), where))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is no JSON object ({error!s:.100}): correct it") from None
    if not found:
        raise ConfigError(f"{setting} {path} is empty: write one JSON object per line")
    return found


def _said(whole: Mapping[str, Any], where: str) -> CaseLine:
    try:
        said = msgspec.convert(whole, CaseLine)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} is not of its form: {error!s:.200}: correct it") from None
    if all(form is None for form in (said.messages, said.history, said.prompt_text, said.prompt_ids)):
        raise ConfigError(f"{where} asks nothing: give history, messages, prompt_text or prompt_ids")
    return said


def _case(number: int, whole: Mapping[str, Any], where: str, name: str) -> Case:
    said = _said(whole, where)
    if name not in whole:
        raise ConfigError(f"{where} has no {name!r}: name the field that has beams (--beams)")
    try:
        beams = msgspec.convert(whole[name], list[tuple[list[int] | str, float | None]])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {name}: {error!s:.200}: write [[tokens, score], ...]") from None
    if not beams:
        raise ConfigError(f"{where} has no beams: remove the line")
    width = said.width if name == "beams" and said.width else len(beams)
    if width < len(beams):
        raise ConfigError(f"{where} has {len(beams)} beams and width {width}: correct the width")
    return Case(f"line {number}", said, width, beams, whole)
