"""How a rival talks to rivals.py: JSON lines over stdin and stdout, with the standard library alone.

A rival runs in the interpreter that has its packages. It says `{"ready": facts}` or `{"error": why}`, then
answers `{"prompts": [...], "width": W, "at_a_time": n}` by `{"seconds": s, "beams": [[[sid, score], ...],
...]}` until stdin ends. The clock runs here, so that the pipe costs nobody anything.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

Prompts = list[list[int]]
Beams = list[tuple[list[int], float]]  # best first


class Rival(Protocol):
    """Something that finds the `width` best continuations of prompts."""

    def facts(self) -> dict[str, Any]:
        """`versions`, and `cannot`: what it is not able to do, in words."""
        ...

    def ask(self, prompts: Prompts, width: int, at_a_time: int) -> list[Beams]:
        """All prompts, `at_a_time` of them at a time."""
        ...


def talk(start: Callable[[dict[str, Any]], AbstractContextManager[Rival]]) -> None:
    """Starts the rival with the settings in the first argument, and answers until nobody asks any more."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=out, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever it started has to end too
    try:
        with start(json.loads(sys.argv[1])) as rival:
            say({"ready": rival.facts()})
            for line in sys.stdin:
                say(_answer(rival, **json.loads(line)))
    except Exception as error:  # whatever keeps it from starting is for the table
        say({"error": f"{type(error).__name__}: {error}"[-2000:]})
        raise


def _answer(rival: Rival, prompts: Prompts, width: int, at_a_time: int) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        beams = rival.ask(prompts, width, at_a_time)
    except Exception as error:  # this width or this many: the next question may fare better
        return {"error": f"{type(error).__name__}: {error}"[-2000:]}
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "beams": beams, "overhead": getattr(rival, "overhead", [])}


def versions(*packages: str) -> dict[str, str]:
    """Of installed packages, and of Python."""
    from importlib import metadata

    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in packages}
