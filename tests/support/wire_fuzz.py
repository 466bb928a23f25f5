"""Messages made from the types of the wire protocol itself, and what others could make of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from msgspec import inspect

HOSTILE_INTS = [-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
HOSTILE: list[Any] = [
    *HOSTILE_INTS,
    math.nan,
    math.inf,
    -math.inf,
    -0.5,
    1e308,
    None,
    True,
    "x" * 9000,
    b"",
    [],
    {},
]
SETTINGS = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
"""The same examples in every run."""


class Errors(logging.Handler):
    """Every exception of a package that was caught because nobody had thought of it."""

    def __init__(self, package: str) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []
        self._log = logging.getLogger(package)
        self._log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))

    def remove(self) -> None:
        self._log.removeHandler(self)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """What msgpack carries for a value of this type, within its bounds."""
    match kind:
        case inspect.IntType(ge=low, le=high):
            return st.integers(-(2**63) if low is None else low, 2**64 - 1 if high is None else high)
        case inspect.FloatType(ge=low, le=high):
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case inspect.StrType():
            return st.text(max_size=8)
        case inspect.BytesType():
            return st.binary(max_size=12)
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.LiteralType(values=allowed):
            return st.sampled_from(allowed)
        case inspect.ListType(item_type=item):
            return st.lists(values(item), max_size=3)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=3)
        case inspect.UnionType(types=types):
            return st.one_of([values(each) for each in types])
        case inspect.StructType():
            return _struct(kind)
    raise AssertionError(f"the wire protocol has a new kind of field: {kind}")


def _struct(kind: inspect.StructType) -> st.SearchStrategy[Any]:
    if kind.array_like:
        return st.tuples(*(values(field.type) for field in kind.fields)).map(list)
    fields = {field.encode_name: values(field.type) for field in kind.fields}
    if kind.tag_field is not None:
        fields = {kind.tag_field: st.just(kind.tag), **fields}
    return st.fixed_dictionaries(fields)


def leaves(value: Any) -> Iterator[Any]:
    """All plain values within a message."""
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from leaves(getattr(value, field))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *leaves(item))
    else:
        yield value
