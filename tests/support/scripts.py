"""The scripts of deploy/ in a copy of their own, beside stand-ins for Python, pip and the machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def run(
    script: Path, *args: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script from another folder, with `path` as the whole PATH if given; no other XGR_ variable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XGR_")}
    environ = {**kept, **environment} | ({"PATH": str(path)} if path else {})
    return subprocess.run(
        [script, *args], cwd="/", env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def program(path: Path, text: str) -> None:
    """A shell script that can be run as `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def copy_scripts(root: Path) -> Path:
    """`root` with all that set-up reads, so that one that goes wrong spoils nothing."""
    shutil.copytree(DEPLOY, root / "deploy")
    shutil.copy(DEPLOY.parent / "pyproject.toml", root)
    return root


def fake_torch(folder: Path, cuda: str | None, version: str = "2.13.0", finished: bool = True) -> Path:
    """A torch that must not be imported; without its metadata if pip has not `finished` it."""
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('importing torch is too slow for this')\n")
    (package / "version.py").write_text(f"cuda = {cuda!r}\nhip = None\n")
    if finished:
        metadata = folder / f"torch-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return folder


def fake_venv(venv: Path, torch: Path) -> Path:
    """An environment whose Python sees only `torch` and whose pip installs nothing: it fails."""
    pip = 'case "$*" in "-c import pip") exit 0;; *" install "*) exit 1;; esac'
    program(venv / "bin" / "python", f'{pip}\nPYTHONPATH={torch} exec {sys.executable} -S "$@"')
    return venv


def stamp(root: Path, kind: str, *more: Path) -> str:
    """What set-up leaves in an environment of this `kind` that it has finished."""
    command = 'root=$1; shift; printf "%s\\n" "$root" | cat - "$@" | sha256sum | cut -d " " -f 1'
    files = [str(root / "pyproject.toml"), *map(str, more)]
    done = subprocess.run(
        ["bash", "-c", command, "-", str(root), *files], capture_output=True, text=True, check=True
    )
    return f"{done.stdout.strip()} {kind}\n"
