"""Which library runs a checkpoint: what `auto` takes and says, and which SGLang releases are refused."""

import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xgr_runtime.checkpoint import saved_dtype
from xgr_runtime.errors import ModelError
from xgr_runtime.model import choice
from xgr_runtime.model.backends import shims, transformers
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.sglang import versions

FOLDER = Path("/nowhere")
Installed = Callable[[str | None], list[tuple[object, ...]]]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """`installed(version)` pretends that this SGLang is; returns the calls that its backend will get."""

    def pretend(version: str | None) -> list[tuple[object, ...]]:
        calls: list[tuple[object, ...]] = []
        stand_in = types.ModuleType("backend")
        stand_in.load_sglang = lambda *args: calls.append(args)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "xgr_runtime.model.sglang.backend", stand_in)
        monkeypatch.setattr(choice, "installed_version", lambda: version)
        return calls

    return pretend


@pytest.mark.parametrize("name", ["auto", "sglang"])
@pytest.mark.parametrize("version", [versions.FIRST_TESTED, "0.5.20", "0.5.20.post1", versions.LAST_TESTED])
def test_tested_sglang_is_taken(
    installed: Installed, caplog: pytest.LogCaptureFixture, name: str, version: str
) -> None:
    caplog.set_level(logging.INFO)
    calls = installed(version)
    load_backend(name, FOLDER, "float32")
    assert calls == [(FOLDER, "float32", False, "cpu", None, None)]
    why = "it is installed" if name == "auto" else "as asked for"
    assert f"model backend: sglang {version}, {why}" in caplog.text


@pytest.mark.parametrize("version", [None, "0.5.15.post1", "0.5.24", "0.6", "1.0.0rc1", "nonsense"])
def test_auto_falls_back_and_says_why(
    installed: Installed, caplog: pytest.LogCaptureFixture, version: str | None
) -> None:
    caplog.set_level(logging.INFO)
    calls = installed(version)
    with pytest.raises(ModelError, match="no such folder"):  # transformers got it
        load_backend("auto", FOLDER, "float32")
    assert not calls
    why = f"sglang {version} was not tested" if version else "sglang is not installed"
    assert f"model backend: transformers, {why}" in caplog.text


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, r"not installed .*--model-backend sglang"),
        ("0.5.15.post1", f"0.5.15.post1 was not tested, {versions.TESTED} .*{versions.OVERRIDE}"),
        ("0.6.0", f"0.6.0 was not tested, {versions.TESTED} .*{versions.OVERRIDE}"),
    ],
)
def test_asking_for_sglang_that_cannot_run_is_refused(
    installed: Installed, version: str | None, says: str
) -> None:
    calls = installed(version)
    with pytest.raises(ModelError, match=says) as caught:
        load_backend("sglang", FOLDER, "float32")
    assert not calls and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["auto", "sglang"])
def test_a_flag_lets_any_release_run(installed: Installed, name: str) -> None:
    calls = installed("0.6.0")
    load_backend(name, FOLDER, "float32", any_sglang_version=True)
    assert calls == [(FOLDER, "float32", True, "cpu", None, None)]


@pytest.mark.parametrize(
    ("device", "gpus", "says"),
    [("cuda", 0, "finds no GPU.*--device cpu"), ("cuda:0", 0, "finds no GPU"), ("cuda:2", 2, "has 2 GPUs")],
)
def test_a_gpu_that_is_not_there_is_refused(
    installed: Installed, monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, says: str
) -> None:
    installed(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ModelError, match=says):
        load_backend("transformers", FOLDER, "float32", device=device)


def test_sglang_runs_on_the_gpu_that_is_asked_for(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = installed("0.5.20")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("current", device)))
    load_backend("auto", FOLDER, "bfloat16", device="cuda:1", place=print)
    current, asked = calls
    assert current == ("current", torch.device("cuda", 1)), "before the library, whose kernels run there"
    assert asked == (FOLDER, "bfloat16", False, "cuda:1", print, None)


def test_sglang_stays_off_a_gpu_that_is_not_asked_for(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = installed("0.5.20")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelError, match="CUDA_VISIBLE_DEVICES"):
        load_backend("sglang", FOLDER, "float32")
    assert not calls


@pytest.mark.parametrize("fits", [True, False])
def test_a_gpu_runs_our_own_layers_before_sglangs_where_they_fit(
    installed: Installed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fits: bool
) -> None:
    calls = installed("0.5.20")
    monkeypatch.setattr(choice, "take_device", lambda device: None)
    tried: list[tuple[object, ...]] = []

    def load_fused(*args: object) -> object:
        tried.append(args)
        return "ours" if fits else None

    monkeypatch.setattr(transformers, "load_fused", load_fused)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    asked = (tmp_path, "bfloat16", "cuda:1", print, None)
    loaded: object = load_backend("auto", tmp_path, "bfloat16", device="cuda:1", place=print)
    assert tried == [asked] and (loaded == "ours") == fits and len(calls) == (not fits)
    load_backend("sglang", tmp_path, "bfloat16", device="cuda:1", place=print)
    (tmp_path / "config.json").write_text('{"model_type": "olmo2"}')
    load_backend("auto", tmp_path, "bfloat16", device="cuda:1", place=print)
    assert tried == [asked] and len(calls) == (not fits) + 2


def test_the_override_warns(caplog: pytest.LogCaptureFixture) -> None:
    versions.check_version("0.6.0", any_version=True)
    assert "sglang 0.6.0 was not tested" in caplog.text
    caplog.clear()
    versions.check_version("0.5.20", any_version=True)
    assert not caplog.text


def test_shims_do_nothing_without_sglang() -> None:
    if versions.installed_version() is not None:
        pytest.fail("these tests belong to the environment without sglang; use pytest tests/sglang here")
    shims.install()
    assert not shims.needed() and "sgl_kernel" not in sys.modules


@pytest.mark.parametrize(
    ("saved", "on_cpu", "on_gpu"),
    [
        ("float16", "float32", "float16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float64", "float32", "float32"),
    ],
)
def test_type_of_a_checkpoint(tmp_path: Path, saved: str, on_cpu: str, on_gpu: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "dtype": saved}))
    assert (saved_dtype(tmp_path, "cpu"), saved_dtype(tmp_path, "cuda:1")) == (on_cpu, on_gpu)
