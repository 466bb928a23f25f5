"""What a launch takes by the numbers of a device and a model: a roofline, not a measurement.

A launch takes its fixed time, and then as long as its arithmetic or its reading of memory, whichever is
longer. Real devices reach a share of both peaks, which a description says (`of_peak`): an assumption until it
is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from xgr_runtime.checkpoint import read_config
from xgr_runtime.errors import ModelError
from xgr_runtime.files import open_ordinary

FILE = "simulation.json"  # beside the config.json of a checkpoint that is simulated
MOST_BYTES = 1 << 16

Positive = Annotated[float, Meta(gt=0, le=1e18)]
Count = Annotated[int, Meta(ge=1, le=1 << 30)]


class DeviceNumbers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device, as its maker describes it: dense 16-bit arithmetic, and its own memory."""

    name: str
    flops: Positive  # a second
    bytes_per_second: Positive
    launch_seconds: Annotated[float, Meta(ge=0, le=10)] = 5e-6  # fixed, per layer
    of_peak: Annotated[float, Meta(gt=0, le=1)] = 0.6  # an assumption


DEVICES = {
    device.name: device
    for device in (
        DeviceNumbers("H200", 989e12, 4.8e12),
        DeviceNumbers("H100", 989e12, 3.35e12),
        DeviceNumbers("A100", 312e12, 2.039e12),
        DeviceNumbers("L40S", 362e12, 0.864e12),
        DeviceNumbers("L4", 121e12, 0.3e12),
    )
}
"""By name. Numbers of their data sheets: SXM forms, and 80 GB of the A100."""


class ModelNumbers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of a decoder with gated layers and grouped attention, in 16 bits."""

    layers: Count
    hidden: Count
    intermediate: Count
    q_heads: Count
    kv_heads: Count
    head_dim: Count
    vocab: Count

    @property
    def layer_weights(self) -> int:
        """Of one layer."""
        attention = self.hidden * self.head_dim * (2 * self.q_heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head_weights(self) -> int:
        """Of the product that gives logits."""
        return self.hidden * self.vocab

    @property
    def token_bytes(self) -> int:
        """KV of one token in all layers."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


class Simulation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in `simulation.json`.

    `device` is one of `DEVICES` or numbers of another; `model` the sizes, or a folder with a config.json that
    has them. `slower`: every second of the device takes so many here, so that one machine can play many.
    """

    device: str | DeviceNumbers
    model: str | ModelNumbers
    slower: Annotated[float, Meta(ge=0, le=10_000)] = 1.0


class Roofline:
    """Seconds of launches."""

    def __init__(self, device: DeviceNumbers, model: ModelNumbers) -> None:
        self.device = device
        self.model = model

    def seconds(self, tokens: int, pairs: int, kv_tokens: int, logits: int) -> float:
        """Of one forward.

        tokens: rows that run through the layers. pairs: of a row and a token that it attends to.
        kv_tokens: whose KV is read, once each. logits: rows that get them.
        """
        model, device = self.model, self.device
        flops = 2.0 * (model.layers * model.layer_weights * tokens + model.head_weights * logits)
        flops += 4.0 * model.layers * model.q_heads * model.head_dim * pairs
        read = 2.0 * (model.layers * model.layer_weights + model.head_weights * bool(logits))
        read += model.token_bytes * kv_tokens
        longest = max(flops / device.flops, read / device.bytes_per_second) / device.of_peak
        return device.launch_seconds * model.layers + longest


def read_simulation(folder: Path) -> Simulation:
    """Raises ModelError."""
    path = folder / FILE
    try:
        with open_ordinary(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}): --model-backend simulated needs it, "
            'write {"device": "H200", "model": FOLDER_OF_ITS_CONFIG}'
        ) from None
    try:
        return msgspec.json.decode(content[:MOST_BYTES], type=Simulation)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from None


def roofline_of(simulation: Simulation, folder: Path) -> Roofline:
    """`folder` is where relative paths start. Raises ModelError for a device or a model that nobody knows."""
    device, model = simulation.device, simulation.model
    if isinstance(device, str):
        if device not in DEVICES:
            raise ModelError(
                f"{folder / FILE}: no numbers of a device {device!r}: use one of {', '.join(DEVICES)}, or "
                "write name, flops and bytes_per_second"
            )
        device = DEVICES[device]
    if isinstance(model, str):
        if not (folder / model).is_dir():
            raise ModelError(
                f"{folder / FILE}: there is no folder {model}: name one with a config.json, or sizes"
            )
        model = model_numbers(folder / model)
    return Roofline(device, model)


def model_numbers(folder: Path) -> ModelNumbers:
    """As the config.json in `folder` has them. Raises ModelError."""
    config = read_config(folder)
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        found = {
            "layers": config["num_hidden_layers"],
            "hidden": hidden,
            "intermediate": config["intermediate_size"],
            "q_heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or hidden // heads,
            "vocab": config["vocab_size"],
        }
        return msgspec.convert(found, ModelNumbers)
    except (KeyError, TypeError, ZeroDivisionError, msgspec.ValidationError) as error:
        raise ModelError(f"{folder / 'config.json'} has no sizes of a decoder ({error})") from None
