"""A long body, decoded a piece at a time: what a decoder does at once, it does while nobody else can run.

First an outline, which only finds where the long fields lie: it tells the deadline, and whether the rest is
short. Then the long lists, counted before anything is made of them, in pieces between which others run.
"""

from functools import cached_property
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from router.http.schema import (
    MOST_CONDITION,
    MOST_FILTERED,
    MOST_HISTORY,
    MOST_NAMED,
    FilterNames,
    Filters,
    GenerateRequest,
    Histories,
    ItemId,
    Items,
    Message,
    Messages,
    ModelName,
    Timeout,
    TokenId,
    Variables,
)
from router.http.server.problems import Body, decode, decode_part, part_error
from router.query.prompts import check_length
from xgr_runtime.errors import BadRequest

E = TypeVar("E")

MOST_REST = 1 << 16  # bytes of a body besides its long fields
PIECE = 4096  # entries of a list that are decoded at once, in about a millisecond
MOST_PARTS = 1 << 14  # texts, lists and maps that messages consist of: they are decoded at once
LONG = ("input_ids", "history", "text", "messages", "variables", "filters")  # fields
_COMMA, _QUOTE = b',"'
_ABSENT = msgspec.Raw(b"null")


class Outline(msgspec.Struct, frozen=True):
    """The fields that may be long, undecoded, the deadline, and which model is asked."""

    input_ids: msgspec.Raw = _ABSENT
    history: msgspec.Raw = _ABSENT
    text: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    variables: msgspec.Raw = _ABSENT
    filters: msgspec.Raw = _ABSENT
    timeout_ms: msgspec.Raw = _ABSENT
    model: msgspec.Raw = _ABSENT

    @property
    def model_name(self) -> str | None:
        """None where it is absent or wrong, which decoding will say."""
        try:
            return _NAME.decode(self.model)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    @property
    def timeout(self) -> int | None:
        """Milliseconds, None where they are absent or wrong, which decoding will say."""
        try:
            return _TIMEOUT.decode(self.timeout_ms)
        except msgspec.DecodeError:
            return None


class _Shell(GenerateRequest, frozen=True, forbid_unknown_fields=True):
    """A request whose long lists and maps are undecoded."""

    input_ids: msgspec.Raw = _ABSENT  # type: ignore[assignment]
    history: msgspec.Raw = _ABSENT  # type: ignore[assignment]
    messages: msgspec.Raw = _ABSENT  # type: ignore[assignment]
    variables: msgspec.Raw = _ABSENT  # type: ignore[assignment]
    filters: msgspec.Raw = _ABSENT  # type: ignore[assignment]


