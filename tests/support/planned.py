"""Devices and traffic for tests of plans: a device whose launches cost what a test says."""

from xgr_runtime.planning.devices import ROLES, DeviceKind, DeviceRole
from xgr_runtime.planning.speeds import MeasuredSpeed
from xgr_runtime.wire.messages import StepCost

SPLIT: tuple[DeviceRole, ...] = ("prefill", "decode")


def device(
    name: str = "device",
    price: float = 1.0,
    roles: tuple[DeviceRole, ...] = ROLES,
    faster: float = 1.0,
    kv_tokens: int = 1 << 20,
    most: int = 32,
) -> DeviceKind:
    """10,000 tokens of prompts in a second, or 5,000 beams; so many times faster."""
    prefill = StepCost(1e-3 / faster, 1e-4 / faster, 0.0)
    decode = StepCost(1e-3 / faster, 2e-4 / faster, 0.0)
    speed = MeasuredSpeed(prefill, decode)
    return DeviceKind(name, price, most, roles, speed, kv_tokens, 4096, 4096, False, 1024, 4)
