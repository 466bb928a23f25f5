"""Both workers' engines are made for the GPU that holds the model, whichever that is."""

import importlib
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from xgr_runtime.catalog import Scoring
from xgr_runtime.model.device import device

pytest.importorskip("triton")


class Chosen(Exception):
    """The index of the GPU that an engine asks for, in the place of one."""


@pytest.mark.parametrize("worker", ["prefill_worker", "decode_worker"])
def test_an_engine_is_made_for_the_models_gpu(monkeypatch: pytest.MonkeyPatch, worker: str) -> None:
    def chosen(index: int) -> NoReturn:
        raise Chosen(index)

    monkeypatch.setattr(device, "CudaDevice", chosen)
    make_engine = importlib.import_module(f"{worker}.start").make_engine
    model: Any = SimpleNamespace(backend=SimpleNamespace(device=torch.device("cuda", 1)))
    more = (SimpleNamespace(scoring=Scoring()), 64) if worker == "decode_worker" else ()
    with pytest.raises(Chosen) as error:
        make_engine(None, model, *more, "cuda")
    assert error.value.args == (1,)
