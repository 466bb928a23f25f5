"""What a chat template may cost: every step of it is counted, and nothing it makes is larger than a bound.

Time is this thread's own, so that a busy machine fails no template.
"""

from __future__ import annotations

import re
import string
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from xgr_runtime.errors import XgrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

SECONDS = 0.03  # of this thread's time, for one rendering
MOST_STEPS = 500_000
MOST_CHARACTERS = 1 << 20  # of one text, or of all texts in one list
MOST_MADE = 1 << 24  # characters of all texts that one rendering makes
MOST_PARTS = 20_000  # values in a list, and in the lists in it
MOST_CALLS = 40  # one in another; Python's own bound is no place to be: what runs there may end the process
MOST_LISTS = 100  # one in another
MOST_NUMBER = 100_000  # that a filter or a method is given, such as a width
MOST_BITS = 256  # of a whole number
LONG = 1 << 16  # characters; longer texts go to fast filters alone
_EVERY = 32  # steps between two looks at the clock
_FAST = frozenset(
    ("count", "d", "default", "e", "escape", "first", "last", "length", "lower", "replace", "safe", "string")
) | frozenset(("tojson", "trim", "upper"))
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\*|[0-9]{4})")
_DIGITS = re.compile(r"[0-9]{4}|\{")
_PADDING = frozenset(("center", "ljust", "rjust", "zfill", "expandtabs"))


class TooMuch(XgrError):
    """A template is stopped at one of the bounds."""


class Budget(threading.local):
    """What the rendering of this thread has cost; counts from `start`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Another rendering begins."""
        self._steps = self._made = self._calls = 0
        self._until = time.thread_time() + SECONDS

    def step(self) -> None:
        """Before each turn of a loop, call, filter and operator. Raises TooMuch."""
        self._steps += 1
        if self._steps % _EVERY == 0 and (self._steps > MOST_STEPS or time.thread_time() > self._until):
            refuse("it takes too long")

    def enter(self) -> None:
        """Before each call, which `leave` ends. Raises TooMuch."""
        self.step()
        if self._calls == MOST_CALLS:
            refuse(f"its macros, blocks or loops call themselves more than {MOST_CALLS} deep")
        self._calls += 1

    def leave(self) -> None:
        """After a call, however it ended."""
        self._calls -= 1

    def made(self, value: Any) -> Any:
        """The value of a step, if it is within bounds. Raises TooMuch."""
        kind = type(value)
        if kind is str:
            self._made += len(value)
            if len(value) > MOST_CHARACTERS or self._made > MOST_MADE:
                refuse("its texts grow too long")
        elif kind is int:
            if value.bit_length() > MOST_BITS:
                refuse("a number grows too large")
        elif isinstance(value, (list, tuple, set, frozenset, dict)):
            self._weigh(value)
        return value

    def joined(self, parts: Iterable[Any]) -> str:
        """All parts as one text. Raises TooMuch."""
        self.step()
        texts = [part if type(part) is str else str(self.made(part)) for part in parts]
        if sum(map(len, texts)) > MOST_CHARACTERS:
            refuse("its texts grow too long")
        text: str = self.made("".join(texts))
        return text

    def _weigh(self, value: Any) -> None:
        """A list may hold another one many times over."""
        parts = characters = 0
        for level in _levels(value):
            for one in level:
                self.step()
                if isinstance(one, str):
                    characters += len(one)
                elif isinstance(one, (Mapping, list, tuple, set, frozenset)):
                    parts += len(one) * (2 if isinstance(one, Mapping) else 1)
                if parts > MOST_PARTS or characters > MOST_CHARACTERS:
                    refuse("its lists grow too long")


def check_nesting(value: Any) -> None:
    """Of what a request brings for a template. Raises TooMuch."""
    for _ in _levels(value):
        pass


