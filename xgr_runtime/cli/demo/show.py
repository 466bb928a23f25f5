"""What the demo prints: a progress bar while it trains, ranked lists, and how good they are."""

from __future__ import annotations

import json
import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from xgr_runtime.cli.demo import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from xgr_runtime.cli.demo.measure import Item, Recommendation, User
    from xgr_runtime.cli.demo.training import TrainingProgress

RECENT = 6  # items of a history that are shown


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar with loss and time left; the caller feeds it every step."""
    columns = (
        TextColumn("  training"),
        BarColumn(),
        TextColumn("step {task.completed}/{task.total}  loss {task.fields[loss]:.2f}  left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=None, loss=float("nan"), visible=False)

        def report(state: TrainingProgress) -> None:
            bar.update(task, completed=state.step, total=state.planned, loss=state.loss, visible=True)

        yield report


def recommendations(
    console: Console, user: User, ranked: Sequence[Recommendation], items: dict[str, Item]
) -> None:
    """The user's recent history above the ranked list, the held-out item marked in it."""
    console.print()
    console.print(f"[bold]User {user.name}[/] bought, most recent last:")
    for item in user.history[-RECENT:]:
        console.print(f"    {items[item].title}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("    #", justify="right")
    table.add_column("recommended")
    table.add_column("item")
    table.add_column("score", justify="right")
    for rank, found in enumerate(ranked, 1):
        style = "bold green" if found.item == user.next_item else ""
        table.add_row(str(rank), items[found.item].title, found.item, f"{found.score:.2f}", style=style)
    console.print(table)
    verdict = (
        "[green]in the list[/]" if user.next_item in {found.item for found in ranked} else "not in the list"
    )
    console.print(f"    bought next: {items[user.next_item].title} ({verdict})")


def quality(console: Console, users: int, model: float, popularity: float) -> None:
    """HR@10 (share of users whose next item is among the ten) beside that of the most popular items."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"{users} users")
    table.add_column(f"HR@{measure.TOP}", justify="right")
    table.add_row("this model", f"[bold]{model:.3f}[/]")
    table.add_row("the most popular items", f"{popularity:.3f}")
    console.print()
    console.print(table)


def curl_line(base_url: str, user: User) -> str:
    """A command that a newcomer can paste into a shell."""
    body = json.dumps(measure.request_body(user))
    return f"curl -s {base_url}/generate -H 'Content-Type: application/json' -d {shlex.quote(body)}"
