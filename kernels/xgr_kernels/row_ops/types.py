"""Where keys and values go that a kernel stores as it makes them."""

from typing import NamedTuple

from torch import Tensor


class KvSlots(NamedTuple):
    """Memory of one layer's keys and values, and each row's place in it."""

    k: Tensor  # [places, Hkv, D]
    v: Tensor  # [places, Hkv, D]
    slots: Tensor  # [N] int64; rows whose k and v nobody reads may share one