def _levels(value: Any) -> Iterator[list[Any]]:
    """The value, what it holds, what that holds; whoever bounds a level bounds the next. Raises TooMuch."""
    level = [value]
    for _ in range(MOST_LISTS):
        yield level
        outer, level = level, []
        for one in outer:
            if isinstance(one, Mapping):
                level += one.keys()
                level += one.values()
            elif isinstance(one, (list, tuple, set, frozenset)):
                level += one
        if not level:
            return
    refuse(f"its lists and objects hold each other more than {MOST_LISTS} deep")


def refuse(why: str) -> NoReturn:
    """Raises TooMuch."""
    raise TooMuch(f"{why}: simplify it")


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Before it is applied. Raises TooMuch."""
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if type(times) is int and hasattr(value, "__len__") and len(value) * times > MOST_CHARACTERS:
                refuse("its texts grow too long")
    elif operator == "**" and type(left) is int and type(right) is int:
        if left.bit_length() * right > MOST_BITS:
            refuse("a number grows too large")
    elif operator == "%" and isinstance(left, str):
        check_percent(left)


def check_percent(form: str) -> None:
    """A text with `%` in it, before it is formatted."""
    if _WIDE.search(form):
        refuse("it asks for a very wide text")


def check_format(form: str) -> None:
    """A text with `{}` in it, before it is formatted."""
    if any(_DIGITS.search(spec or "") for _, _, spec, _ in string.Formatter().parse(form)):
        refuse("it asks for a very wide text")


def check_arguments(values: Iterable[Any]) -> None:
    """Of filters and methods."""
    for value in values:
        if type(value) in (int, float) and not -MOST_NUMBER <= value <= MOST_NUMBER:
            refuse(f"it uses {value!r:.20} as a width or a count")


def check_method(call: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """A method of a text, before it is called; other things are looked at afterwards."""
    text, name = getattr(call, "__self__", None), getattr(call, "__name__", "")
    if not isinstance(text, str):
        return
    if name in ("translate", "maketrans", "encode"):
        refuse(f"it calls {name}")
    check_arguments(arguments)
    if name == "expandtabs" and arguments:
        _check_growth(text.count("\t"), arguments[0])
    elif name == "join" and arguments:
        check_join(text, arguments[0])
    elif name in ("split", "rsplit", "splitlines"):
        check_split(text, arguments)
    elif name == "replace" and len(arguments) >= 2:
        check_replace(text, *arguments[:2])


def check_filter(name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Before a filter is applied; arguments: what is filtered first. Raises TooMuch."""
    if not arguments:
        return
    value, *others = arguments
    check_arguments([*others, *named.values()])
    if isinstance(value, str):
        if len(value) > LONG and name not in _FAST:
            refuse(f"a very long text goes through the filter {name}")
        if name == "indent":
            width = others[0] if others else named.get("width", 4)
            _check_growth(value.count("\n") + 1, width if type(width) is int else len(str(width)))
        elif name == "replace" and len(others) >= 2:
            check_replace(value, *others[:2])
        elif name == "format":
            check_percent(value)
    elif name == "sum" and not all(isinstance(one, (int, float, str)) for one in [*others, *named.values()]):
        refuse("it adds up what are no numbers")
    elif name == "join" and isinstance(value, (list, tuple)):
        check_join(str(others[0] if others else named.get("d", "")), value)


def check_join(between: str, parts: Any) -> None:
    """Texts that are joined."""
    if isinstance(parts, (list, tuple, str)):
        texts = sum(len(part) for part in parts if isinstance(part, str))
        _check_growth(1, texts + len(between) * len(parts))


def check_split(text: str, arguments: Sequence[Any]) -> None:
    """Into no more parts than a list may have."""
    at = arguments[0] if arguments and isinstance(arguments[0], str) else None
    if text.count(at) > MOST_PARTS if at else len(text) > LONG:
        refuse("it splits a very long text")


def check_replace(text: str, old: Any, new: Any) -> None:
    """Each of what is replaced may grow."""
    if isinstance(old, str) and isinstance(new, str) and len(new) > len(old):
        _check_growth(text.count(old), len(new) - len(old))


def _check_growth(times: int, by: int) -> None:
    if times * by > MOST_CHARACTERS:
        refuse("its texts grow too long")
