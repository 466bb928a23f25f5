"""Records, files, merging and the table."""

import json
import math
from pathlib import Path

import pytest
import results
import table
from results import Record, Results


def run(part: str, *names: str, **header: str) -> Results:
    records = []
    for name in names:
        record = Record(name)
        record.time("ours", 2e-3, 1e-3)
        records.append(record.as_dict())
    return Results({"gpu": "H200", **header}, part, list(names), records, {"matrix": 7e14, "copy": 4e12})


def test_a_record_is_as_good_as_its_checks() -> None:
    record = Record("cell")
    record.check("near", 0.1, 0.2, "rounding")
    assert record.status == "ok"
    record.check("far", 0.3, 0.2, "rounding")
    assert record.status == "failed"
    with record.guard("a rival"):
        raise RuntimeError("it broke")
    assert record.status == "error" and "it broke" in record.errors[0]["traceback"]


def test_a_rival_may_fail() -> None:
    record = Record("cell")
    with record.guard("a rival", ours=False):
        raise RuntimeError("it broke")
    assert record.status == "ok" and len(record.errors) == 1


def test_a_goal_that_is_missed_is_shown_and_no_failure() -> None:
    record = Record("cell")
    record.goal("ratio", 1.6, 1.5)
    record.goal("requests/s", 31, 30, least=True)
    text = table.markdown(Results({}, "1/1", ["cell"], [record.as_dict()]))
    assert record.status == "ok"
    assert "- goal MISSED: cell: ratio: 1.6, at most 1.5" in text
    assert "- goal met: cell: requests/s: 31, at least 30" in text


def test_the_cost_of_two_processes_is_said() -> None:
    one, two = Record("in-turns-1.7B-W256-L5000"), Record("served-1.7B-W256-L5000-split")
    one.time("1 at a time", 0.1, requests_per_s=10.0)
    one.time("4 at a time", 0.1, requests_per_s=40.0)
    two.time("8 callers", 0.1, requests_per_s=36.0)
    text = table.markdown(Results({}, "1/1", [one.name, two.name], [one.as_dict(), two.as_dict()]))
    assert "- served-1.7B-W256-L5000-split: 36 requests/s, 0.90 of the 40 of one process" in text


def test_nan_is_never_near_enough() -> None:
    record = Record("cell")
    record.check("nan", math.nan, math.inf, "no limit")
    assert record.status == "failed"


def test_results_survive_being_written(tmp_path: Path) -> None:
    before = run("1/2", "a", "b")
    before.write(tmp_path)
    assert results.read(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_what_did_not_run_is_named() -> None:
    half = run("1/1", "a")
    half.planned.append("b")
    assert half.missing == ["b"]
    assert "- not run: b" in table.markdown(half)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results"):
        results.read(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(ValueError, match="holds no results"):
        results.read(tmp_path)


def test_parts_become_one_in_order() -> None:
    joined = results.merge([run("2/2", "c"), run("1/2", "a", "b")])
    assert [record["name"] for record in joined.records] == ["a", "b", "c"]
    assert joined.header["missing_parts"] == [] and joined.sound and not joined.missing


def test_missing_parts_are_named() -> None:
    joined = results.merge([run("1/4", "a"), run("3/4", "c")])
    assert joined.header["missing_parts"] == ["2/4", "4/4"]
    assert "Missing parts: 2/4, 4/4." in table.markdown(joined)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (["1/2", "1/2"], "twice: 1/2"),
        (["1/2", "2/3"], "different plans"),
        (["only select", "1/2"], "not parts of a plan: only select"),
    ],
    ids=["a-part-twice", "plans", "only"],
)
def test_parts_that_do_not_fit_are_refused(parts: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        results.merge([run(part, f"cell-{i}") for i, part in enumerate(parts)])


def test_a_cell_in_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="given twice: a"):
        results.merge([run("1/2", "a"), run("2/2", "a")])


def test_another_machine_is_seen() -> None:
    joined = results.merge([run("1/2", "a"), run("2/2", "b", gpu="H100")])
    assert joined.header["differing"] == {"gpu": ["H200", "H100"]}
    assert "Differs between parts: gpu: H200, H100." in table.markdown(joined)


def test_rates_of_parts_are_averaged() -> None:
    fast, slow = run("1/2", "a"), run("2/2", "b")
    slow.rates["matrix"] = 5e14
    rates = results.merge([fast, slow]).rates
    assert (rates["matrix"], rates["matrix_least"], rates["matrix_most"]) == (6e14, 5e14, 7e14)


def test_the_table() -> None:
    record = Record("shared-W256")
    record.time("fa2", 1.234e-4, 1e-4, rows=1024, spread=1e-6)
    record.figures.append({"what": "padded trie", "note": "it does not fit"})
    record.check("far", 0.3, 0.2, "rounding")
    with record.guard("a rival"):
        raise RuntimeError("it broke")
    text = table.markdown(Results({"gpu": "H200"}, "1/1", ["shared-W256"], [record.as_dict()]))
    assert "| shared-W256 | fa2 | 123 µs | 100 µs | 1.23 | rows 1024 |" in text
    assert "| shared-W256 | padded trie |  |  |  | note it does not fit |" in text
    assert "0 of 1 checks hold." in text
    assert "- shared-W256: far: 0.3, at most 0.2" in text
    assert "- shared-W256: a rival raised RuntimeError: it broke" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs"), (1e-3, "1 ms"), (9.997e-4, "1 ms")],
)
def test_durations(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text
