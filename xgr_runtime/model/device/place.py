"""Which device a process computes on: chosen once, before anything is asked of it.

Work that names no GPU goes to the current one of its thread, which is the first of the machine until another
is chosen: kernels of Triton, streams, events, models of libraries.
"""

import torch

from xgr_runtime.errors import ConfigError, ModelError


def take_device(setting: str) -> torch.device:
    """The device that `setting` names: "cpu", "cuda" or "cuda:N".

    A GPU is this thread's current one from now on. Raises ModelError where torch cannot compute on it.
    """
    kind, _, index = setting.partition(":")
    if kind != "cuda":
        return torch.device(setting)
    if not torch.cuda.is_available():
        raise ModelError(f"--device {setting}: torch finds no GPU here: use --device cpu")
    device = torch.device("cuda", int(index or 0))
    if device.index >= torch.cuda.device_count():
        raise ModelError(f"--device {setting}: this machine has {torch.cuda.device_count()} GPUs")
    torch.cuda.set_device(device)
    return device


def check_place(found: torch.device, wanted: torch.device, what: str) -> None:
    """Raises ModelError where a library has put `what` on another device than this process's own."""
    if found != wanted:
        raise ModelError(
            f"{what} lies on {found}, not on {wanted}: let each worker see one GPU alone, by "
            "CUDA_VISIBLE_DEVICES=N and --device cuda"
        )


def check_room(device: torch.device, needed: int, what: str) -> None:
    """Raises ConfigError where less than `needed` bytes of a GPU's memory are free for `what`."""
    free, total = torch.cuda.mem_get_info(device)
    if free < needed:
        raise ConfigError(
            f"--device {device} has {free / 1e9:,.1f} of its {total / 1e9:,.1f} GB free, {what} take "
            f"{needed / 1e9:,.1f} GB: end what else runs there (nvidia-smi shows it), or name another GPU"
        )
