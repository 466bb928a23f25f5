"""The process that has the device: each cell in turn, its results written before the next begins."""

from __future__ import annotations

import faulthandler
import importlib
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import results
from plan import SETUP, Cell
from results import Record, Results

if TYPE_CHECKING:
    from lab import Lab

ROOT = Path(__file__).resolve().parents[2]
LOST = 3  # exit code of a worker whose device is gone; another one goes on
PATIENCE = 180.0  # seconds beyond a cell's estimate and needs, three times over, until it counts as hung


def work(cells: Sequence[Cell], out: Path, smoke: bool, seed: int, deadline: float) -> int:
    """Does the cells that the results in `out` do not have yet, as long as there is time."""
    with tempfile.TemporaryDirectory(prefix="xgr-gpu-") as scratch:
        _prepare(smoke, Path(scratch))
        from header import header
        from lab import Lab, measure_rates

        run = results.read(out)
        lab = Lab(smoke, out, Path(scratch), seed + len(run.records))
        with lab.device.running():
            lab.rates = run.rates = measure_rates(lab)
        run.header = run.header or header(ROOT, seed)
        print({name: f"{rate:.4g}" for name, rate in run.rates.items()}, flush=True)
        done = {record["name"] for record in run.records}
        for cell in cells:
            if cell.name not in done and time.time() + cell.seconds <= deadline:
                _record(cell, lab, run, deadline)
        run.finished = True
        run.write(out)
    return 0 if run.sound else 1


def _record(cell: Cell, lab: Lab, run: Results, deadline: float) -> None:
    """Runs a cell and writes what it found; ends the process if that cost it its device."""
    run.running = cell.name
    run.write(lab.out)
    needs = sum(SETUP[need] for need in cell.needs)
    patience = PATIENCE + 3 * (cell.seconds + needs)
    # What hangs on the device is ended, and says where it hung.
    faulthandler.dump_traceback_later(min(patience, max(10.0, deadline + 10 - time.time())), exit=True)
    record = _one(cell, lab)
    faulthandler.cancel_dump_traceback_later()
    run.running = ""
    run.records.append(record.as_dict())
    run.write(lab.out)
    print(f"{record.status:<7} {record.seconds:6.1f} s  {cell.name}", flush=True)
    for error in record.errors:
        print(f"  {error['what']}: {error['traceback'].strip().splitlines()[-1]}", flush=True)
    if not lab.alive():
        print("the device is lost: another process goes on", flush=True)
        os._exit(LOST)  # an ordinary end would ask the device


def _one(cell: Cell, lab: Lab) -> Record:
    """What a cell found; whatever it raised is in its record."""
    record = Record(cell.name, dict(cell.sizes))
    started = time.monotonic()
    with record.guard("the cell"):
        module, function = cell.work.split(":")
        function_ = getattr(importlib.import_module(module), function)
        with lab.device.running():
            function_(record, lab, **cell.sizes)
    with record.guard("its end"):
        lab.renew()
    record.seconds = time.monotonic() - started
    return record


def _prepare(smoke: bool, scratch: Path) -> None:
    """Before Triton is imported: child processes find the package, and a CPU its stand-ins."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [str(ROOT), str(ROOT / "kernels"), *_metadata(scratch), *filter(None, given)]
    os.environ |= {"PYTHONPATH": os.pathsep.join(path), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    import torch

    if torch.cuda.is_available():
        return
    if not smoke:
        raise SystemExit("tests/gpu/run: there is no GPU here; --smoke tries the script without one")
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)  # toy sizes gain nothing from more
    import stand_ins

    stand_ins.install()


def _metadata(scratch: Path) -> list[str]:
    """A folder that says which version this is, where the package runs from a checkout."""
    try:
        importlib.metadata.version("xgr-runtime")
    except importlib.metadata.PackageNotFoundError:
        folder = scratch / "metadata"
        about = folder / "xgr_runtime-0.dist-info" / "METADATA"
        about.parent.mkdir(parents=True)
        about.write_text("Metadata-Version: 2.1\nName: xgr-runtime\nVersion: 0\n", encoding="utf-8")
        return [str(folder)]
    return []
