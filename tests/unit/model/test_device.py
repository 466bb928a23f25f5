"""What engines are told when a device fails, and what a launch reads."""

import numpy as np
import pytest
import torch

from xgr_runtime.model.device.device import DeviceLost, HostDevice, Inputs, Progress, losing_the_device


@pytest.mark.parametrize("alive", [True, False])
def test_a_plain_error_is_the_devices_if_it_answers_no_more(
    monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    def synchronize() -> None:
        if not alive:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(RuntimeError if alive else DeviceLost, match="launch failed"), losing_the_device():
        raise RuntimeError("launch failed\nwith details")


def test_an_error_of_the_accelerator_and_one_without_a_gpu() -> None:
    with pytest.raises(DeviceLost), losing_the_device():
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="ours"), losing_the_device():
        raise RuntimeError("ours")
    with pytest.raises(ValueError, match="ours"), losing_the_device():
        raise ValueError("ours")


def test_inputs_are_whole_vectors_whatever_the_launch_before_had() -> None:
    inputs = Inputs(HostDevice(), {"a": 3, "b": 2}, slots=2)
    a, b = inputs["a"], inputs["b"]
    inputs.fill(0, a=np.array([1, 2, 3]), b=np.array([4]))
    inputs.send(0)
    assert (a.tolist(), b.tolist()) == ([1, 2, 3], [4, 0])
    inputs.fill(1, a=np.array([9]))
    assert (a.tolist(), b.tolist()) == ([1, 2, 3], [4, 0]), "nothing was sent"
    inputs.send(1)
    assert (a.tolist(), b.tolist()) == ([9, 0, 0], [0, 0]), "the same memory, and nothing is left over"


def test_a_mark_says_which_launch_has_come_so_far() -> None:
    number = torch.zeros(1, dtype=torch.int64)
    progress = Progress(HostDevice(), 2, number)
    number[0] = 7
    progress.mark(0)
    assert progress.passed(0, 7) and not progress.passed(0, 8) and not progress.passed(1, 7)