class _FilterShell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Filters whose lists are undecoded."""

    allow: msgspec.Raw = _ABSENT
    deny: msgspec.Raw = _ABSENT
    exclude_history: bool = False
    where: Annotated[str, Meta(max_length=MOST_CONDITION)] | None = None
    named: FilterNames = []


_TIMEOUT = msgspec.json.Decoder(Timeout | None)
_NAME = msgspec.json.Decoder(ModelName | None)
_OUTLINE = msgspec.json.Decoder(Outline)
_SHELL = msgspec.json.Decoder(_Shell)
_FILTERS = msgspec.json.Decoder(_FilterShell | None)
_ITEMS = msgspec.json.Decoder(list[ItemId] | None)
_LIST = msgspec.json.Decoder(list[ItemId])
_NO_HISTORY: msgspec.json.Decoder[None] = msgspec.json.Decoder(Items | Histories | None)  # what is neither
_LISTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MESSAGES = msgspec.json.Decoder(Messages | None)
_VARIABLES = msgspec.json.Decoder(Variables | None)
_TOKENS = msgspec.json.Decoder(list[TokenId] | None)


def outline(body: Body) -> Outline:
    """What a long body consists of. Raises `BadRequest` where it is no JSON, or long where it need not be."""
    found = decode(_OUTLINE, body)
    rest = len(body) - sum(len(memoryview(getattr(found, name))) for name in LONG)
    if rest > MOST_REST:
        raise BadRequest(
            f"the body has {rest} bytes besides {', '.join(LONG[:-1])} and {LONG[-1]}, "
            f"the limit is {MOST_REST}: send less of the rest"
        )
    return found


def decode_long(body: Body, most_tokens: int) -> GenerateRequest:
    """The request of a body that has an outline. Raises `BadRequest` naming the field.

    `most_tokens`: that a prompt may have, beyond which no list of token ids is decoded.
    """
    shell = decode(_SHELL, body)
    filters = None
    if lists := _filters(shell.filters):
        allow = _items(lists.allow, "filters.allow", MOST_FILTERED)
        deny = _items(lists.deny, "filters.deny", MOST_FILTERED)
        filters = Filters(allow, deny, lists.exclude_history, lists.where, lists.named)
    if (tokens := _LongList(shell.input_ids, "input_ids")).count:
        check_length(tokens.count, "input_ids", most_tokens)
    given = msgspec.structs.asdict(shell) | {
        "input_ids": tokens.decode(_TOKENS),
        "history": _history(shell.history),
        "messages": _messages(shell.messages),
        "variables": _variables(shell.variables),
        "filters": filters,
    }
    return GenerateRequest(**given)


def _filters(raw: msgspec.Raw) -> _FilterShell | None:
    try:
        return _FILTERS.decode(raw)
    except msgspec.ValidationError as error:
        raise part_error(error, "filters") from None


def _history(raw: msgspec.Raw) -> list[int | str] | dict[str, list[int | str]] | None:
    """One list, or lists by name."""
    first = bytes(memoryview(raw)[:1])
    if first == b"[":
        return _items(raw, "history", MOST_HISTORY)
    if first != b"{":
        return decode_part(_NO_HISTORY, raw, "history")
    commas, names = (_count(raw, mark) for mark in (b",", b":"))
    _check_names(names, "history")
    if commas > MOST_HISTORY + names:
        raise BadRequest(f"history: expected lists of <= {MOST_HISTORY} items in all", "history")
    lists = decode_part(_LISTS, raw, "history")
    return {name: _items(items, "history[...]", MOST_HISTORY, _LIST) or [] for name, items in lists.items()}


def _variables(raw: msgspec.Raw) -> dict[str, str] | None:
    _check_names(_count(raw, b":"), "variables")
    return decode_part(_VARIABLES, raw, "variables")


def _messages(raw: msgspec.Raw) -> list[Message] | None:
    if _count(raw, b",[{") > MOST_PARTS:
        raise BadRequest(
            f"messages consist of more than {MOST_PARTS} texts, lists and maps: send fewer, or longer ones",
            "messages",
        )
    return decode_part(_MESSAGES, raw, "messages")


def _count(raw: msgspec.Raw, marks: bytes) -> int:
    """How often one of `marks` stands outside of strings."""
    data = _outside_strings(bytes(raw))
    return sum(int(np.count_nonzero(data == mark)) for mark in marks)


def _check_names(count: int, field: str) -> None:
    """Raises `BadRequest` where a map of texts, or of lists of them, has too many entries."""
    if count > MOST_NAMED:
        raise BadRequest(f"{field}: expected `object` of length <= {MOST_NAMED}", field)


def _items(
    raw: msgspec.Raw, name: str, most: int, decoder: msgspec.json.Decoder[Any] = _ITEMS
) -> list[int | str] | None:
    entries = _LongList(raw, name)
    if entries.count > most:
        raise BadRequest(f"{name}: expected `array` of length <= {most}", name.removesuffix("[...]"))
    return entries.decode(decoder)


class _LongList:
    """A JSON value that should be a flat list: where its entries end, then the entries."""

    def __init__(self, raw: msgspec.Raw, name: str) -> None:
        self._raw = bytes(raw)
        self._name = name
        self._is_list = self._raw[:1] == b"["  # what is none is decoded whole, and refused at its first byte
        self._separators = _separators(self._raw if self._is_list else b"")
        commas = int(np.count_nonzero(self._separators))
        self.count = commas + self._is_list  # of entries, where the empty list counts as one

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where each entry ends: at a comma, the last one at the bracket."""
        return np.append(np.flatnonzero(self._separators), len(self._raw) - 1)

    def decode(self, decoder: msgspec.json.Decoder[list[E] | None]) -> list[E] | None:
        """The entries, None for null. Raises `BadRequest` naming the wrong one."""
        if self.count <= PIECE:
            return self._piece(decoder, 0, self.count) if self.count else self._no_list(decoder)
        entries: list[E] = []
        for first in range(0, self.count, PIECE):
            entries += self._piece(decoder, first, min(first + PIECE, self.count))
        return entries

    def _no_list(self, decoder: msgspec.json.Decoder[list[E] | None]) -> list[E] | None:
        return decode_part(decoder, msgspec.Raw(self._raw), self._name)

    def _piece(self, decoder: msgspec.json.Decoder[list[E] | None], first: int, last: int) -> list[E]:
        """Entries [first, last), at most `PIECE`."""
        try:
            return decoder.decode(self._between(first, last)) or []
        except msgspec.DecodeError:  # kept in no name: its traceback holds this frame, and so all of the body
            self._check_each(decoder, first, last)
            raise  # a list is right if each of its entries is

    def _check_each(self, decoder: msgspec.json.Decoder[list[E] | None], first: int, last: int) -> None:
        """Raises `BadRequest` naming the first entry that is wrong."""
        for entry in range(first, last):
            try:
                decoder.decode(self._between(entry, entry + 1))
            except msgspec.DecodeError as error:
                raise self._wrong(entry, error) from None

    def _wrong(self, entry: int, error: msgspec.DecodeError) -> BadRequest:
        if isinstance(error, msgspec.ValidationError):
            return part_error(error, f"{self._name}[{entry}]", inside=False)
        begins = self._between(entry, entry + 1)[1:].lstrip()[:1]
        if begins in (b"[", b"{"):  # cut off at a comma inside of it
            wrong = f"{self._name}[{entry}]: expected an id, got a list or object"
            return BadRequest(wrong, self._name.removesuffix("[...]"))
        return BadRequest(f"the body is not valid JSON: {error}")

    def _between(self, first: int, last: int) -> bytes:
        """A list of the entries [first, last)."""
        begin = self._ends[first - 1] if first else 0
        return b"[" + self._raw[begin + 1 : self._ends[last - 1]] + b"]"


def _separators(raw: bytes) -> NDArray[np.bool_]:
    """Which bytes are commas outside of strings."""
    commas: NDArray[np.bool_] = _outside_strings(raw) == _COMMA
    return commas


def _outside_strings(raw: bytes) -> NDArray[np.uint8]:
    """The bytes of a JSON value, where those of strings are 0."""
    if b"\\" in raw:  # an escape is two bytes, of which neither ends a string
        raw = raw.replace(rb"\\", b"__").replace(rb"\"", b"__")
    data = np.frombuffer(raw, np.uint8)
    return data * ~np.logical_xor.accumulate(data == _QUOTE)
