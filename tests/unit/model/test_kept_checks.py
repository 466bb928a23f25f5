"""What a start has checked, the next one need not: with the same answers, while nothing has changed."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from safetensors.torch import load_file, save_file

from xgr_runtime.cache.records import MOST_BYTES, Records
from xgr_runtime.checkpoint import weights
from xgr_runtime.errors import ModelError
from xgr_runtime.model import kept_checks
from xgr_runtime.model.backends import transformers
from xgr_runtime.model.backends.cpu import CpuBackend
from xgr_runtime.model.backends.fused import FAMILY
from xgr_runtime.model.backends.saved import is_saved
from xgr_runtime.model.backends.transformers import TransformersBackend
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.kept_checks import KeptChecks
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.stages import PrefillStage


def start(folder: Path, cache: Path, dtype: str = "float32") -> ModelBackend:
    return load_backend("transformers", folder, dtype, checks=KeptChecks(cache))


def logits(model: ModelBackend, rows: int = 23) -> torch.Tensor:
    stage = PrefillStage(KvPool(model.identity, 16, 4), [(0, rows, np.arange(16, dtype=np.int32))])
    return model.logits(model.forward(torch.arange(3, 3 + rows), torch.arange(rows), stage))


@pytest.fixture
def no_more_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever checks fails, once a test calls for it."""

    def fail(*_: object) -> None:
        raise AssertionError("it was checked before")

    monkeypatch.setattr(transformers, "reference_logits", fail)


@pytest.mark.in_turns("family")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILY)
def test_second_start_gives_the_same_bits_without_the_library(
    family: str, tied: bool, make_checkpoint: MakeCheckpoint, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = {"sliding_window": None} if family == "mistral" else {}
    folder = make_checkpoint(family, 2, tie_word_embeddings=tied, **settings)
    first = start(folder, tmp_path)
    assert is_saved(folder, "float32", "cpu", KeptChecks(tmp_path))
    request.getfixturevalue("no_more_checks")
    second = start(folder, tmp_path)
    assert isinstance(first, CpuBackend) and isinstance(second, CpuBackend)
    assert second.identity == first.identity
    assert torch.equal(logits(second), logits(first))


ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
}


@pytest.mark.in_turns("rope")
@pytest.mark.parametrize("rope", ROPES)
def test_stretched_positions_are_kept_to_the_bit(
    rope: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("llama", 2, rope_parameters=ROPES[rope])
    first, library = start(folder, tmp_path), load_backend("transformers", folder, "float32", place=print)
    assert is_saved(folder, "float32", "cpu", KeptChecks(tmp_path))
    assert torch.equal(logits(start(folder, tmp_path)), logits(first))
    torch.testing.assert_close(logits(first), logits(library), rtol=0, atol=2e-5)


def test_the_library_is_not_even_imported(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3", 2)
    start(folder, tmp_path)
    code = (
        "import sys; from pathlib import Path; from xgr_runtime.model.choice import load_backend; "
        "from xgr_runtime.model.kept_checks import KeptChecks; "
        "load_backend('transformers', Path(sys.argv[1]), 'float32', checks=KeptChecks(Path(sys.argv[2]))); "
        "print('transformers' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "False\n", ended.stderr


def test_other_models_are_loaded_by_the_library_and_not_checked_again(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = make_checkpoint("qwen3", 2)
    first = start(folder, tmp_path, "bfloat16")
    request.getfixturevalue("no_more_checks")
    second = start(folder, tmp_path, "bfloat16")
    assert isinstance(second, TransformersBackend) and second.prunes == first.prunes
    assert torch.equal(logits(second), logits(first))


def changed_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"] + 0.25
    save_file(weights, file, metadata={"format": "pt"})


def changed_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().rstrip() + "\n\n")


def changed_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "999")


def changed_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_checks, "kernel_key", lambda: "others")


def changed_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_checks, "_sources", lambda: "others")


@pytest.mark.parametrize(
    "change",
    [
        changed_weights,
        changed_config,
        changed_versions,
        changed_kernels,
        changed_code,
    ],
)
def test_whatever_changes_is_checked_again(
    change: object,
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint("qwen3", 2), folder)
    start(folder, tmp_path)
    request.getfixturevalue("no_more_checks")
    start(folder, tmp_path)
    change(folder, monkeypatch)  # type: ignore[operator]
    with pytest.raises(AssertionError, match="checked before"):
        start(folder, tmp_path)


def test_large_file_that_was_written_again_is_checked_again(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Its hash knows samples alone."""
    monkeypatch.setattr(weights, "WHOLE", 0)
    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint("qwen3", 2), folder)
    start(folder, tmp_path)
    request.getfixturevalue("no_more_checks")
    start(folder, tmp_path)
    os.utime(folder / "model.safetensors")
    with pytest.raises(AssertionError, match="checked before"):
        start(folder, tmp_path)


def test_damaged_checkpoint_is_refused_also_where_it_was_checked(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint("qwen3", 2), folder)
    start(folder, tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        start(folder, tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"prunes": 3}', b"[" * 60_000, bytes(range(256))], ids=repr)
def test_what_is_damaged_is_checked_again_and_made_good(
    content: bytes, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint("qwen3", 2)
    start(folder, tmp_path)
    (file,) = (tmp_path / "checks").glob("*.json")
    sound = file.read_bytes()
    file.write_bytes(content)
    assert isinstance(start(folder, tmp_path), CpuBackend)
    assert file.read_bytes() == sound


def test_only_so_many_stay(tmp_path: Path) -> None:
    records = Records(tmp_path / "some", 3)
    for number in range(5):
        records.write(f"{number}", b"x")
        os.utime(tmp_path / "some" / f"{number}.json", (number, number))
    assert records.read("0") is None and records.read("2") == b"x"
    records.write("5", b"x")
    assert sorted(path.stem for path in (tmp_path / "some").glob("*.json")) == ["2", "4", "5"]
    records.write("6", bytes(MOST_BYTES + 1))
    assert records.read("6") is None


def test_a_folder_that_takes_nothing_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    records = Records(tmp_path / "file", 3)
    records.write("a", b"x")
    assert records.read("a") is None
