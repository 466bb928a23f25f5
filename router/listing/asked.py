"""What a request asks of the listing of its results."""

from typing import NamedTuple


class Diversity(NamedTuple):
    """At most so many items of an answer share a value of the attribute."""

    attribute: str  # one that has a column
    at_most: int


class Listing(NamedTuple):
    """By default every item of every beam, and nothing of an item but its id."""

    per_sid: int | None = None  # items of one SID at most; None: all
    sample: int | None = None  # seed of the order in which a SID's items come; None: by popularity
    most_items: int | None = None  # of an answer; None: all
    diversity: Diversity | None = None
    title: bool = False
    attributes: tuple[str, ...] = ()  # of each item, by these names

    @property
    def chooses(self) -> bool:
        """Whether some items, or beams, may be left out or come in another order."""
        limits = self.per_sid, self.sample, self.most_items, self.diversity
        return any(limit is not None for limit in limits)

    @property
    def informs(self) -> bool:
        """Whether something is said of items besides their ids."""
        return self.title or bool(self.attributes)


PLAIN = Listing()
