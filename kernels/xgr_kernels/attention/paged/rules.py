"""What FlashInfer's paged attention needs to know and to be given: sizes, memory, and which of its kernels.

Plain arithmetic, so that it is checked where there is no GPU. It follows the library's scheduler (0.6.18).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

ALGORITHMS = ("fa2", "fa3")  # FlashInfer's
HEAD_DIMS = (64, 128, 256)  # what both of its kernels and the merge of split keys are made for
DTYPES = (torch.bfloat16, torch.float16)

OWN = "own"  # a kernel of ours, for what FlashInfer does not serve
OWN_MOST_DIM = 128
OWN_ROWS = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 32}  # of query heads in a tile of it

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
        """Raises: ValueError, by name, for what neither FlashInfer nor our own kernel serves."""
        if self.dtype not in OWN_ROWS:
            raise ValueError(
                f"dtype is {self.dtype}: attention on a GPU serves bfloat16, float16 and float32"
            )
        if self.q_heads % self.kv_heads:
            raise ValueError(f"q_heads is {self.q_heads}, not a multiple of kv_heads, {self.kv_heads}")
        if self.by_flashinfer:
            return
        if self.head_dim > OWN_MOST_DIM:
            raise ValueError(
                f"head_dim is {self.head_dim}: {self.why_own}, which takes {OWN_MOST_DIM} at most"
            )
        if self.group > self.own_rows:
            raise ValueError(
                f"{self.group} query heads per KV head: {self.why_own}, which takes {self.own_rows}"
            )

    @property
    def by_flashinfer(self) -> bool:
        """Whether FlashInfer serves them."""
        return self.head_dim in HEAD_DIMS and self.dtype in DTYPES

    @property
    def why_own(self) -> str:
        """In words, where FlashInfer does not."""
        dims = ", ".join(map(str, HEAD_DIMS))
        return (
            f"FlashInfer serves head sizes {dims} in bfloat16 and float16, so head size {self.head_dim} in "
            f"{str(self.dtype).removeprefix('torch.')} runs in a kernel of our own"
        )

    @property
    def own_rows(self) -> int:
        """Rows of query heads in a tile of our own kernel, so many that registers hold them."""
        return OWN_ROWS[self.dtype]

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q_heads // self.kv_heads


class Processor(NamedTuple):
    """What the rules ask of a device."""

    multiprocessors: int
    capability: tuple[int, int]


def device_facts(device: torch.device) -> Processor:
    """Another device than a GPU counts as a very small one."""
    if device.type != "cuda":
        return Processor(1, (8, 0))
    properties = torch.cuda.get_device_properties(device)
    return Processor(properties.multi_processor_count, (properties.major, properties.minor))


Cohort = Sequence[tuple[int, int]]
"""(query rows, keys) of each request of a launch."""


def choose_algorithm(sizes: AttentionSizes, cohort: Cohort, processor: Processor) -> str:
    """The kernel that ends earlier for a cohort. FA3 exists for compute capability 9 alone."""
    if not sizes.by_flashinfer:
        return OWN
    if processor.capability[0] != 9:
        return "fa2"
    times = {name: time(sizes, cohort, processor.multiprocessors) for name, time in _TIMES.items()}
    return min(times, key=lambda name: times[name])


def useful_algorithms(
    sizes: AttentionSizes, rows: range, requests: int, processor: Processor
) -> tuple[str, ...]:
    """Those that end earlier than the other for some cohort of a bucket: each is worth a graph of its own.

    `rows` are those that the bucket serves. Requests of a cohort have as many rows and keys each, which is
    what most have; others are then served by the better one of what there is.
    """
    chosen = {choose_algorithm(sizes, cohort, processor) for cohort in _cohorts(rows, requests)}
    return tuple(sorted(chosen))


def safest_algorithm(sizes: AttentionSizes, rows: range, requests: int, processor: Processor) -> str:
    """The one whose time over the other's is the smaller in its worst case: for a bucket with one graph."""
    if not sizes.by_flashinfer or processor.capability[0] != 9:
        return choose_algorithm(sizes, [(rows[-1], 1)], processor)
    ratios = [
        fa2_time(sizes, cohort, processor.multiprocessors)
        / fa3_time(sizes, cohort, processor.multiprocessors)
        for cohort in _cohorts(rows, requests)
    ]
    return "fa2" if max(ratios) < 1 / min(ratios) else "fa3"


def fa2_time(sizes: AttentionSizes, cohort: Cohort, multiprocessors: int) -> float:
    """In rows of a head times keys, at FA3's rate on one multiprocessor.

    It packs the query heads of a group into its rows and splits keys until the device is full.
    """
    work = sum(_ceil(rows * sizes.group, 128) * 128 * keys for rows, keys in cohort) * sizes.kv_heads
    return work / multiprocessors / FA2_SHARE_OF_FA3


def fa3_time(sizes: AttentionSizes, cohort: Cohort, multiprocessors: int) -> float:
    """The same. A multiprocessor takes a tile of one query head as a whole, those with most keys first.

    So its last wave may leave many idle, and every wave lasts as long as the tiles that it begins with.
    """
    tile, tiles, waves, time = fa3_tile(sizes.head_dim), 0, 0, 0
    for rows, keys in sorted(cohort, key=lambda request: -request[1]):
        tiles += _ceil(rows, tile) * sizes.q_heads
        begun, waves = waves, _ceil(tiles, multiprocessors)
        time += (waves - begun) * keys * tile
    return time


_TIMES = {"fa2": fa2_time, "fa3": fa3_time}


def _cohorts(rows: range, requests: int) -> Iterator[Cohort]:
    """The fewest and the most rows of a bucket, dealt to one request, to two, and so on."""
    for total in {rows[0], rows[-1]}:
        for count in range(1, min(requests, total) + 1):
            yield [(total // count + (b < total % count), 1) for b in range(count)]


def own_tiles(sizes: AttentionSizes, rows: int, requests: int) -> int:
    """Tiles per KV head that our own kernel launches for a bucket, however its rows are dealt out."""
    return _ceil(rows, sizes.own_rows // sizes.group) + requests - 1


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
    if not sizes.by_flashinfer:
        return 0
    tile = fa2_tile(sizes, rows, requests)
    per_tile = sizes.q_heads * tile * 4
    return _fa2_tiles(sizes, rows, requests, multiprocessors) * per_tile * (sizes.head_dim + 1) + 32


def int_bytes(sizes: AttentionSizes, rows: int, requests: int, multiprocessors: int) -> int:
    """Bytes of the plan itself, on the device and in pinned memory, for whichever kernel needs more."""
    if not sizes.by_flashinfer:
        return 16 * own_tiles(sizes, rows, requests)
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
