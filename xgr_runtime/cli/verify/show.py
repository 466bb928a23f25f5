"""What `xgr verify` prints: one table, the first things that are wrong, and what differences mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from xgr_runtime.cli.verify.compare import FIXED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from xgr_runtime.cli.verify.judge import Bounds
    from xgr_runtime.cli.verify.totals import Totals

SHOWN = 5  # problems; the report has all


def heading(console: Console, about: Mapping[str, Any], cases: int) -> None:
    """What is compared with what."""
    where = about["url"] or "the deployment"
    dtypes = f"{where} computes in {about['dtype']}, the other side in {about['other_dtype']}"
    console.print(f"\n{cases} cases, {escape(about['other'])}; {escape(dtypes)}")


def table(totals: Totals, bounds: Bounds, width: int, score: str) -> Table:
    """One row per thing that is compared; a red mark where it is not as it should be."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for column in ("compared", "found", ""):
        made.add_column(column, overflow="fold")
    for name, found, good in rows(totals, bounds, width, score):
        mark = "" if good is None else "[green]ok[/]" if good else "[bold red]no[/]"
        made.add_row(name, escape(found), mark)
    return made


def rows(totals: Totals, bounds: Bounds, width: int, score: str) -> list[tuple[str, str, bool | None]]:
    """(what, what was found, whether that is as it should be; None where nothing is asked of it)."""
    t, must_be_same = totals, bounds.overlap is None
    answered = t.cases - t.unanswered
    made: list[tuple[str, str, bool | None]] = [
        ("answers", f"{answered} of {t.cases}", not t.unanswered),
        ("prompts, token by token", *_prompts(t)),
        (
            "ranked lists",
            f"{t.lists_same} of {answered} the same"
            + (f" (in {t.inexact} as far as theirs is legal)" if t.inexact else "")
            + (f", {t.swapped} ranks are swapped ties" if t.swapped else ""),
            t.lists_same == answered > 0 if must_be_same else None,
        ),
        ("scores", *_scores(t, bounds, score)),
        (
            "beams that are no item",
            f"theirs {t.illegal_theirs} of {t.beams_theirs}, ours {t.illegal_ours}",
            not t.illegal_ours,
        ),
        ("beams that come twice", f"theirs {t.double_theirs}, ours {t.double_ours}", not t.double_ours),
        (
            "their legal beams",
            f"{t.legal - t.missing} of {t.legal} in ours",
            not t.missing and answered > 0 if must_be_same else None,
        ),
        (*_overlaps(t, width), _enough(t, bounds)),
    ]
    if t.dropped:
        made.append(("items left out", f"{t.dropped}, the oldest of long histories", None))
    return made


def remarks(console: Console, totals: Totals, bounds: Bounds, about: Mapping[str, Any]) -> None:
    """What differs by the nature of the two sides, and why."""
    if totals.inexact:
        console.print(
            f"In {totals.inexact} cases theirs is no exact search over the catalog: it holds beams that are "
            "no items, or one twice. Each of its legal beams must be in ours, in its order and with its "
            "score; in the other places ours has the next best items."
        )
    if bounds.overlap is not None:
        rounded = {about["dtype"], about["other_dtype"]} - {"float32"}
        why = f" between {' and '.join(sorted(rounded))} and another computation" if rounded else ""
        console.print(f"Lists need not be the same{why}: overlap@width must be {bounds.overlap:.1%} or more.")
        if about["dtype"] in rounded and about["other_dtype"] == "float32":
            console.print("With --dtype float32 the deployment's lists are held to be the same.")
    elif _looks_rounded(totals, bounds):
        console.print(
            "[yellow]Scores are off by a little, and the lists are nearly the same: if the cases were "
            "computed in bfloat16, say --cases-dtype bfloat16.[/]"
        )


def verdict(console: Console, problems: Sequence[str]) -> None:
    """The first problems and the last line."""
    for problem in problems[:SHOWN]:
        console.print(f"[red]{escape(problem)}[/]", soft_wrap=True)
    if len(problems) > SHOWN:
        console.print(f"[red]and {len(problems) - SHOWN} more: --report FILE has all[/]")
    console.print("[bold red]differs[/]" if problems else "[bold green]verified[/]")


def _prompts(t: Totals) -> tuple[str, bool | None]:
    if t.unanswered == t.cases:
        return "not compared: no case was answered", None
    if not t.prompts_compared:
        return "not compared: nothing but prompt_ids is asked, or the cases have none", None
    differ = t.prompts_compared - t.prompts_same
    asked = ", whose lists are compared by their prompt_ids" if differ else ""
    found = f"{t.prompts_same} of {t.prompts_compared} the same" + (
        f"; {differ} differ{asked}" if differ else ""
    )
    return found, not differ


def _scores(t: Totals, bounds: Bounds, score: str) -> tuple[str, bool | None]:
    if t.score_difference is None:
        return "not compared", None
    found = f"largest difference {t.score_difference:.2g} ({score}), the bound is {bounds.tolerance:g}"
    return found, t.score_difference <= bounds.tolerance if bounds.overlap is None else None


def _overlaps(t: Totals, width: int) -> tuple[str, str]:
    """Up to their width, which is named once where it is 1 or 10 itself."""
    names = {name: f"@{k}" for name, k in FIXED.items() if k < width} | {"width": f"@{width}"}
    found = [t.overlaps.get(name) for name in names] if t.overlaps else []
    shown = ", ".join("-" if value is None else f"{value:.1%}" for value in found)
    return f"overlap{', '.join(names.values())}", shown


def _enough(t: Totals, bounds: Bounds) -> bool | None:
    overlap = t.overlaps.get("width")
    return None if bounds.overlap is None or overlap is None else overlap >= bounds.overlap


def _looks_rounded(t: Totals, bounds: Bounds) -> bool:
    off, overlap = t.score_difference, t.overlaps.get("width")
    rounded = off is not None and bounds.tolerance < off < 0.2
    return rounded and overlap is not None and overlap >= 0.9 and t.prompts_same == t.prompts_compared > 0
