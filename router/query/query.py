"""What is asked. Every route that ranks items makes one of these of its body; it knows no dialect."""

from collections.abc import Sequence
from dataclasses import dataclass

from xgr_kernels.trie import ScoreMode

MOST_PRIORITY = 100


@dataclass(frozen=True)
class History:
    """Item ids, oldest first; the newest that fit become the prompt."""

    items: Sequence[str]
    drop_unknown: bool = False  # leave out what the catalog does not hold, instead of refusing it


@dataclass(frozen=True)
class Text:
    """For the model's tokenizer, as it is."""

    text: str


@dataclass(frozen=True)
class TokenIds:
    """A prompt that is tokens already."""

    ids: Sequence[int]


Prompt = History | Text | TokenIds


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
    priority: int = 0  # higher first
    probe: bool = False  # the router's own, to see whether all is well
