"""What a request costs grows no faster than it does, and its refusal is no longer than what was sent."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import tracemalloc
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_type_hints
from unittest.mock import Mock

import msgspec
import pytest

from router.http.routes import route_table
from router.http.schema import GenerateRequest
from router.http.server.problems import field_error
from xgr_runtime.wire.messages import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Server
    from starlette.types import Message

BODIES = [1 << 14, 1 << 16, 1 << 18]  # bytes
LIMIT = 8 << 20  # of a body
HEADS = [1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15]  # a head is no longer
FLOOR = 0.004  # seconds; what is quicker than that counts as much
# That the cost may grow with: four times as much may cost 11 times. Tokenizers leave a processor's caches,
# and were seen to take 10; what grows with the square takes 16.
EXPONENT = 1.75
OWN = 5000  # bytes that a refusal has of itself

Fill: TypeAlias = "Callable[[int], bytes]"


def string(unit: bytes, start: bytes = b"") -> Fill:
    return lambda size: b'"' + start + unit * ((size - len(start)) // len(unit)) + b'"'


def listed(unit: bytes) -> Fill:
    return lambda size: b"[" + b",".join([unit] * (size // (len(unit) + 1))) + b"]"


# Values of a size, in bytes: each has met something that took them badly, here or elsewhere.
VALUES: dict[str, Fill] = {
    "letters": string(b"a"),
    "path": string(b"[", b" - at `$"),  # as a decoder ends its complaint
    "paths": string(b" - at `$"),
    "ticks": string(b"`"),
    "escapes": string(b"\\u0001"),
    "backslashes": string(b"\\\\"),
    "wide": string("\U0001f600".encode()),
    "tokens": string(b"<a_0>"),
    "angles": string(b"<"),
    "semicolons": string(b";="),
    "spaces": string(b" "),
    "digits": lambda size: b"9" * size,
    "fraction": lambda size: b"0." + b"1" * size,
    "long numbers": listed(b"9" * 4000),
    "numbers": listed(b"1"),
    "one item": listed(b'"1"'),
    "items": lambda size: b"[" + b",".join(b'"%d"' % i for i in range(size // 9)) + b"]",
    "lists": listed(b"[]"),
    "depth": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "keys": lambda size: b"{" + b",".join(b'"%d":"1"' % i for i in range(size // 12)) + b"}",
    "one key": lambda size: b"{" + b",".join([b'"a":"1"'] * (size // 8)) + b"}",
}
TABLE = route_table(*[Mock()] * 5)


def fields(kind: type[msgspec.Struct], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field below `kind`, and one that none of its structs has.

    A whole request inside of another is read as one by itself is.
    """
    yield (*path, "")
    for name, hint in get_type_hints(kind).items():
        if name not in kind.__struct_fields__:
            continue
        yield (*path, name)
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct) and part is not GenerateRequest:
                yield from fields(part, (*path, name))


PLACES = [(spec.path, place) for spec in TABLE if spec.body for place in fields(spec.body)]
QUERIES = [(spec.path, name) for spec in TABLE if spec.query for name in ("", *spec.query.__struct_fields__)]


# What stands before a field that is no prompt, where that is more than a small one.
BEFORE = {
    "variables": b'{"template":"story","history":["1"],',
    "chat_template_kwargs": b'{"messages":[{"role":"user","content":"<a_0>"}],',
    "text": b"{",
    "history": b'{"template":"two",',
    "input_ids": b"{",
    "messages": b"{",
}


def body(place: tuple[str, ...], value: bytes, prompt: bool = True) -> bytes:
    """A request with `value` at `place`; under the empty name, what it says becomes a key.

    Where the place is none for a prompt, a small one stands before it. What is below messages is of one.
    """
    *around, name = place
    text = value if value[:1] == b'"' else b'"' + value.replace(b'"', b"'") + b'"'
    inner = b'{"%s":%s}' % (name.encode(), value) if name else b"{%s:1}" % text
    for outer in reversed(around):
        inner = b'[{"role":"user",' + inner[1:] + b"]" if outer == "messages" else inner
        inner = b'{"%s":%s}' % (outer.encode(), inner)
    return BEFORE.get(place[0], b'{"input_ids":[1],') + inner[1:] if prompt else inner


