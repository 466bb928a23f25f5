"""Which implementation of the kernels a process runs.

Chosen once at start-up, by name, and logged with its reason, so that no call ever guesses.
"""

BACKENDS = ("reference", "cpu")


def choose_backend(name: str, device: str) -> tuple[str, str]:
    """The backend for `name` in {auto, reference, cpu} on `device` ("cpu"), and why.

    Raises: ValueError for an unknown name, or a device that no backend serves.
    """
    if device.split(":")[0] != "cpu":
        raise ValueError(f"no kernel backend for device {device!r}: use device cpu")
    if name == "auto":
        return "cpu", "the fastest backend for device cpu"
    if name not in BACKENDS:
        raise ValueError(f"unknown kernel backend {name!r}: use auto, {' or '.join(BACKENDS)}")
    return name, "asked for by name"
