"""The short table: what ran where, a line per figure, and what is wrong, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results import Results

SHOWN = ("gpu", "driver", "torch", "triton", "flashinfer-python", "transformers", "sglang", "commit", "date")
RATES = (("matrix", "TFLOP/s (bfloat16, 8,192³)"), ("copy", "TB/s (read + written)"))


def markdown(run: Results) -> str:
    """The whole text."""
    lines = [*_head(run), "", *_figures(run), "", *_goals(run), *_two_processes(run), *_faults(run), ""]
    return "\n".join(lines)


def _head(run: Results) -> Iterator[str]:
    yield "## GPU"
    yield ""
    for name in SHOWN:  # another machine, driver or commit in a second process is seen
        if values := list(dict.fromkeys(header[name] for header in run.headers if header.get(name))):
            yield f"- {name} {', '.join(values)}"
    for name, unit in RATES:
        if rates := [header["rates"][name] / 1e12 for header in run.headers]:
            spread = "" if len(rates) == 1 else f" to {max(rates):.3g}"
            yield f"- measured {min(rates):.3g}{spread} {unit}"


def _figures(run: Results) -> Iterator[str]:
    yield "| test | what | time | floor | ratio | more |"
    yield "|---|---|---|---|---|---|"
    for figure in run.figures.values():
        yield row(figure)


def row(figure: dict[str, Any]) -> str:
    """One figure; whatever is neither time nor floor goes into the last column."""
    usual = {"test", "figure", "seconds", "floor", "ratio", "spread", "repeats"}
    more = [f"{name} {_short(value)}" for name, value in figure.items() if name not in usual]
    ratio = f"{figure['ratio']:.2f}" if "ratio" in figure else ""
    times = [duration(figure[name]) if name in figure else "" for name in ("seconds", "floor")]
    cells = [_name(figure["test"]), figure["figure"], *times, ratio, ", ".join(more)]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _name(test: str) -> str:
    return test.partition("::")[2].removeprefix("test_")


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * scale:  # which three digits would call 1,000 of the next unit
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _goals(run: Results) -> Iterator[str]:
    for goal in run.goals.values():
        said = "met" if goal["met"] else "MISSED"
        bound = f"at {'least' if goal['least'] else 'most'} {goal['bound']:.3g}"
        yield f"- goal {said}: {_name(goal['test'])}: {goal['goal']}: {goal['value']:.3g}, {bound}"


def _two_processes(run: Results) -> Iterator[str]:
    """What router and two workers make of a device, against one process with both engines."""
    rates: dict[str, float] = {}
    for (test, _), figure in run.figures.items():
        name = _name(test)
        rates[name] = max(rates.get(name, 0.0), figure.get("requests_per_s", 0.0))
    for name, alone in rates.items():
        if name.startswith("in_turns[") and alone:
            served = name.rpartition("-B")[0].replace("in_turns", "load")
            for other, rate in rates.items():
                if other.startswith(f"{served}-"):
                    share = f"{rate / alone:.2f} of the {alone:.3g} of one process"
                    yield f"- {other}: {rate:.3g} requests/s, {share}"


def _faults(run: Results) -> Iterator[str]:
    passed = sum(outcome == "passed" for outcome in run.outcomes.values())
    yield f"{passed} of {len(run.outcomes)} tests passed."
    for failure in run.failures:
        yield f"- {_name(failure['test'])}: {failure['why'].splitlines()[0] if failure['why'] else 'failed'}"
    for test, why in run.skipped.items():
        if test not in run.outcomes:
            yield f"- {_name(test)}: left out: {why}"
    if run.missing:
        yield f"- not run: {len(run.missing)}, the first of them {', '.join(map(_name, run.missing[:5]))}"
