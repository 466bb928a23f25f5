"""The flow of `xgr import`: find the checkpoint, recognise the project, read, check, write, report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.catalog import add_source_flags, declared_by
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.draft import Recogniser

PROJECTS = ("openonerec", "onerec-think", "genrec", "unigenrec", "minionerec", "lcrec", "letter", "plain")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    about = "make a catalog, templates and a serve.toml of what a project's training left behind"
    parser = subparsers.add_parser("import", help=about, description=about, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="the project's folder, or one file of items and SIDs")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--model-path", type=Path, help="the checkpoint, where it is not in there or not alone"
    )
    parser.add_argument("--base-model-path", default="", help="what an adapter there was trained on")
    parser.add_argument("--data", type=Path, help="another folder with the project's data")
    parser.add_argument("--as", dest="project", choices=PROJECTS, help="the project, where files do not tell")
    parser.add_argument("--dataset", default="", help="which one, where there are several")
    parser.add_argument("--force", action="store_true", help="replace what an earlier import wrote there")
    parser.add_argument(
        "--popularity",
        default="count",
        help="the count in sid2pid.json by which items on one SID are ranked (default: %(default)s)",
    )
    add_source_flags(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0, or a StartupError that says what to change; then nothing was written."""
    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import found_model
    from xgr_runtime.cli.imports.draft import Wishes
    from xgr_runtime.cli.imports.report import print_report
    from xgr_runtime.cli.imports.write import check_place, write

    out = Path(os.path.realpath(args.out))
    check_place(out, args.force)
    roots = [path for path in (args.source, args.data) if path is not None]
    artefacts = Artefacts(roots, without=out, dataset=args.dataset)
    known = [project for project in projects() if project.knows(artefacts)]
    with found_model(artefacts, args.model_path, args.base_model_path) as model:
        project = _choose(known, args.project, artefacts)
        draft = project.read(artefacts, model, Wishes(declared_by(args), args.popularity))
        draft.unused += artefacts.pickles(draft.unused)
        catalog = write(draft, model, out)
        others = [other.name for other in known if other not in (project, *projects()[-1:])]
        print_report(project.title, draft, model, catalog, args.out, others)
    return 0


def projects() -> Sequence[Recogniser]:
    """All of them, those with the most telling files first."""
    from xgr_runtime.cli.imports import (
        genrec,
        lcrec,
        letter,
        minionerec,
        onerec_think,
        openonerec,
        plain,
        unigenrec,
    )

    return (openonerec, onerec_think, genrec, unigenrec, minionerec, lcrec, letter, plain)


def _choose(known: Sequence[Recogniser], wanted: str | None, artefacts: Artefacts) -> Recogniser:
    """Raises CatalogError where nothing is known."""
    if wanted:
        return next(project for project in projects() if project.name == wanted)
    if not known:
        titles = ", ".join(project.title for project in projects())
        raise CatalogError(
            f"{artefacts.roots[0]}: no files of {titles} in it: name their folder with --data, or a file of "
            "items and SIDs"
        )
    return known[0]
