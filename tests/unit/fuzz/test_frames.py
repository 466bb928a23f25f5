"""Whatever bytes come over a link: a message within its bounds, or the typed refusal; never an error."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from wire_fuzz import HOSTILE, SETTINGS, leaves, values

from xgr_runtime.transport.sockets import _decoded
from xgr_runtime.wire.messages import (
    MOST_TEXT,
    Message,
    OtherProtocol,
    ToDecode,
    ToDecodeData,
    ToPrefill,
    ToPrefillData,
    ToRouter,
)

UNIONS = {
    "to prefill": ToPrefill,
    "to decode": ToDecode,
    "to router": ToRouter,
    "to decode, data": ToDecodeData,
    "to prefill, data": ToPrefillData,
}
EVERY_LINK = pytest.mark.parametrize("union", UNIONS.values(), ids=UNIONS)
NESTED = b"\x91" * 100_000 + b"\xc0"
LENGTHS = [b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]


def kinds(union: Any) -> list[Any]:
    info: Any = inspect.type_info(union)
    return list(info.types)


def check(decoder: msgspec.msgpack.Decoder[Any], frame: bytes) -> Any:
    """What a link makes of a frame, which keeps to its bounds."""
    message = _decoded(decoder, frame)
    assert message is None or isinstance(message, Message)
    for value in leaves(message):
        assert not isinstance(value, int) or -(2**63) <= value < 2**64
        assert not isinstance(value, float) or math.isfinite(value)
        assert not isinstance(value, str) or len(value) <= MOST_TEXT
    return message


def fields_of(kind: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every plain field below a type, with where it is."""
    match kind:
        case inspect.StructType():
            for field in kind.fields:
                yield from fields_of(field.type, f"{path}.{field.name}")
        case inspect.UnionType():
            for each in kind.types:
                yield from fields_of(each, path)
        case inspect.ListType():
            yield path, kind
            yield from fields_of(kind.item_type, f"{path}[]")
        case inspect.DictType():
            yield path, kind
            yield from fields_of(kind.key_type, f"{path}.key")
            yield from fields_of(kind.value_type, f"{path}[]")
        case _:
            yield path, kind


@EVERY_LINK
def test_every_field_has_bounds(union: Any) -> None:
    """So that nothing that was decoded overflows, or takes all memory, later on."""
    unbounded = set()
    for kind in kinds(union):
        for path, field in fields_of(kind, kind.tag):
            match field:
                case inspect.IntType() | inspect.FloatType():
                    bounded = field.ge is not None and field.le is not None
                case inspect.StrType() | inspect.BytesType() | inspect.ListType() | inspect.DictType():
                    bounded = field.max_length is not None
                case _:
                    bounded = True
            if not bounded:
                unbounded.add(path)
    # Digests are 64 bits wide, as msgpack's numbers are; the frame bounds what is alone in it.
    assert unbounded <= {
        "catalog_offer.steps[].digest",
        "catalog_part.checksum",
        "kv.checksum",
        "commit.digest",
        "commit.checksum",
        "decode.allow",
        "decode.deny",
        "result.leaves",
        "result.scores",
    }


@EVERY_LINK
def test_what_fits_its_type_is_read_as_it_was_written(union: Any) -> None:
    decoder = msgspec.msgpack.Decoder(union)

    @SETTINGS
    @given(st.one_of([values(kind) for kind in kinds(union)]))
    def read(fields: dict[str, Any]) -> None:
        message = check(decoder, msgspec.msgpack.encode(fields))
        assert message is not None and not isinstance(message, OtherProtocol)
        assert check(decoder, msgspec.msgpack.encode(message)) == message

    read()


@EVERY_LINK
def test_random_bytes(union: Any) -> None:
    decoder = msgspec.msgpack.Decoder(union)

    @SETTINGS
    @given(st.binary(max_size=64))
    def read(frame: bytes) -> None:
        assert check(decoder, frame) is None

    read()


@EVERY_LINK
def test_frames_that_were_spoiled_on_the_way(union: Any) -> None:
    decoder = msgspec.msgpack.Decoder(union)

    @SETTINGS
    @given(st.one_of([values(kind) for kind in kinds(union)]), st.randoms(use_true_random=False))
    def read(fields: dict[str, Any], chance: random.Random) -> None:
        frame = msgspec.msgpack.encode(fields)
        for _ in range(8):
            check(decoder, spoiled(frame, chance))

    read()


def spoiled(frame: bytes, chance: random.Random) -> bytes:
    """Cut off, with a byte changed, or with something huge in its midst."""
    at = chance.randrange(len(frame))
    return chance.choice(
        [
            frame[:at],
            frame[:at] + bytes([chance.randrange(256)]) + frame[at + 1 :],
            frame[:at] + frame[at + 1 :],
            frame[:at] + chance.choice(LENGTHS) + frame[at:],
            frame[:at] + NESTED + frame[at:],
            frame + frame,
        ]
    )


@EVERY_LINK
def test_hostile_values_in_every_field(union: Any) -> None:
    """Every field of every message, with every value that is wrong in most of them."""
    decoder = msgspec.msgpack.Decoder(union)

    @settings(SETTINGS, max_examples=3)
    @given(st.tuples(*(values(kind) for kind in kinds(union))))
    def read(messages: tuple[dict[str, Any], ...]) -> None:
        for fields in messages:
            for name in fields:
                for value in HOSTILE:
                    check(decoder, msgspec.msgpack.encode(fields | {name: value}))

    read()


@EVERY_LINK
def test_every_field_may_be_nested_as_deep_as_a_frame_is_long(union: Any) -> None:
    decoder = msgspec.msgpack.Decoder(union)
    for kind in kinds(union):
        tag = b"\x82\xa4type" + msgspec.msgpack.encode(kind.tag)
        for name in ["unknown", *(field.encode_name for field in kind.fields)]:
            assert check(decoder, tag + msgspec.msgpack.encode(name) + NESTED) is None
