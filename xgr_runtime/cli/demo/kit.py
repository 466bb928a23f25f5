"""`xgr demo --kit`: a project's artefacts to a served and verified deployment, by the commands a user has.

A kit holds `data/`, a checkpoint in `model/` and `cases.jsonl`. One whose files are packed has an unpack.py
of its own beside it.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

UNPACK, MANIFEST, CASES = "unpack.py", "manifest.json", "cases.jsonl"


def run_kit(args: argparse.Namespace, console: Console) -> int:
    """The code of the first command that fails, else 0. Raises ConfigError for what is no kit."""
    from xgr_runtime.cli import main

    kit = args.kit.resolve()
    for name in ("data", CASES):
        if not (kit / name).exists():
            raise ConfigError(f"--kit {kit} has no {name}: a kit holds data/, model/ and {CASES}")
    folder = args.cache.resolve() / f"kit-{kit.name}"
    model = _laid_out(kit, folder, console) / "model"
    for command in commands(kit, model, folder / "deployment", args.port, args.model_backend, args.exit):
        console.print(f"\n[bold]xgr {shlex.join(command)}[/]\n", soft_wrap=True)
        if code := main(command):
            return code
    return 0


def commands(kit: Path, model: Path, out: Path, port: int, backend: str, leave: bool) -> list[list[str]]:
    """Import, then verify and serve. References are of float32, so the deployment is, too."""
    messages = _messages(kit)
    verify = [
        *("verify", str(out), "--cases", str(kit / CASES), "--dtype", "float32"),
        *("--port", str(port), "--model-backend", backend),
        *(("--messages", str(messages)) if messages else ()),
        *(() if leave else ("--serve",)),
    ]
    return [
        ["import", str(kit / "data"), "--model-path", str(model), "--out", str(out), "--force"],
        verify,
    ]


def _messages(kit: Path) -> Path | None:
    """A table of the messages that the cases' users sent, where it is of as many rows."""
    from pyarrow import parquet

    cases = sum(1 for line in (kit / CASES).open(encoding="utf-8") if line.strip())
    for path in sorted((kit / "data").rglob("*.parquet")):
        with parquet.ParquetFile(path) as table:
            if "messages" in table.schema_arrow.names and table.metadata.num_rows == cases:
                return path
    return None


def _laid_out(kit: Path, folder: Path, console: Console) -> Path:
    """Where the checkpoint's files are as a training script leaves them. Raises ConfigError."""
    if not (kit / MANIFEST).is_file():
        return kit
    if (folder / "model" / "config.json").is_file():
        console.print(f"Using the checkpoint in {folder}")
        return folder
    unpack = kit.parent / UNPACK
    if not unpack.is_file():
        raise ConfigError(f"--kit {kit} is packed and there is no {unpack}: unpack it, and name that folder")
    console.print(f"Unpacking {kit.name}")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished-"))
    try:
        done = subprocess.run(
            [sys.executable, str(unpack), str(kit), str(unfinished)], capture_output=True, text=True
        )
        if done.returncode:
            raise ConfigError(f"{unpack} failed: {done.stderr.strip()[-300:]}")
        for made in unfinished.iterdir():
            made.rename(folder / made.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
