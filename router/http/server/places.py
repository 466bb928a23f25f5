"""Who may stay connected: so many have a place, a few more stand at the door with a request at most.

A connection without a request under way gives its place to one that has sent a whole head. Where all are at
work the door is left, from which probes are answered: whoever watches the router is never shut out.
"""

from collections import OrderedDict
from typing import Protocol

DOOR = 64  # connections without a place


class Guest(Protocol):
    """A connection."""

    @property
    def idle(self) -> bool:
        """Whether all that was written to it has gone out."""
        ...

    def dismiss(self) -> None:
        """Others need the place more: the connection ends."""
        ...


class Places:
    """All connections of a server. Each of its decisions takes the same time however many there are."""

    def __init__(self, most: int, door: int = DOOR) -> None:
        self.most = most
        self.room_at_the_door = door
        self._seated: set[Guest] = set()
        self._waiting: OrderedDict[Guest, None] = (
            OrderedDict()
        )  # of the seated: no request under way, longest first
        self._door: OrderedDict[Guest, None] = OrderedDict()  # longest first

    def enter(self, guest: Guest) -> bool:
        """Whether there was a place; else `guest` stands at the door, whose first one may have to go."""
        if len(self._seated) < self.most:
            self._sit(guest)
            self._waiting[guest] = None
            return True
        if len(self._door) >= self.room_at_the_door:
            first, _ = self._door.popitem(last=False)
            first.dismiss()
        self._door[guest] = None
        return False

    def begin(self, guest: Guest) -> bool:
        """A whole head arrived: whether there is a place for its request, perhaps that of one who waits."""
        if guest in self._seated:
            self._waiting.pop(guest, None)
            return True
        if len(self._seated) >= self.most:
            longest = next((other for other in self._waiting if other.idle), None)
            if longest is None:
                return False
            self.leave(longest)
            longest.dismiss()
        self._sit(guest)
        return True

    def rest(self, guest: Guest) -> None:
        """Its requests are answered."""
        if guest in self._seated:
            self._waiting[guest] = None

    def at_the_door(self, guest: Guest) -> bool:
        return guest in self._door

    def leave(self, guest: Guest) -> None:
        self._seated.discard(guest)
        self._waiting.pop(guest, None)
        self._door.pop(guest, None)

    def _sit(self, guest: Guest) -> None:
        self._door.pop(guest, None)
        self._seated.add(guest)
