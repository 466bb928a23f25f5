"""Files of cases: what is taken as it lies, what flags add, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalogs import example

from xgr_runtime.cli.verify import cases
from xgr_runtime.errors import ConfigError

LINE: dict[str, Any] = {
    "history": ["1", 2],
    "beams": [[[1, 2], -0.5]],
    "user": "u1",
    "prompt": 3,
    "thought": "x",
}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "cases.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_fields_that_are_somebody_elses_stay_unread(tmp_path: Path) -> None:
    (case,) = cases.read_cases(written(tmp_path, {**LINE, "illegal": None}), "beams", None)
    assert case.said.history == ["1", 2] and case.beams == [([1, 2], -0.5)] and case.width == 1
    assert case.source == "history" and case.name == "line 1"


def test_another_field_of_beams_has_its_own_width(tmp_path: Path) -> None:
    path = written(tmp_path, {**LINE, "width": 1, "wider": [[[1, 2], -0.5], ["<a><b>", None]]})
    (case,) = cases.read_cases(path, "wider", None)
    assert case.width == 2 and case.beams[1] == ("<a><b>", None)


def test_only_the_first_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, LINE, "", LINE, "no JSON")
    assert [case.name for case in cases.read_cases(path, "beams", 2)] == ["line 1", "line 3"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "line 2 is no JSON object"),
        ("{", "line 2 is no JSON object"),
        ("[" * 5000, "line 2 is no JSON object"),
        ({**LINE, "history": [1.5]}, r"line 2 is not of its form.*\$\.history\[0\]"),
        ({**LINE, "width": -1}, "line 2 has 1 beams and width -1"),
        ({**LINE, "beams": []}, "line 2 has no beams: remove"),
        ({**LINE, "beams": [[1, 2, -0.5]]}, r"line 2: beams: .*write \[\[tokens, score\], \.\.\.\]"),
        ({"history": []}, r"line 2 has no 'beams': name the field that has beams \(--beams\)"),
        ({"beams": LINE["beams"]}, "line 2 asks nothing: give history, messages, prompt_text or prompt_ids"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_line_is_named(line: object, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        cases.read_cases(written(tmp_path, LINE, line), "beams", None)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"], ids=["empty", "blank", "utf-16"])
def test_a_file_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--cases .*cases\.jsonl"):
        cases.read_cases(tmp_path / "cases.jsonl", "beams", None)
    with pytest.raises(ConfigError, match=r"--cases .* cannot be read"):
        cases.read_cases(tmp_path / "none.jsonl", "beams", None)


def test_flags_fill_in_fields_of_the_line(tmp_path: Path) -> None:
    (case,) = cases.read_cases(written(tmp_path, LINE), "beams", None)
    done = cases.completed(
        case, "prompt{prompt}", {"thought": "{thought}!"}, [{"role": "user", "content": "y"}]
    )
    assert done.said.template == "prompt3" and done.said.variables == {"thought": "x!"}
    assert done.source == "messages"


def test_what_a_line_says_itself_counts_first(tmp_path: Path) -> None:
    line = {
        **LINE,
        "template": "own",
        "variables": {"a": "b"},
        "messages": [{"role": "system", "content": ""}],
    }
    (case,) = cases.read_cases(written(tmp_path, line), "beams", None)
    done = cases.completed(case, "other", {"a": "c", "d": "e"}, [{"role": "user", "content": "y"}])
    assert done.said.template == "own" and done.said.variables == {"a": "b", "d": "e"}
    assert done.said.messages == line["messages"]


@pytest.mark.parametrize("template", ["{none}", "{", "{0}", "{user.__none__}"])
def test_a_field_that_no_line_has_is_named(template: str, tmp_path: Path) -> None:
    (case,) = cases.read_cases(written(tmp_path, LINE), "beams", None)
    with pytest.raises(ConfigError, match="line 1 has no field for --template or --variable"):
        cases.completed(case, template, {}, None)


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_messages_of_rows(kind: str, as_text: bool, tmp_path: Path) -> None:
    rows = [
        [{"role": "user", "content": [{"type": "text", "text": "é"}]}],
        [{"role": "user", "content": "b"}],
    ]
    shown = [json.dumps(row) if as_text or kind == "parquet" else row for row in rows]
    path = tmp_path / f"messages.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"messages": shown}), path)
    else:
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in shown))
    assert cases.read_messages(path) == rows


def test_messages_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "messages.jsonl").write_text('{"message": []}\n')
    pq.write_table(pa.table({"other": [1]}), tmp_path / "messages.parquet")
    for name in ("messages.jsonl", "messages.parquet", "none.jsonl"):
        with pytest.raises(ConfigError, match=rf"--messages .*{name}"):
            cases.read_messages(tmp_path / name)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    made = [
        cases.Case(
            "", cases.CaseLine(history=["1"], prompt_ids=[4], variables={"a": "b"}, width=3), 3, [([1], -1.5)]
        ),
        cases.Case(
            "", cases.CaseLine(messages=[{"role": "user", "content": "é"}], width=2), 2, [([2], -2.5)]
        ),
    ]
    cases.save_cases(tmp_path / "made.jsonl", made)
    found = cases.read_cases(tmp_path / "made.jsonl", "beams", None)
    assert [(case.said, case.width, case.beams) for case in found] == [
        (case.said, case.width, case.beams) for case in made
    ]


def test_random_histories_are_items_and_the_same_for_a_seed() -> None:
    catalog = example()
    made = cases.random_cases(catalog, 20, 5, seed=1)
    histories = [case.said.history for case in made]
    assert histories == [case.said.history for case in cases.random_cases(catalog, 20, 5, seed=1)]
    assert histories != [case.said.history for case in cases.random_cases(catalog, 20, 5, seed=2)]
    for history in histories:
        assert isinstance(history, list) and 0 < len(history) <= 20
        assert (catalog.item_rows(history) >= 0).all()


def test_a_rule_lies_beside_the_cases_or_does_not(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)
    assert cases.read_rule(path) == cases.Rule()
    (tmp_path / "rule.json").write_text('{"scored_tail": [2], "score": "sum / 5", "width": 20}')
    assert cases.read_rule(path) == cases.Rule(scored_tail=[2], score="sum / 5")
    (tmp_path / "rule.json").write_text('{"scored_tail": 2}')
    with pytest.raises(ConfigError, match=r"rule\.json: .*scored_tail"):
        cases.read_rule(path)
