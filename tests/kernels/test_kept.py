"""A kernel that was compiled once is read at the next start, by whatever user, and whatever became of it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
from xgr_kernels.cpu.compiled import keep_compiled_in, kernel
from xgr_kernels import every
from xgr_runtime.model.ready_kernels import ready_kernels, usable_cache


@kernel()
def twice(x):
    return 2 * x


@kernel()
def thrice(x):
    return 3 * x


@kernel()
def fourfold(x):
    return 4 * x


all_three = lambda: [twice(1.0), thrice(1.0), fourfold(1.0)]
every.compile_all = lambda dtype: all_three()
ready_kernels(usable_cache({setting!r}), "float32")
assert all_three() == [2.0, 3.0, 4.0]
stats = [made.stats for made in (twice, thrice, fourfold)]
compiled = sum(sum(one.cache_misses.values()) for one in stats)
print("compiled", compiled, "read", sum(sum(one.cache_hits.values()) for one in stats))
"""


def write(folder: Path, setting: str = "") -> Path:
    path = folder / "script.py"
    path.write_text(SCRIPT.format(setting=setting))
    return path


def run(script: Path, wrapper: Sequence[str] = (), **environ: str) -> tuple[str, list[str]]:
    """What it says it has compiled, and its lines on stderr."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environ}
    command = [*wrapper, sys.executable, str(script)]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.splitlines()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Everybody's, as the temporary one."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o1777)
        yield Path(made)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can be another user")
def test_a_user_without_a_home_compiles_once(open_folder: Path) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    script, environ = write(open_folder), {"HOME": "/nonexistent", "TMPDIR": str(open_folder)}
    known = subprocess.run([*nobody, sys.executable, "-c", "import numba"], capture_output=True, check=False)
    if known.returncode:
        pytest.skip("nobody else may run this Python")
    assert run(script, nobody, **environ) == ("compiled 3 read 0", [])
    assert run(script, nobody, **environ) == ("compiled 0 read 3", [])


def test_damaged_files_are_made_anew(tmp_path: Path) -> None:
    script = write(tmp_path, str(tmp_path / "cache"))
    assert run(script)[0] == "compiled 3 read 0"
    damages = (("*twice*.nbi", b""), ("*thrice*.nbi", b"\x80\x04no pickle"), ("*fourfold*.nbc", b"cut"))
    for pattern, content in damages:
        (file,) = (tmp_path / "cache").rglob(pattern)
        file.write_bytes(content)
    said, lines = run(script)
    assert said == "compiled 3 read 0"
    assert len(lines) == 3 and all("damaged" in line for line in lines)
    assert run(script) == ("compiled 0 read 3", [])


def test_where_nothing_can_be_kept_one_line_says_so(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    said, lines = run(write(tmp_path, str(nowhere)))
    assert said.startswith("compiled 3") or said.startswith("compiled 0")
    assert len(lines) == 1 and "--cache-folder" in lines[0]
