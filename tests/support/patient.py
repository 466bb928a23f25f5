"""The deployment that the fault suite breaks, its undisturbed answers, and what it holds at rest."""

from __future__ import annotations

import json
from typing import Any

from census import Census, take
from crowd import Crowd, Question, make_prompts, undisturbed
from fleet import Fleet
from instruments import find_data

# Behind links that can be held; KV comes to this decode worker in frames, as from another machine.
REMOTE = ("prefill-1", "decode-1")
PROMPTS = 16
LONGEST = 400  # tokens of a prompt
WIDTHS = (8, 32, 64)
# Some prompts are cached when they come again, most are not; and a prompt takes several chunks.
SETTINGS: dict[str, Any] = {"cache_bytes": 1 << 20, "chunk_bytes": 16384}


class Patient:
    """Two prefill and two decode workers and a router; started anew if a test left them dead."""

    def __init__(self) -> None:
        data = find_data()
        self._files = data.model, data.catalog
        vocabulary = int(json.loads((data.model / "config.json").read_text())["vocab_size"])
        self._prompts = make_prompts(vocabulary, PROMPTS, LONGEST, seed=6)
        self._fleet: Fleet | None = None
        self.questions: list[Question] = []
        self.at_rest: Census

    def fleet(self) -> Fleet:
        """The deployment, whole."""
        if self._fleet is None or not self._well(self._fleet):
            self.close()
            self._fleet = Fleet(*self._files, remote=REMOTE, **SETTINGS)
            self._fleet.__enter__()
            self._examine(self._fleet)
        return self._fleet

    def close(self) -> None:
        if self._fleet is not None:
            self._fleet.close()

    def _well(self, fleet: Fleet) -> bool:
        try:
            fleet.whole(seconds=30)
        except AssertionError:
            return False
        return True

    def _examine(self, fleet: Fleet) -> None:
        """Every worker has met every other one before anything is counted."""
        with fleet.client() as client:
            self.questions = undisturbed(client, self._prompts, WIDTHS)
        for seed in range(3):
            with Crowd(fleet.url, self.questions, seed, callers=12, each=True) as crowd:
                assert not crowd.wait().bad, f"before any fault: {crowd.tally.bad}"
        self.at_rest = take(fleet)