class Meter:
    """Asks the application, without sockets; says what it cost and how long the answer was."""

    def __init__(self, server: Server, runner: asyncio.Runner) -> None:
        self.server, self.runner = server, runner

    def ask(self, path: str, sent: bytes, **scope: Any) -> tuple[float, int, int]:
        """Seconds of processor time, status and bytes of the body of the answer."""
        answer: list[Message] = []
        parts = iter([{"type": "http.request", "body": sent, "more_body": False}])

        async def receive() -> Message:
            return next(parts, None) or await asyncio.Future()  # type: ignore[arg-type]

        async def send(message: Message) -> None:
            answer.append(message)

        whole = {**self.server.scope(path), **scope}
        began = time.process_time()
        self.runner.run(self.server.app(whole, receive, send))
        spent = time.process_time() - began
        return spent, answer[0]["status"], sum(len(part.get("body", b"")) for part in answer)

    def check(self, sizes: list[int], ask: Callable[[int], tuple[float, int, int]]) -> None:
        """Asserts that cost and answers keep to bounds, the small ones first: whoever does not ends it."""
        spent: list[float] = []
        for size in sizes:
            seconds, status, length = ask(size)
            assert status < 500
            assert status == 200 or length <= size + OWN, f"{size} bytes were answered with {length}"
            spent.append(seconds)
            for _ in range(4):  # the machine may have been at something else
                if fits(spent, sizes):
                    break
                spent[-1] = min(spent[-1], ask(size)[0])
            assert fits(spent, sizes), f"bytes {sizes[: len(spent)]} took seconds {spent}"


def fits(spent: list[float], sizes: list[int]) -> bool:
    """Whether the last size took no more than the one before lets expect."""
    if len(spent) < 2 or spent[-1] < FLOOR:
        return True
    ratio = sizes[len(spent) - 1] / sizes[len(spent) - 2]
    return spent[-1] <= max(spent[-2], FLOOR) * ratio**EXPONENT


@pytest.fixture
def meter(server: Server) -> Iterator[Meter]:
    server.set(max_body_bytes=LIMIT + 1024, max_prompt_tokens=None)
    server.dispatch.pair = Limits(100_000, 64)
    logging.getLogger("router.http").setLevel(logging.WARNING)
    with asyncio.Runner() as runner:
        yield Meter(server, runner)
    logging.getLogger("router.http").setLevel(logging.NOTSET)


@cache
def value(name: str, size: int) -> bytes:
    return VALUES[name](size)


@pytest.mark.in_turns("place", share=4)
@pytest.mark.parametrize(("path", "place"), PLACES, ids=[f"{path} {'.'.join(at)}" for path, at in PLACES])
def test_a_field_costs_what_it_is_long(meter: Meter, path: str, place: tuple[str, ...]) -> None:
    prompt = path == "/generate"
    for name in VALUES:
        meter.check(BODIES, lambda size, name=name: meter.ask(path, body(place, value(name, size), prompt)))  # type: ignore[misc]


@pytest.mark.parametrize("name", VALUES)
def test_up_to_the_limit_of_a_body(meter: Meter, name: str) -> None:
    for place in (("",), ("sampling_params", "score_mode")):
        meter.check(
            [*BODIES, 1 << 20, LIMIT],
            lambda size, at=place: meter.ask("/generate", body(at, value(name, size))),  # type: ignore[misc]
        )  # type: ignore[misc]


DEEP = ["history.seen", "variables", "variables.profile", "messages", "messages.content", "messages.a"]


@pytest.mark.in_turns("place")
@pytest.mark.parametrize("place", ["text", "history", "input_ids", "filters.deny", *DEEP])
@pytest.mark.parametrize("name", ["letters", "escapes", "tokens", "numbers", "one item", "lists"])
def test_long_fields_up_to_the_limit_of_a_body(meter: Meter, place: str, name: str) -> None:
    at = tuple(place.split("."))
    meter.check(
        [1 << 16, 1 << 18, 1 << 20, LIMIT - 1024],
        lambda size: meter.ask("/generate", body(at, value(name, size))),
    )


LONG = ["text", "history", "input_ids", "filters.allow", "filters.deny", "filters", "sampling_params", "stop"]
LONG += [*DEEP, "chat_template_kwargs", "chat_template_kwargs.more"]


