"""Beam selection on a GPU: a fixed sequence of launches over buffers of a fixed size.

No launch waits for the host, and none has a shape that depends on data, so a step can be captured in a CUDA
graph. Replayed, it serves other levels, widths, catalogs and filters: it reads them from the request table.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from xgr_kernels.beam_select import cuda_kernels as kernels
from xgr_kernels.beam_select.cuda_memory import (
    COLUMNS,
    MOST_TOKENS,
    NO_FILTER,
    BeamState,
    DeviceFilters,
    DeviceTrie,
    FilterColumns,
    PlacedTrie,
    aligned,
    grown,
    logit_rows,
    request_row,
    words_of,
)

__all__ = [
    "COLUMNS",
    "NO_FILTER",
    "BeamState",
    "DeviceFilters",
    "DeviceTrie",
    "FilterColumns",
    "PlacedTrie",
    "Selector",
    "Tuning",
    "aligned",
    "grown",
    "logit_rows",
    "request_row",
    "splits_for",
    "words_of",
]

MOST_ROWS: int = kernels.MOST_ROWS.value  # of one request
MOST_SPLITS = 64  # programs over the logits of one row


class Tuning(NamedTuple):
    """Sizes of the launches, powers of two. The answer is the same with any, but for what overflows."""

    block: int = 2048  # logits that a program of row statistics takes at a time
    tile: int = 256  # candidates that a program takes at a time
    programs: int = 128  # over the candidates of a request
    maxima: int = 8192  # blocks of candidates of a request, at most programs * tile; at least its width
    capacity: int = 8192  # candidates stored for a request; more than its width

    @staticmethod
    def of(requests: int, max_width: int) -> "Tuning":
        """Programs for a lone wide request (those of unused slots end at once), storage for eight widths."""
        programs = max(64, min(128, 4096 // _power_of_two(requests)))
        return Tuning(programs=programs, capacity=max(1024, min(8192, 8 * _power_of_two(max_width))))


class Selector:
    """Beam selection with buffers of a fixed size; every call is the same sequence of launches.

    After: early sorting termination in xGR (arXiv 2512.11529). The candidates of a request are dealt to a
    fixed number of blocks. The W-th largest of the blocks' best scores is a score that W candidates reach, so
    only those that do are stored, in any order, in a buffer of `capacity`. Should more reach it (many equal
    scores), the W-th best of the stored, whose keys all differ, is a higher such bound, and candidates are
    collected once more. Then each stored key counts the larger ones: its rank, and the row that it goes to.

    So nothing is sorted, no program waits for another, and the order of parallel writes cannot matter. A
    request that overflows even then has its flag set and no beams; `select_exactly` repeats the tightening
    until nothing overflows.
    """

    def __init__(
        self,
        *,
        rows: int,
        requests: int,
        vocab: int,
        max_width: int,
        tail_tokens: int,
        device: torch.device | str,
        tuning: Tuning | None = None,
    ) -> None:
        """For at most `rows` beams of `requests` requests, each of at most `max_width` beams and width.

        Raises: ValueError for sizes that the keys of candidates cannot tell apart.
        """
        if max_width > MOST_ROWS or vocab > MOST_TOKENS:
            raise ValueError(
                f"width {max_width} or vocabulary {vocab} is too large: selection on a GPU takes {MOST_ROWS} "
                f"beams of a request and {MOST_TOKENS} tokens"
            )
        self.rows, self.requests, self.max_width = rows, requests, max_width
        self.columns = aligned(vocab)
        self.tail_tokens = tail_tokens
        self.tuning = tuning = tuning or Tuning.of(requests, max_width)
        assert tuning.maxima >= max_width < tuning.capacity, tuning
        assert tuning.programs <= tuning.maxima <= tuning.programs * tuning.tile, tuning
        self._constants = launch_constants(self.tuning, max_width, tail_tokens)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.table = zeros(requests, COLUMNS, dtype=torch.int64)
        self.owner = zeros(rows) - 1
        # What the host wants to know, in one copy: beams of the last step; 1 if invalid; 1 if storage
        # overflowed; of all steps the highest score that bounds children which were passed over.
        self.outcome = zeros(4, requests)
        self.count, self.invalid, self.overflow, _ = self.outcome
        self.ceiling = self.outcome.view(torch.float32)[3]  # float32, -inf: nothing was passed over
        self._fresh = torch.zeros_like(self.outcome)
        self._fresh.view(torch.float32)[3].fill_(-torch.inf)
        self.begin()
        self.children = zeros(rows)  # of each row, with those that a filter takes
        self.lse = zeros(rows, dtype=torch.float32)  # of the rows that are not dead
        self._top = zeros(rows, MOST_SPLITS, dtype=torch.float32)
        self._total = zeros(rows, MOST_SPLITS, dtype=torch.float32)
        self._first, self._offset = zeros(rows), zeros(rows)
        self._maxima = zeros(requests, tuning.maxima, dtype=torch.float32)
        self._threshold = zeros(requests, dtype=torch.int64)
        self._candidates, self._stored, self._again = zeros(requests), zeros(requests), zeros(requests)
        self._keys = zeros(requests, tuning.capacity, dtype=torch.int64)
        self._nodes = zeros(requests, tuning.capacity)

    @property
    def device_bytes(self) -> int:
        """What its buffers take."""
        tensors = [x for x in vars(self).values() if isinstance(x, Tensor)]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    def begin(self) -> None:
        """Forgets which requests were invalid or overflowed, and what was passed over."""
        self.outcome[1:].copy_(self._fresh[1:])

    def select(self, logits: Tensor, now: BeamState, next: BeamState, *, splits: int) -> None:
        """The best children of each request's beams, from `now` to `next`, which is another state.

        logits [R, V] float32, rows contiguous, R <= rows; whole rows of `logit_rows` are read fastest.
        `splits` (1 to MOST_SPLITS) programs read a row.
        Row out_begin + p of `next` becomes the p-th best child, p < count: token, score, leaves, and as
        ancestors its parent's with the parent's row at [level - 1], if 1 <= level <= T. Semantics are those
        of `api.beam_select`, except that a dead beam's logits are not looked at.
        """
        self._bound(logits, now, next, splits)
        self._collect(logits, now)
        self._tighten(logits, now)
        self._emit(now, next)

    def select_exactly(self, logits: Tensor, now: BeamState, next: BeamState, *, splits: int) -> int:
        """As `select`, but never overflows; waits for the device. Returns how often it tightened.

        Each time at least capacity - W candidates fall below the new threshold, so it ends.
        """
        self._bound(logits, now, next, splits)
        self._collect(logits, now)
        rounds = 0
        while bool((self._stored > self.tuning.capacity).any()):
            self._tighten(logits, now)
            rounds += 1
        self._emit(now, next)
        return rounds

    def _bound(self, logits: Tensor, now: BeamState, next: BeamState, splits: int) -> None:
        """Statistics of rows, children of requests, and the threshold."""
        R, V = logits.shape
        assert logits.dtype == torch.float32 and (logits.stride(1) == 1 or R == 0)
        assert self.rows >= R and self.columns >= V
        assert now is not next and now.tail_tokens == next.tail_tokens == self.tail_tokens
        assert 1 <= splits <= MOST_SPLITS
        beam, constants, tuning = now.packed.stride(0), self._constants, self.tuning
        share = -(-V // (splits * tuning.block)) * tuning.block
        kernels.row_statistics[(R, splits)](
            logits, self.owner, now.packed, self._top, self._total,
            V, share, logits.stride(0), beam, **constants["row_statistics"],
        )  # fmt: skip
        kernels.find_children[(R,)](
            logits, self.owner, now.packed, self.table, self._top, self._total, self.lse, self._first,
            self.children, self.invalid, splits, logits.stride(0), beam,
            **constants["find_children"],
        )  # fmt: skip
        kernels.lay_out[(self.requests,)](
            self.table, self.children, self.invalid, self._offset, self._candidates, self._threshold,
            self._stored, self._again, **constants["lay_out"],
        )  # fmt: skip
        kernels.bound_blocks[(self.requests, tuning.programs)](
            logits, now.packed, self.table, self.lse, self._first, self._offset, self._candidates,
            self._maxima, logits.stride(0), beam, **constants["bound_blocks"],
        )  # fmt: skip
        kernels.find_threshold[(self.requests,)](
            self.table, self._candidates, self._maxima, self._threshold, **constants["find_threshold"],
        )  # fmt: skip

    def _collect(self, logits: Tensor, now: BeamState) -> None:
        """Stores what reaches the thresholds of the requests marked in `_again`."""
        kernels.collect[(self.requests, self.tuning.programs)](
            logits, now.packed, self.table, self.lse, self._first, self._offset, self._candidates,
            self._threshold, self._again, self._stored, self._keys, self._nodes,
            logits.stride(0), now.packed.stride(0), **self._constants["collect"],
        )  # fmt: skip

    def _tighten(self, logits: Tensor, now: BeamState) -> None:
        """Raises the threshold of requests that overflow, and collects these again."""
        kernels.tighten[(self.requests,)](
            self.table, self._stored, self._keys, self._threshold, self._again,
            **self._constants["tighten"],
        )  # fmt: skip
        self._collect(logits, now)

    def _emit(self, now: BeamState, next: BeamState) -> None:
        """Writes the chosen in order, and what becomes of each request."""
        constants = self._constants["emit"]
        kernels.emit[(self.requests, constants["CAPACITY"] // constants["LANES"])](
            self.table, now.packed, next.packed, self._stored, self._keys, self._nodes,
            self.count, self.overflow, self.ceiling, now.packed.stride(0), **constants,
        )  # fmt: skip


def launch_constants(tuning: Tuning, max_width: int, tail_tokens: int) -> dict[str, dict[str, int]]:
    """What each kernel is compiled with, by its name; `num_warps` says how wide a program runs."""
    rows_log2 = _power_of_two(max_width).bit_length() - 1
    candidates = {"ROWS_LOG2": rows_log2, "TILE": tuning.tile}
    stored = {"CAPACITY": tuning.capacity}
    ranking = {"LANES": 32, "OTHERS": 128, "num_warps": 8}
    return {
        "row_statistics": {"MOST_SPLITS": MOST_SPLITS, "BLOCK": tuning.block},
        "find_children": {"MOST_SPLITS": MOST_SPLITS, "LANES": 128},
        "lay_out": {"LANES": 1024},
        "bound_blocks": {**candidates, "BLOCKS": tuning.maxima // tuning.programs},
        "find_threshold": {"MAXIMA": tuning.maxima, "num_warps": _warps(tuning.maxima)},
        "collect": {**candidates, **stored},
        "tighten": {**stored, "num_warps": _warps(tuning.capacity)},
        "emit": {"T": tail_tokens, **stored, **ranking},
    }


def splits_for(rows: int, vocab: int, programs: int = 1024) -> int:
    """Programs for each of `rows` rows of logits, so that all together are about `programs`."""
    return max(1, min(MOST_SPLITS, -(-programs // max(1, rows)), -(-vocab // Tuning().block)))


def _power_of_two(n: int) -> int:
    """The least that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _warps(elements: int) -> int:
    """So that a thread holds sixteen of the elements that one program sorts out."""
    return max(4, min(16, elements // 512))
