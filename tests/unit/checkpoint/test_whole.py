"""What a launcher starts with: a checkpoint that is whole, under the name that was asked for."""

from pathlib import Path

import pytest
from adapters import MadeAdapter
from checkpoints import MakeCheckpoint

from xgr_runtime.checkpoint import read_config, saved_dtype, weight_files
from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import ModelError
from xgr_runtime.launcher.whole import whole


def settings(model: Path, tmp_path: Path, **more: str) -> ServeConfig:
    return ServeConfig(
        model_path=str(model),
        catalog="c",
        cache_folder=str(tmp_path / "cache"),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("dtype", "run"), [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")]
)
@pytest.mark.parametrize("name", ["", "mine"])
def test_an_adapter(name: str, dtype: str, run: str, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    made = MadeAdapter(make_checkpoint("llama", 2))
    made.add_products(lambda _: (4, 4.0))
    folder = made.save(tmp_path / "trained")
    asked = settings(folder, tmp_path, base_model_path=str(made.base), served_model_name=name, dtype=dtype)
    with whole(asked) as found:
        model = Path(found.model_path)
        assert model.is_relative_to(tmp_path / "cache/merged") and found.base_model_path == ""
        assert found.served_model_name == (name or "trained")
        assert saved_dtype(model, "cpu") == run and weight_files(model)
        with whole(found) as again:  # a process that is given it merges nothing
            assert again is found
    assert read_config(model)["model_type"] == "llama"


def test_a_plain_checkpoint_is_left_alone(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    asked = settings(make_checkpoint("llama", 2), tmp_path)
    with whole(asked) as found:
        assert found is asked
    assert not (tmp_path / "cache/merged").exists()


def test_a_base_without_an_adapter(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    asked = settings(make_checkpoint("llama", 2), tmp_path, base_model_path="elsewhere")
    with (
        pytest.raises(ModelError, match=r"--base-model-path elsewhere is for an adapter, .* leave it out"),
        whole(asked),
    ):
        pass
