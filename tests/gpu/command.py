"""The command line: which cells, into what folder, and a worker process that is replaced when it dies.

A kernel that reads where it must not ends the process's device, and some mistakes end the process: the cell
that did it is blamed, and another worker goes on with the next one. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cells as catalogue
import plan
import results
import table
from plan import Cell, Part
from results import Record, Results

SCRIPT = Path(__file__).resolve().parent / "run"
SLACK = 20.0  # seconds that the end of a part needs


def main(argv: Sequence[str] | None = None) -> int:
    """0: all that ran is right; 1: a check failed or something raised; 2: the command makes no sense."""
    args = _arguments(argv)
    try:
        if not args.list and not args.out:
            raise ValueError("name a folder for the results: --out DIR")
        if args.merge:
            return _merge(args)
        cells = _chosen(args)
    except ValueError as error:
        print(f"tests/gpu/run: {error}", file=sys.stderr)
        return 2
    if args.list:
        _list(cells, args.compiled)
        return 0
    if args.deadline:  # we are the worker
        from worker import work

        return work(cells, args.out, args.smoke, args.seed, args.deadline)
    return _run(args, cells)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("tests/gpu/run", description="Checks and measures the GPU path.")
    parser.add_argument("--out", type=Path, help="folder for results")
    parser.add_argument("--part", default="1/1", metavar="i/n", help="one slice, which ends in 8 minutes")
    parser.add_argument("--compiled", action="store_true", help="slices for a machine that has all kernels")
    parser.add_argument("--only", default="", metavar="TEXT,...", help="cells by parts of their names")
    parser.add_argument("--seconds", type=float, help="begin no cell that would end later; parts: 460")
    parser.add_argument("--list", action="store_true", help="cells and estimated seconds, and nothing else")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="DIR", help="join the results of parts")
    parser.add_argument("--smoke", action="store_true", help="every cell at toy sizes, also without a GPU")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31), help="of all random inputs")
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)  # seconds since the epoch
    return parser.parse_args(argv)


def _chosen(args: argparse.Namespace) -> list[Cell]:
    """Raises ValueError."""
    every = catalogue.all_cells(args.smoke)
    if args.only:
        chosen = [cell for cell in every if any(text in cell.name for text in args.only.split(","))]
        if not chosen:
            raise ValueError(f"--only {args.only}: no such cell, see --list")
        return chosen
    part = Part.parse(args.part)
    if args.smoke or (args.list and part == Part(1, 1)):
        return every
    return plan.cells_of(part, every, args.compiled)


def _list(cells: Sequence[Cell], compiled: bool) -> None:
    for cell in cells:
        print(f"{cell.seconds:7.0f} s  {cell.name:<44} {' '.join(cell.needs)}")
    total, needed = plan.part_seconds(cells, compiled), plan.parts_needed(cells, compiled)
    print(f"{total:7.0f} s  {len(cells)} cells; with n = {needed} all parts end in time")


def _merge(args: argparse.Namespace) -> int:
    """Joins parts; says which are missing."""
    joined = results.merge([results.read(folder) for folder in args.merge])
    args.out.mkdir(parents=True, exist_ok=True)
    _write_table(joined, args.out)
    joined.write(args.out)
    return 0 if joined.sound and not joined.header["missing_parts"] and not joined.missing else 1


def _run(args: argparse.Namespace, cells: Sequence[Cell]) -> int:
    usual = 86400.0 if args.only or args.smoke else plan.PART_SECONDS - SLACK
    deadline = time.time() + (args.seconds or usual)
    args.out.mkdir(parents=True, exist_ok=True)
    part = f"only {args.only}" if args.only else args.part
    Results({}, part, [cell.name for cell in cells]).write(args.out)
    mode = [flag for flag, given in (("--smoke", args.smoke), ("--compiled", args.compiled)) if given]
    same = ["--part", args.part, "--only", args.only, "--seed", str(args.seed), *mode]
    command = [sys.executable, *_warnings(), str(SCRIPT), "--out", str(args.out), *same]
    run = to_the_end(lambda: _call([*command, "--deadline", str(deadline)]), args.out)
    _write_table(run, args.out)
    return 0 if run.sound and run.finished else 1


def to_the_end(start: Callable[[], int], folder: Path) -> Results:
    """Starts workers until one has come to the end of the plan, or one has done nothing at all.

    `start` runs one and returns its exit code; what it did is in the results in `folder`.
    """
    while True:
        before = len(results.read(folder).records)
        code = start()
        run = results.read(folder)
        if run.running:
            died = Record(run.running)
            died.errors.append({"what": "the process", "ours": True, "traceback": f"ended with code {code}"})
            run.records.append(died.as_dict())
            run.running = ""
            run.write(folder)
        if run.finished or len(run.records) == before:
            return run


def _call(command: Sequence[str]) -> int:
    """Runs a worker; it does not outlive us."""
    worker = subprocess.Popen(command)
    try:
        return worker.wait()
    finally:
        worker.kill()
        worker.wait()


def _warnings() -> list[str]:
    """The interpreter's own options, for the worker."""
    return [f"-W{option}" for option in sys.warnoptions]


def _write_table(run: Results, folder: Path) -> None:
    text = table.markdown(run)
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)
