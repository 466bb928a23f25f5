"""What a forward works on, prepared before its turn on the device, as far as the engine can."""

import contextlib

from prefill_worker.engines.base import Part, PrefillEngine
from prefill_worker.scheduler import Turn


class Ahead:
    """The forward that was prepared last, and may not have run yet."""

    def __init__(self, engine: PrefillEngine) -> None:
        self._engine = engine
        self._turns: list[Turn] = []
        self.parts: list[Part] = []  # one for each

    def prepare(self, turns: list[Turn]) -> None:
        """These run next, as far as we know; what is prepared already is not prepared again."""
        if not turns or not self._engine.prepares or turns == self._turns:
            return
        self._turns, self.parts = turns, [part_of(turn) for turn in turns]
        with contextlib.suppress(Exception):  # the forward meets it again, and finds out whose it is
            self._engine.prepare(self.parts)

    def parts_of(self, turns: list[Turn]) -> list[Part]:
        """What the engine runs; of turns that were prepared, the very objects."""
        return self.parts if turns == self._turns else [part_of(turn) for turn in turns]


def part_of(turn: Turn) -> Part:
    """What the engine runs in this turn."""
    return Part(turn.prompt.tokens[turn.start : turn.end], turn.prompt.pages, turn.start)
