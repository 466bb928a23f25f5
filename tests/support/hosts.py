"""Hosts on one machine: a network namespace for each, and between them a link as bad as one likes.

Where the kernel has netem, it makes the link bad; elsewhere `carrier` does, which carries the packets anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from carrier import LATE, Conditions
from network_spaces import enter, in_thread, inside, new_device, new_space

T = TypeVar("T")

SUPPORT = Path(__file__).parent
_DEVICE = "lan"


def hosts_missing() -> str:
    """Why there can be no hosts here; empty if there can be."""
    try:
        with Hosts(["probe"]):
            return ""
    except OSError as error:
        return f"no network namespace with a TUN device can be made here ({error}): root may, in most places"


class Hosts(AbstractContextManager["Hosts"]):
    """`names` are hosts of one network, 10.77.0.1 and so on. Raises OSError where none are allowed."""

    def __init__(self, names: Sequence[str], mtu: int = 1500, seed: int = 19) -> None:
        self.names = list(names)
        self._mtu, self._seed = mtu, seed
        self._open = ExitStack()
        self._spaces: dict[str, str] = {}
        self._carrier: subprocess.Popen[bytes] | None = None
        self.netem = False  # whether the kernel's makes the link bad

    def address(self, name: str) -> str:
        return f"10.77.0.{self.names.index(name) + 1}"

    def space(self, name: str) -> str:
        """The file that stands for the host's namespace, for any process."""
        return self._spaces[name]

    def inside(self, name: str) -> AbstractContextManager[None]:
        """This thread is on that host, for what it connects and starts."""
        return inside(self.space(name))

    def conditions(self, wanted: Conditions) -> None:
        """From now on the link between any two of them is like that."""
        if self.netem:
            for name in self.names:
                self._netem(name, wanted)
            wanted = Conditions()
        assert self._carrier is not None and self._carrier.stdin is not None, "in a `with` block"
        self._carrier.stdin.write(msgspec.json.encode(wanted) + b"\n")
        self._carrier.stdin.flush()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            ends = {name: self._make(name, opened) for name in self.names}
            named = [f"{end}={self.address(name)}" for name, end in ends.items()]
            command = [sys.executable, "-P", str(SUPPORT / "carrier.py"), str(self._seed), *named]
            self._carrier = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=ends.values())
            opened.callback(self._end_carrier)
            self.netem = self._netem(self.names[0], Conditions())
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _make(self, name: str, opened: ExitStack) -> int:
        """A host with its end of the network, which `opened` closes."""
        held = new_space()
        opened.callback(os.close, held)
        self._spaces[name] = f"/proc/{os.getpid()}/fd/{held}"
        end = self._there(name, partial(new_device, _DEVICE, self.address(name), self._mtu))
        opened.callback(os.close, end)
        return end

    def _netem(self, name: str, wanted: Conditions) -> bool:
        """Whether the host's device is like that now."""
        command = ["tc", "qdisc", "replace", "dev", _DEVICE, "root", "netem", *_words(wanted)]
        try:
            return self._there(name, partial(subprocess.run, command, capture_output=True)).returncode == 0
        except FileNotFoundError:
            return False

    def _there(self, name: str, act: Callable[[], T]) -> T:
        """What `act` gives on that host."""

        def run() -> T:
            enter(self.space(name))
            return act()

        return in_thread(run)

    def _end_carrier(self) -> None:
        assert self._carrier is not None and self._carrier.stdin is not None
        self._carrier.stdin.close()
        self._carrier.wait()


def _words(wanted: Conditions) -> list[str]:
    """What netem calls that. Who overtakes others there is not delayed, so reordering needs a delay."""
    delay = wanted.delay or (LATE if wanted.reordering else 0.0)
    given = {
        "delay": f"{delay * 1e6:.0f}us" if delay else "",
        "loss": f"{100 if wanted.gone else wanted.loss * 100:g}%",
        "reorder": f"{wanted.reordering * 100:g}%" if wanted.reordering else "",
        "rate": f"{wanted.rate:.0f}bit" if wanted.rate else "",
    }
    return ["limit", "10000", *(word for pair in given.items() if pair[1] for word in pair)]
