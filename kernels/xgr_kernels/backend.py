"""Which implementation of the kernels a process runs.

Chosen once at start-up, by name, and logged with its reason, so that no call ever guesses.
"""

import importlib.util

BACKENDS = {"cpu": ("cpu", "reference"), "cuda": ("cuda",)}
"""Device type -> the backends that serve it, the fastest first."""

CUDA_PACKAGES = ("triton", "flashinfer")


def choose_backend(name: str, device: str) -> tuple[str, str]:
    """The backend for `name` in {auto, cpu, cuda, reference} on `device` ("cpu", "cuda", "cuda:1"), and why.

    Raises: ValueError for an unknown name, a device that the backend does not serve, or a missing package.
    """
    kind = device.split(":")[0]
    if kind not in BACKENDS:
        raise ValueError(f"no kernel backend for device {device!r}: use device cpu or cuda")
    if name == "auto":
        chosen, reason = BACKENDS[kind][0], f"the fastest backend for device {kind}"
    elif name in BACKENDS[kind]:
        chosen, reason = name, "asked for by name"
    else:
        named = " or ".join(("auto", *BACKENDS[kind]))
        raise ValueError(f"kernel backend {name!r} does not serve device {device!r}: use {named}")
    if chosen == "cuda":
        _require_cuda_packages()
    return chosen, reason


def _require_cuda_packages() -> None:
    missing = [package for package in CUDA_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        named = " and ".join(missing)
        raise ValueError(f"kernel backend 'cuda' needs {named}: pip install 'xgr-runtime[cuda]'")