@pytest.mark.in_turns("place")
@pytest.mark.parametrize("place", LONG)
def test_nothing_of_a_body_outlives_its_answer(meter: Meter, place: str) -> None:
    """Not even what a collector would find: it looks seldom, and megabytes may hang on few objects."""
    at, size = tuple(place.split(".")), 1 << 17
    wrong_at_the_end = {
        "last": lambda n: listed(b"1")(n)[:-1] + b",{}]",
        "cut": lambda n: listed(b"1")(n)[:-1],
    }
    values = [fill(size) for fill in (VALUES | wrong_at_the_end).values()]
    bodies = [body(at, one) for one in values for _ in range(2)]  # the first one fills caches
    kept: list[int] = []
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for sent in bodies:
            before = tracemalloc.get_traced_memory()[0]
            meter.ask("/generate", sent)
            meter.server.dispatch.jobs.clear()
            kept.append(meter.runner.run(settled(before, size // 4)))
    finally:
        tracemalloc.stop()
        gc.enable()
    assert max(kept[1::2]) < size // 4


async def settled(before: int, least: int) -> int:
    """Bytes that are kept once threads had time to let go of what they held."""
    for _ in range(50):
        await asyncio.sleep(0.005)
        kept = tracemalloc.get_traced_memory()[0] - before
        if kept < least:
            break
    return kept


@pytest.mark.parametrize(("path", "name"), QUERIES)
def test_a_query_costs_what_it_is_long(meter: Meter, path: str, name: str) -> None:
    """Under the empty name, what is asked becomes a name."""

    def ask(kind: str, size: int) -> tuple[float, int, int]:
        said = value(kind, size).strip(b'"')
        query = name.encode() + b"=" + said if name else said + b"=1"
        return meter.ask(path, b"", method="GET", query_string=query)

    for kind in VALUES:
        meter.check(HEADS, lambda size, kind=kind: ask(kind, size))  # type: ignore[misc]


def test_many_parameters_cost_what_they_are_long(meter: Meter) -> None:
    for one in (b"a=1&", b"seconds=1&", b"&", b"%ff%25=&", b"=&"):
        meter.check(
            HEADS,
            lambda n, one=one: meter.ask("/trace", b"", method="GET", query_string=one * (n // len(one))),  # type: ignore[misc]
        )  # type: ignore[misc]


HEADERS = ("host", "origin", "authorization", "content-type", "content-encoding", "accept", "cookie", "x", "")
UNITS = (
    b"a",
    b"a;",
    b"a=b;charset=",
    b"Bearer ",
    b",",
    b"gzip,",
    b"[",
    b":",
    b".",
    b"1.",
    b"http://",
    b'"',
    b"\\",
    b" ",
)


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_costs_what_it_is_long(meter: Meter, header: str) -> None:
    """Under the empty name, there are many of them, each of another name."""
    meter.server.set(api_key="k3y" if header == "authorization" else None)

    def ask(size: int, unit: bytes) -> tuple[float, int, int]:
        given = [(header.encode(), unit * (size // len(unit)))]
        if not header:
            given = [(b"content-type-%d" % i, unit) for i in range(size // 20)]
        return meter.ask("/generate", b'{"input_ids": [1]}', headers=given)

    for unit in UNITS:
        meter.check(HEADS, lambda size, unit=unit: ask(size, unit))  # type: ignore[misc]


@pytest.mark.parametrize("path", ["/", "/generate", "/generate/"])
def test_a_path_costs_what_it_is_long(meter: Meter, path: str) -> None:
    for unit in ("a", "/", "{", "\n", "\0", "😀", "../"):
        meter.check(HEADS, lambda size, unit=unit: meter.ask(path + unit * (size // len(unit)), b""))  # type: ignore[misc]


COMPLAINTS = [
    ("Object contains unknown field `a` - at `$.b`", "b.a", "b.a is not a field of this request: remove it"),
    ("Object contains unknown field `- at `$[[[[`", "- at `$[[[[", "- at `$[[[[ is not a field"),
    ("Object missing required field `rid`", "rid", "rid is missing"),
    (
        "Expected `int`, got `str` - at `$.input_ids[3]`",
        "input_ids",
        "input_ids[3]: expected `int`, got `str`",
    ),
    ("Expected `float`, got `str` - at `$.a.b[...]`", "a.b", "a.b[...]: expected"),
    ("Expected `object`, got `int`", None, "the body: expected `object`, got `int`"),
    ("Invalid enum value 'a - at `$b' - at `$.c`", "c", "c: invalid enum value 'a - at `$b'"),
]


@pytest.mark.parametrize(("text", "param", "message"), COMPLAINTS, ids=[text for text, *_ in COMPLAINTS])
def test_a_complaint_is_read_from_its_end(text: str, param: str | None, message: str) -> None:
    error = field_error(text)
    assert (error.param, error.message[: len(message)]) == (param, message)


def test_a_long_name_is_cut_and_its_place_is_kept() -> None:
    error = field_error(f"Object contains unknown field `{'[' * 1_000_000}` - at `$.filters`")
    assert error.param == f"filters.{'[' * 80}..."
