"""What FlashInfer's paged attention needs to know and to be given: sizes, memory, and which of its kernels.

Plain arithmetic, so that it is checked where there is no GPU. It follows the library's scheduler (0.6.18).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

ALGORITHMS = ("fa2", "fa3")
HEAD_DIMS = (64, 128, 256)  # what both of its kernels and the merge of split keys are made for
DTYPES = (torch.bfloat16, torch.float16)

# FA2's matrix rate over FA3's where both fill the device. From published figures, not measured here yet.
FA2_SHARE_OF_FA3 = 0.65


@dataclass(frozen=True)
class AttentionSizes:
    """What a model and its KV pool fix for all attention of a process."""

    q_heads: int
    kv_heads: int
    head_dim: int
    page_size: int  # tokens
    dtype: torch.dtype
    device: torch.device
    scale: float  # of the softmax

    def check(self) -> None:
        """Raises: ValueError, by name, for what FlashInfer does not serve."""
        if self.head_dim not in HEAD_DIMS:
            named = ", ".join(map(str, HEAD_DIMS))
            raise ValueError(f"head_dim is {self.head_dim}: FlashInfer's paged attention serves {named}")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"dtype is {self.dtype}: FlashInfer's paged attention serves bfloat16 and float16"
            )
        if self.q_heads % self.kv_heads:
            raise ValueError(f"q_heads is {self.q_heads}, not a multiple of kv_heads, {self.kv_heads}")

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q_heads // self.kv_heads


def device_facts(device: torch.device) -> tuple[int, tuple[int, int]]:
    """Multiprocessors and compute capability. Another device than a GPU counts as a very small one."""
    if device.type != "cuda":
        return 1, (8, 0)
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, (properties.major, properties.minor)


def choose_algorithm(
    sizes: AttentionSizes, rows: Sequence[int], multiprocessors: int, capability: tuple[int, int]
) -> str:
    """The kernel that ends earlier for requests of so many query rows each.

    FA3 gives a tile of rows of one query head to a multiprocessor as a whole, so its last wave may leave many
    idle. FA2 packs the query heads of a group into its rows and splits keys until the device is full, but its
    matrix products are slower. FA3 exists for compute capability 9 alone.
    """
    if capability[0] != 9:
        return "fa2"
    tile = fa3_tile(sizes.head_dim)
    tiles = sum(_ceil(count, tile) for count in rows) * sizes.q_heads
    fa3_rows = _ceil(tiles, multiprocessors) * multiprocessors * tile
    packed = sum(_ceil(count * sizes.group, 128) for count in rows) * sizes.kv_heads
    return "fa3" if fa3_rows * FA2_SHARE_OF_FA3 < packed * 128 else "fa2"


def fa2_tile(sizes: AttentionSizes, rows: int, requests: int) -> int:
    """Packed rows per tile, as FA2's plan fixes them for all cohorts of a captured bucket."""
    packed = (rows - requests + 1) % 2**32 * sizes.group  # fewer rows than slots wrap around, in 32 bits
    if packed > 64 and sizes.head_dim < 256:
        return 128
    return 64 if packed > 16 else 16


def fa3_tile(head_dim: int) -> int:
    """Rows of one query head per tile."""
    return 192 if head_dim == 64 else 128


def float_bytes(sizes: AttentionSizes, rows: int, requests: int, multiprocessors: int) -> int:
    """Device memory for the partial results of split keys, which FA2 always keeps in a captured bucket."""
    tile = fa2_tile(sizes, rows, requests)
    per_tile = sizes.q_heads * tile * 4
    return _fa2_tiles(sizes, rows, requests, multiprocessors) * per_tile * (sizes.head_dim + 1) + 32


def int_bytes(sizes: AttentionSizes, rows: int, requests: int, multiprocessors: int) -> int:
    """Bytes of the plan itself, on the device and in pinned memory, for whichever kernel needs more."""
    tiles = _fa2_tiles(sizes, rows, requests, multiprocessors)
    fa2 = 13 * tiles + 4 * (requests + rows + 4)
    works = (_ceil(rows, fa3_tile(sizes.head_dim)) + requests - 1) * sizes.q_heads
    fa3 = 28 * works + 4 * (multiprocessors + 1)
    return _ceil(max(fa2, fa3) + 10 * 16, 4096) * 4096  # ten arrays, each aligned to 16 bytes


def _fa2_tiles(sizes: AttentionSizes, rows: int, requests: int, multiprocessors: int) -> int:
    """Tiles that a captured bucket launches per KV head: two per multiprocessor, or what its rows need."""
    needed = _ceil(rows * sizes.group, fa2_tile(sizes, rows, requests)) + requests - 1
    return max(2 * multiprocessors // sizes.kv_heads, needed)


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)
