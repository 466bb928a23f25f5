"""Figures as they come, read again, and the table made of them."""

from pathlib import Path

import pytest
import results
import table
from results import Figures


def shown(folder: Path) -> str:
    return table.markdown(results.read(folder))


def test_the_table(tmp_path: Path) -> None:
    figures = Figures(tmp_path, "test_times.py::test_shared[W256]")
    figures.time("fa2", 1.234e-4, 1e-4, rows=1024, spread=1e-6)
    figures.note("padded trie", raised="MemoryError: it does not fit")
    results.append(tmp_path, {"test": figures.test, "outcome": "failed", "why": "0.3, at most 0.2\nmore"})
    results.append(tmp_path, {"planned": [figures.test, "test_times.py::test_other"], "smoke": False})
    text = shown(tmp_path)
    assert "| shared[W256] | fa2 | 123 µs | 100 µs | 1.23 | rows 1024 |" in text
    assert "| shared[W256] | padded trie |  |  |  | raised MemoryError: it does not fit |" in text
    assert "0 of 1 tests passed." in text and "- shared[W256]: 0.3, at most 0.2\n" in text
    assert "- not run: 1, the first of them other" in text


def test_a_goal_that_is_missed_is_shown(tmp_path: Path) -> None:
    figures = Figures(tmp_path, "test_times.py::test_cell")
    figures.goal("ratio", 1.6, 1.5)
    figures.goal("requests/s", 31, 30, least=True)
    assert "- goal MISSED: cell: ratio: 1.6, at most 1.5" in shown(tmp_path)
    assert "- goal met: cell: requests/s: 31, at least 30" in shown(tmp_path)


def test_the_cost_of_two_processes_is_said(tmp_path: Path) -> None:
    one = Figures(tmp_path, "test_engine_times.py::test_in_turns[1.7B-W256-L5000-B4]")
    two = Figures(tmp_path, "test_served.py::test_load[1.7B-W256-L5000-split]")
    one.time("1 at a time", 0.1, requests_per_s=10.0)
    one.time("4 at a time", 0.1, requests_per_s=40.0)
    two.time("8 callers", 0.1, requests_per_s=36.0)
    assert "- load[1.7B-W256-L5000-split]: 36 requests/s, 0.90 of the 40 of one process" in shown(tmp_path)


def test_what_cannot_run_here_says_why(tmp_path: Path) -> None:
    name = "test_end_to_end.py::test_engines[sglang]"
    results.append(tmp_path, {"planned": [name], "smoke": False})
    results.append(tmp_path, {"test": name, "skipped": "sglang is not installed"})
    assert "- engines[sglang]: left out: sglang is not installed" in shown(tmp_path)
    assert "not run" not in shown(tmp_path)


def test_another_machine_is_seen(tmp_path: Path) -> None:
    for gpu, rate in (("H200", 7e14), ("H100", 5e14)):
        results.append(tmp_path, {"header": {"gpu": gpu, "rates": {"matrix": rate, "copy": 4e12}}})
    assert "gpu H200, H100" in shown(tmp_path) and "measured 500 to 700 TFLOP/s" in shown(tmp_path)


def test_what_is_measured_again_replaces_what_was(tmp_path: Path) -> None:
    for seconds in (1.0, 2.0):
        Figures(tmp_path, "test_times.py::test_cell").time("ours", seconds)
    assert [figure["seconds"] for figure in results.read(tmp_path).figures.values()] == [2.0]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / results.FILE).write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match=r"results.jsonl:1 is no result .* take another folder"):
        results.read(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs"), (1e-3, "1 ms"), (9.997e-4, "1 ms")],
)
def test_durations(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text
