"""What is asked. Every route that ranks items makes one of these of its body; it knows no dialect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.listing import PLAIN, Listing
from xgr_kernels.trie import ScoreMode

MOST_PRIORITY = 100


@dataclass(frozen=True)
class History:
    """Item ids, oldest first, for a template of the catalog; the newest that fit become the prompt.

    Lists have the names that the template knows them by; one that came alone has the empty name.
    """

    items: Mapping[str, Sequence[str]]
    drop_unknown: bool = False  # leave out what the catalog does not hold, instead of refusing it
    template: str | None = None  # None: the catalog's default
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template; their SIDs are text."""

    messages: Sequence[Mapping[str, Any]]  # at least role and content, which is text or a list of parts
    template: str | None = None  # None: the catalog's default
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # of the chat template


@dataclass(frozen=True)
class Text:
    """For the model's tokenizer, as it is."""

    text: str


@dataclass(frozen=True)
class TokenIds:
    """A prompt that is tokens already."""

    ids: Sequence[int]


Prompt = History | Conversation | Text | TokenIds


@dataclass(frozen=True)
class Query:
    """Strings and numbers as the client means them; what they are in a catalog, `bind` finds out."""

    rid: str
    prompt: Prompt
    width: int
    results: int
    deadline: float  # time.monotonic()
    score_mode: ScoreMode = "vocab"
    repetition_penalty: float = 1.0  # on log-probabilities of tokens that prompt or beam holds
    length_penalty: float = 1.0  # power of the emitted tokens by which a sequence's score is divided
    allow: Sequence[str] | None = None  # items; None: all
    deny: Sequence[str] = ()  # items
    where: str | None = None  # a condition over attributes, as SQL writes it; None: all
    listing: Listing = PLAIN  # which items of the results are listed, and what is said of them
    priority: int = 0  # higher first
    batch: bool = False  # it fills what others leave
    probe: bool = False  # the router's own, to see whether all is well
