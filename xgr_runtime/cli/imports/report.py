"""What `xgr import` says: what it recognised, what it assumed, what it could not use, what to do next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from xgr_runtime.checkpoint import not_applied, passed_over
from xgr_runtime.cli.imports.write import SERVE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.imports.checkpoints import TrainedModel
    from xgr_runtime.cli.imports.draft import Draft


def print_report(
    title: str, draft: Draft, model: TrainedModel, catalog: Catalog, out: Path, others: Sequence[str]
) -> None:
    """To stdout, a line each."""
    dataset = f", {draft.dataset}" if draft.dataset else ""
    shared, worst = catalog.collisions()
    _section(
        "recognised",
        [
            f"{title}{dataset}",
            f"{catalog.items} items on {catalog.leaves} SIDs of {catalog.depth} levels; {shared} share a "
            f"SID, at most {worst} on one",
            *draft.found,
            f"checkpoint {model.folder}" + (f", an adapter of {model.base}" if model.base else ""),
        ],
    )
    assumed = [*draft.assumed, f"{draft.width} beams, as its evaluation: beam_width of a request"]
    if others:
        assumed.append(f"files of {', '.join(others)} are here, too: --as")
    _section("assumed", assumed)
    sampling = [
        f"generation_config.json: {field}: an exact search does not" for field in not_applied(model.files)
    ]
    checkpoints = [f"{folder}: another checkpoint, --model-path" for folder in model.passed_over]
    _section("not used", [*draft.unused, *checkpoints, *_of_folder(model), *sampling])
    _section("written", [f"{path}" for path in sorted(out.iterdir())])
    _section("next", _next(out, draft.messages))


def _next(out: Path, messages: Path | None) -> list[str]:
    """What can be typed as it stands, but for FILE."""
    folder, serve = shlex.quote(str(out)), shlex.quote(str(out / SERVE))
    asked = f" --messages {shlex.quote(str(messages))}" if messages else ""
    return [
        f"xgr verify {folder} --cases FILE{asked} --dtype float32 --serve",
        f"xgr verify {folder} --reference 20{asked} --dtype float32 --serve  (without cases)",
        f"xgr serve --config {serve}",
    ]


def _section(name: str, lines: Sequence[str]) -> None:
    for number, line in enumerate(lines or ["nothing"]):
        print(f"{name if number == 0 else '':<12}{line}")


def _of_folder(model: TrainedModel) -> list[str]:
    return [] if model.base else passed_over(model.folder)
