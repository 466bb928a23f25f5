"""Answers of another run, or of another program, by prompt: what this run's answers are compared with.

A file has JSON lines `{"prompt_ids": [...] or "history": [...], "beams": [[sid, score], ...]}`, best first;
`width` is optional, and then only requests of that width are compared with the line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from xgr_runtime.cli.bench.traffic import UNLIMITED, prompt_of
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import check_writable, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.prompts import Prompts

Sid: TypeAlias = tuple[int, ...]
Key: TypeAlias = tuple[tuple[int, ...], int | None]  # prompt, width


@dataclass(frozen=True)
class Agreement:
    """`first`: the same best SID. `overlap`: the share of the reference's SIDs that were found as well."""

    first: bool
    overlap: float


class Reference:
    """Ranked SIDs by prompt and width."""

    def __init__(self, answers: dict[Key, list[Sid]]) -> None:
        self._answers = answers

    def __len__(self) -> int:
        return len(self._answers)

    def compare(self, prompt: Sequence[int], width: int, sids: Sequence[Sid]) -> Agreement | None:
        """None for a prompt that is not in the file. As many of each as the shorter list has are compared."""
        key = tuple(prompt)
        expected = self._answers.get((key, width)) or self._answers.get((key, None))
        if not expected:
            return None
        if not sids:
            return Agreement(False, 0.0)
        k = min(len(expected), len(sids))
        return Agreement(sids[0] == expected[0], len(set(sids[:k]) & set(expected[:k])) / k)


def read_reference(path: Path, catalog: Catalog, prompts: Prompts | None = None) -> Reference:
    """Raises ConfigError naming the line that is wrong."""
    answers: dict[Key, list[Sid]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--reference {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            prompt = row.get("prompt_ids") or prompt_of(catalog, row["history"], UNLIMITED, path, prompts)
            answers[tuple(prompt), row.get("width")] = [tuple(sid) for sid, _ in row["beams"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"--reference {path}: line {number} is not of its form: {error!r}") from None
    return Reference(answers)


class AnswerFile:
    """Collects answers as lines of a reference file, each prompt and width once, written at the end."""

    def __init__(self, path: Path) -> None:
        check_writable(path, "--save-answers")
        self._path = path
        self._lines: dict[Key, str] = {}

    def write(self, prompt: Sequence[int], width: int, beams: Sequence[tuple[Sid, float]]) -> None:
        key = (tuple(prompt), width)
        if key not in self._lines:
            self._lines[key] = json.dumps({"prompt_ids": list(prompt), "width": width, "beams": beams})

    def close(self) -> None:
        """Raises `ConfigError` where the file cannot be written."""
        write_whole(self._path, "".join(f"{line}\n" for line in self._lines.values()).encode())
