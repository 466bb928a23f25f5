"""Names that are in a JSON object twice: found wherever they stand, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.catalog import beside
from xgr_runtime.catalog.doubled import doubled_name
from xgr_runtime.errors import CatalogError

TEXTS = st.text(alphabet='":{}[],\\\n\t \u00e9ab', max_size=6)
VALUES = st.recursive(
    TEXTS | st.integers(-9, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([(",", ":"), (", ", " :\t"), (",\n", ": ")]), st.booleans())
def test_what_is_there_once_is_no_double(value: Any, separators: tuple[str, str], ascii_only: bool) -> None:
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_only).encode()
    assert doubled_name(text) == ""


@given(VALUES, TEXTS, st.sampled_from([":", " : ", "\n:"]), st.booleans())
def test_one_name_more_is_found_anywhere(value: Any, name: str, between: str, escaped: bool) -> None:
    first = json.dumps(name)
    letters = "".join(f"\\u{ord(letter):04x}" for letter in name)
    second = f'"{letters}"' if escaped else first
    pair = f"{first}{between}1, {second}{between}2"
    text = f'{{"all": [{json.dumps(value)}, {{{pair}}}]}}'.encode()
    assert f"an object has {name!r} twice" in doubled_name(text)


def test_settings_beside_a_source_have_each_name_once(tmp_path: Any) -> None:
    (tmp_path / "catalog.json").write_text('{"templates": {"a": {"text": "x"}, "a": {"text": "y"}}}')
    with pytest.raises(CatalogError, match="an object has 'a' twice"):
        beside.read_beside(tmp_path / "items.jsonl")
