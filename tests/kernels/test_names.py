"""The folder `kernels/` must not hide the package of that name which other libraries probe for."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_kernels_stays_a_plain_folder() -> None:
    assert (ROOT / "kernels" / "xgr_kernels" / "__init__.py").exists()
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_transformers_imports_from_the_repository_root() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import transformers, xgr_kernels; "
        "from transformers import Qwen3ForCausalLM; print(xgr_kernels.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "kernels" / "xgr_kernels" / "__init__.py"


def test_kernels_import_without_what_a_gpu_needs() -> None:
    code = (
        "import sys; sys.modules.update(triton=None, flashinfer=None); import xgr_kernels.backend; "
        "import xgr_kernels.attention.tail, xgr_kernels.attention.shared, xgr_kernels.attention.causal; "
        "import xgr_kernels.attention.paged, xgr_kernels.beam_select; "
        "xgr_kernels.backend.choose_backend('auto', 'cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
