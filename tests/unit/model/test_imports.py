"""What a template imports ahead: all that a worker needs, and nothing that a fork would not survive."""

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import MakeCheckpoint

from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.kept_checks import KeptChecks

CODE = """
import sys
from xgr_runtime.model.imports import import_ahead
from xgr_runtime.process.template import why_not_fork

import_ahead(sys.argv[1:])
family = "transformers.models.qwen3.modeling_qwen3"
print([name for name in ("transformers", family, "numba.np.arraymath") if name in sys.modules])
print(why_not_fork())
"""


def imported(folder: Path, cache: Path) -> list[str]:
    flags = [f"--model-path={folder}", f"--cache-folder={cache}", "--model-backend=transformers"]
    ended = subprocess.run([sys.executable, "-c", CODE, *flags], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path / "cache"


def test_before_a_check_the_code_of_the_checkpoints_family_and_after_it_no_library(
    make_checkpoint: MakeCheckpoint, cache: Path
) -> None:
    folder = make_checkpoint("qwen3", 2)
    family = "transformers.models.qwen3.modeling_qwen3"
    assert imported(folder, cache) == [f"{['transformers', family, 'numba.np.arraymath']}", ""]
    load_backend("transformers", folder, "float32", checks=KeptChecks(cache))
    assert imported(folder, cache) == ["['numba.np.arraymath']", ""]


def test_a_checkpoint_that_is_refused_is_left_to_the_worker(tmp_path: Path, cache: Path) -> None:
    assert imported(tmp_path / "nowhere", cache)[-1] == ""
