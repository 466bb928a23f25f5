"""What requests say, as the keyword arguments of the clients' methods."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

from xgr_kernels.trie import ScoreMode

Items = Sequence[str | int]


class TextPart(TypedDict):
    """A piece of a message's content; no other kind is read."""

    type: Literal["text"]
    text: str


class ChatMessage(TypedDict, total=False):
    """One of the messages that a chat template is given."""

    role: Required[str]
    content: Required[str | Sequence[TextPart]]
    name: str
    reasoning_content: str


class Sampled(TypedDict):
    """Items of a SID in an order that a seed draws."""

    sample: int


class Diverse(TypedDict):
    """At most so many items of an answer share a value."""

    attribute: str
    at_most: int


class Asking(TypedDict, total=False):
    """What every request may say: exactly one of the first four, everything else optional."""

    history: Items | Mapping[str, Items]  # oldest first; by name where the template has several
    input_ids: Sequence[int]
    text: str
    messages: Sequence[ChatMessage]
    template: str  # of history and messages: its name in the catalog
    variables: Mapping[str, str]  # of a history's template
    chat_template_kwargs: Mapping[str, Any]  # of messages
    unknown_history: Literal["refuse", "drop"]
    score_mode: ScoreMode
    repetition_penalty: float
    length_penalty: float
    allow: Items | None
    deny: Items
    exclude_history: bool
    where: str
    named: Sequence[str]  # of filters
    timeout_ms: int
    priority: int
    priority_class: Literal["online", "batch"]
    model: str
    rid: str


class Request(Asking, total=False):
    """What a request for ranked items may say besides."""

    beam_width: int
    n: int
    title: bool  # of each item
    attributes: Sequence[str]  # of each item, those of these names
    items_per_sid: Literal["all", "best"] | Sampled
    max_items_per_sid: int
    max_items: int
    diversity: Diverse


class ScoreFields(Asking, total=False):
    """What a request for scores says besides: one of the two."""

    items: Items  # to score
    sids: Sequence[Sequence[int]]  # to score instead: the tokens of each


class EditedItem(TypedDict, total=False):
    """An item to add, which needs a SID, or to update, where what is left out stays."""

    item: Required[str | int]
    sid: Sequence[int | str] | str
    title: str
    popularity: float
    attributes: Mapping[str, Any]  # of an update those to change; None takes one away


class ItemEdits(TypedDict, total=False):
    """One batch: all of it happens, or nothing."""

    add: Sequence[EditedItem]
    update: Sequence[EditedItem]
    remove: Items
    hide: Items
    show: Items
    rank: Mapping[str, float]  # popularity by item
