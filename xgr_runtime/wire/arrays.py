"""Arrays as messages carry them: the bytes of little-endian numbers, four to each."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(values: NDArray[Any]) -> bytes:
    """[n] int32, uint32 or float32 as bytes; tokens and leaves, generations, scores and hidden states."""
    assert values.dtype in (np.int32, np.uint32, np.float32), f"not for the wire: {values.dtype}"
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def int32s(data: bytes) -> NDArray[np.int32]:
    """[n], read-only. Raises ValueError where the bytes end within a number."""
    return np.frombuffer(data, np.dtype("<i4"))


def uint32s(data: bytes) -> NDArray[np.uint32]:
    """See `int32s`."""
    return np.frombuffer(data, np.dtype("<u4"))


def float32s(data: bytes) -> NDArray[np.float32]:
    """See `int32s`."""
    return np.frombuffer(data, np.dtype("<f4"))
