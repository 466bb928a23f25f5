"""The command: which cells, into what folder; then one after the other, results written after each."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cells as catalogue
import plan
import results
import table
from plan import Cell, Part
from results import Record, Results

ROOT = Path(__file__).resolve().parents[2]
SLACK = 20  # seconds that the end of a part needs


def main(argv: Sequence[str] | None = None) -> int:
    """0: all that ran is right; 1: a check failed or something raised; 2: the command makes no sense."""
    args = _arguments(argv)
    try:
        if args.merge:
            return _merge(args)
        cells = _chosen(args)
    except ValueError as error:
        print(f"tests/gpu/run: {error}", file=sys.stderr)
        return 2
    if args.list:
        _list(cells)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="xgr-gpu-") as scratch:
        return _run(args, cells, Path(scratch))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("tests/gpu/run", description="Checks and measures the GPU path.")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for results")
    parser.add_argument("--part", default="1/1", metavar="i/n", help="one slice, which ends in 8 minutes")
    parser.add_argument("--only", default="", metavar="TEXT,...", help="cells by parts of their names")
    parser.add_argument("--seconds", type=float, help="begin no cell that would end later; parts: 460")
    parser.add_argument("--list", action="store_true", help="cells and estimated seconds, and nothing else")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="DIR", help="join the results of parts")
    parser.add_argument("--smoke", action="store_true", help="every cell at toy sizes, also without a GPU")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31), help="of all random inputs")
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
    return plan.cells_of(part, every)


def _list(cells: Sequence[Cell]) -> None:
    for cell in cells:
        print(f"{cell.seconds:7.0f} s  {cell.name:<44} {' '.join(cell.needs)}")
    total, needed = plan.part_seconds(cells), plan.parts_needed(cells)
    print(f"{total:7.0f} s  {len(cells)} cells; with n = {needed} all parts end in time")


def _merge(args: argparse.Namespace) -> int:
    """Joins parts; says which are missing."""
    joined = results.merge([results.read(folder) for folder in args.merge])
    args.out.mkdir(parents=True, exist_ok=True)
    _write(joined, args.out)
    for part in joined.header["missing_parts"]:
        print(f"missing: part {part}")
    return 0 if joined.sound and not joined.header["missing_parts"] and not joined.missing else 1


def _run(args: argparse.Namespace, cells: Sequence[Cell], scratch: Path) -> int:
    """Every cell in turn while there is time."""
    started = time.monotonic()
    limit = args.seconds or (float("inf") if args.only or args.smoke else plan.PART_SECONDS - SLACK)
    if limit < float("inf"):  # what hangs on the device is ended, and says where it hung
        faulthandler.dump_traceback_later(limit + SLACK, exit=True)
    _prepare(args.smoke)
    from header import header
    from lab import Lab, measure_rates

    lab = Lab(args.smoke, args.out, scratch, args.seed)
    part = f"only {args.only}" if args.only else args.part
    run = Results(header(ROOT, args.seed), part, [cell.name for cell in cells])
    with lab.device.running():
        lab.rates = run.rates = measure_rates(lab)
    print({name: f"{rate:.4g}" for name, rate in run.rates.items()}, flush=True)
    for cell in cells:
        if time.monotonic() - started + cell.seconds > limit:
            print(f"no time left for {cell.name}", flush=True)
            continue
        record = _one(cell, lab)
        run.records.append(record.as_dict())
        run.write(args.out)
        print(f"{record.status:<7} {record.seconds:6.1f} s  {cell.name}", flush=True)
        for error in record.errors:
            print(f"  {error['what']}: {error['traceback'].strip().splitlines()[-1]}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    _write(run, args.out)
    return 0 if run.sound else 1


def _one(cell: Cell, lab: Lab) -> Record:  # noqa: F821
    """Runs a cell; whatever happens is in its record."""
    record = Record(cell.name, dict(cell.sizes))
    started = time.monotonic()
    with record.guard("the cell"):
        module, function = cell.work.split(":")
        work = getattr(importlib.import_module(module), function)
        with lab.device.running():
            work(record, lab, **cell.sizes)
    with record.guard("its end"):
        lab.renew()
    record.seconds = time.monotonic() - started
    return record


def _write(run: Results, folder: Path) -> None:
    run.write(folder)
    text = table.markdown(run)
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)
    if run.missing:
        print(f"no record of: {', '.join(run.missing)}")


def _prepare(smoke: bool) -> None:
    """Before torch is imported: child processes find the package, and a CPU its stand-ins."""
    path = [
        str(ROOT),
        str(ROOT / "kernels"),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    if (
        shutil.which("nvidia-smi")
        and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    ):
        return
    if not smoke:
        raise SystemExit("tests/gpu/run: there is no GPU here; --smoke tries the script without one")
    os.environ["TRITON_INTERPRET"] = "1"
    import stand_ins
    import torch

    torch.set_num_threads(1)  # toy sizes gain nothing from more

    stand_ins.install()
