"""The short table: what ran where, a line per figure, and what is wrong, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results import Results

ONE_PROCESS = "in-turns-"
SHOWN = ("gpu", "driver", "torch", "triton", "flashinfer-python", "transformers", "sglang", "commit", "date")


def markdown(run: Results) -> str:
    """The whole text."""
    lines = [*_head(run), "", *_figures(run), "", *_goals(run), *_two_processes(run), *_faults(run), ""]
    return "\n".join(lines)


def _head(run: Results) -> Iterator[str]:
    known = [f"{name} {run.header[name]}" for name in SHOWN if run.header.get(name)]
    yield "## GPU"
    yield ""
    yield "; ".join(known) + "."
    if run.rates:
        matrix, copy = run.rates["matrix"] / 1e12, run.rates["copy"] / 1e12
        measured = f"{matrix:.0f} TFLOP/s (bfloat16, 8,192³), {copy:.2f} TB/s (read + written)"
        yield f"Part {run.part}. Measured: {measured}."
    for name, values in run.header.get("differing", {}).items():
        yield f"Differs between parts: {name}: {', '.join(map(str, values))}."
    if missing := run.header.get("missing_parts"):
        yield f"Missing parts: {', '.join(missing)}."


def _figures(run: Results) -> Iterator[str]:
    yield "| cell | what | time | floor | ratio | more |"
    yield "|---|---|---|---|---|---|"
    for record in run.records:
        for figure in record["figures"]:
            yield row(record["name"], figure)


def row(cell: str, figure: dict[str, Any]) -> str:
    """One figure; whatever is neither time nor floor goes into the last column."""
    usual = {"what", "seconds", "floor", "ratio", "spread", "repeats"}
    more = [f"{name} {_short(value)}" for name, value in figure.items() if name not in usual]
    ratio = f"{figure['ratio']:.2f}" if "ratio" in figure else ""
    times = [duration(figure[name]) if name in figure else "" for name in ("seconds", "floor")]
    return f"| {cell} | {figure['what']} | {times[0]} | {times[1]} | {ratio} | {', '.join(more)} |"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * scale:  # which three digits would call 1,000 of the next unit
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _goals(run: Results) -> Iterator[str]:
    for record in run.records:
        for goal in record.get("goals", []):
            said = "met" if goal["met"] else "MISSED"
            bound = f"at {'least' if goal['least'] else 'most'} {goal['bound']:.3g}"
            yield f"- goal {said}: {record['name']}: {goal['what']}: {goal['value']:.3g}, {bound}"


def _two_processes(run: Results) -> Iterator[str]:
    """What router and two workers make of a device, against one process with both engines."""
    rates = {
        record["name"]: max((f.get("requests_per_s", 0.0) for f in record["figures"]), default=0.0)
        for record in run.records
    }
    for name, alone in rates.items():
        served = f"served-{name.removeprefix(ONE_PROCESS)}-"
        if name.startswith(ONE_PROCESS) and alone:
            for other, rate in rates.items():
                if other.startswith(served) and rate:
                    share = f"{rate / alone:.2f} of the {alone:.3g} of one process"
                    yield f"- {other}: {rate:.3g} requests/s, {share}"


def _faults(run: Results) -> Iterator[str]:
    checks = [check for record in run.records for check in record["checks"]]
    right = sum(check["ok"] for check in checks)
    yield f"{right} of {len(checks)} checks hold."
    for record in run.records:
        for check in record["checks"]:
            if not check["ok"]:
                beyond = f"{check['error']:.3g}, at most {check['limit']:.3g}"
                yield f"- {record['name']}: {check['case']}: {beyond}"
        for error in record["errors"]:
            last = error["traceback"].strip().splitlines()[-1]
            yield f"- {record['name']}: {error['what']} raised {last}"
    if run.missing:
        yield f"- not run: {', '.join(run.missing)}"
