"""Requests with the answers of Hugging Face's `generate`, and how answers are held against them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from items import Items
from oracle import Oracle, Ranked
from sameness import TIE, difference, ranked

from xgr_runtime.wire.answers import Answer


@dataclass(frozen=True)
class Reference:
    """A prompt, the best SIDs by Hugging Face's `generate`, and the item that the user took next."""

    prompt: list[int]
    beams: Ranked
    target: str

    @property
    def width(self) -> int:
        return len(self.beams)


def stored_references(folder: Path) -> list[Reference]:
    """Those in the files beside the real catalog (520 requests of widths 50 and 256), if it is there."""
    files = sorted(folder.glob("reference_w*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        Reference(row["prompt_ids"], [(tuple(sid), score) for sid, score in row["beams"]], str(row["target"]))
        for row in rows
    ]


SHARES = 8


def share_of(references: list[Reference], share: int) -> list[Reference]:
    """One in `SHARES`, of every width."""
    return references[share::SHARES]


def share_of_commit() -> int:
    """Commits take turns, by their hash; without git it is the first."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return 0
    return int(done.stdout.strip() or "0", 16) % SHARES


def check_all(answers: list[Answer], references: list[Reference], oracle: Oracle, items: Items) -> None:
    """All the same; at most two may differ, and only because a cut fell between two beams that tie."""
    differing = [
        (reference, found)
        for answer, reference in zip(answers, references, strict=True)
        if (found := difference(ranked(answer), reference.beams))
    ]
    assert len(differing) <= 2, [found for _, found in differing]
    for reference, found in differing:
        assert oracle.closest_cut(reference.prompt, items, reference.width) <= TIE, found
