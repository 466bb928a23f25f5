"""The compiled half of flash attention on CPU: query rows are the lanes of vectors, no sum runs across them.

A block is LANES rows of one KV head, its GQA group folded in: row i is query head i % group of token i //
group. It holds their queries and sums as columns, [D, LANES], and each row's top (the highest score so far)
and total of weights, [LANES]. KEYS keys at a time give scores [KEYS, LANES], which stay in the first cache.
A gang of blocks reads one copy of these keys and values: in the pool the tokens of a head may lie a power
of two apart, and caches hold few such lines. Inside, D is rounded up to a multiple of ROWS.

Keys and values are float32, or the bits of bfloat16 as int16: numba has no such type.
"""

import numpy as np
from numba import prange

from xgr_kernels.attention.flash.tiles import (
    LANES,
    ROWS,
    add_product,
    exponentials,
    product,
    raise_tops,
    scale,
)
from xgr_kernels.cpu.compiled import LOW_LOG, Array, F, Scalar, exp2, from_bits, kernel

KEYS = 128  # a multiple of ROWS
GANG = 1024  # columns of all blocks of a gang, so that they stay in the second cache: 8 blocks at D = 128
MOST_BLOCKS = 8  # of a gang at a smaller D

Rows = tuple[Array, Array, Array]  # q, o, lse2
Prompt = tuple[Array, Array, Array, int]  # k and v [P, page_size, Hkv, D], the pages of its tokens, how many
Space = tuple[Array, Array, Array, Array, Array]  # of a thread: blocks, keys, values, scores, factors


@kernel()
def _at(x: Array, row: int) -> int:
    """The address of a row of contiguous float32."""
    return np.int64(x.ctypes.data) + 4 * row * (x.size // x.shape[0])  # type: ignore[no-any-return]


@kernel()
def _parts(block: Array) -> tuple[Array, Array, Array, Array]:
    """Queries, sums, tops and totals of a block [2 * D + 2, LANES]."""
    D = block.shape[0] // 2 - 1
    return block[:D], block[D : 2 * D], block[2 * D], block[2 * D + 1]


@kernel()
def _seen_by(row: int, group: int, seen: int, L: int) -> int:
    """How many keys a row of a block sees."""
    return min(L, seen + row // group)


@kernel()
def _begin(block: Array, head: int, start: int, rows: Rows, group: int, merge: bool) -> None:
    """Rows from `start` become a block's lanes; spare ones repeat the last. merge: see `flash.attend`."""
    q, o, lse2 = rows
    queries, sums, tops, totals = _parts(block)
    sums[:] = F(0)
    tops[:] = F(-np.inf)
    totals[:] = F(0)
    for j in range(LANES):
        row = min(start + j, q.shape[0] * group - 1)
        r, h = row // group, head * group + row % group
        source = q[r, h]
        for d in range(source.size):
            queries[d, j] = source[d]
        if merge:
            tops[j], totals[j] = lse2[r, h], F(1)
            for d in range(source.size):
                sums[d, j] = o[r, h, d]


@kernel()
def _end(block: Array, head: int, start: int, rows: Rows, group: int) -> None:
    """A block's lanes become rows of o and lse2."""
    _, o, lse2 = rows
    _, sums, tops, totals = _parts(block)
    for j in range(min(LANES, o.shape[0] * group - start)):
        r, h = (start + j) // group, head * group + (start + j) % group
        lse2[r, h] = tops[j] + np.log2(totals[j])
        share, target = F(1) / totals[j], o[r, h]
        for d in range(target.size):
            target[d] = sums[d, j] * share


@kernel(fastmath={"contract"})
def _number(stored: Scalar) -> Scalar:
    """A stored number as float32; bfloat16 is its upper half."""
    if isinstance(stored, np.int16):
        return from_bits(np.int32(stored) << np.int32(16))
    return stored


@kernel(fastmath={"contract"})
def _copy(x: Array, pages: Array, head: int, first: int, count: int, out: Array, factor: Scalar) -> None:
    """Tokens [first, first + count) of a head of x [P, page_size, Hkv, D], times `factor`."""
    page, slot = first // x.shape[1], first % x.shape[1]
    for i in range(count):
        source, target = x[pages[page], slot, head], out[i]
        for d in range(source.size):
            target[d] = _number(source[d]) * factor
        slot += 1
        if slot == x.shape[1]:
            page, slot = page + 1, 0


@kernel()
def _mask(scores: Array, first: int, count: int, start: int, group: int, seen: int) -> None:
    """Hides the keys that a lane's row does not see yet."""
    for j in range(LANES):
        for i in range(max(seen + (start + j) // group - first, 0), count):
            scores[i, j] = F(-np.inf)


@kernel(fastmath={"contract"})
def _to_weights(block: Array, scores: Array, count: int, factors: Array) -> None:
    """Scores become weights relative to the highest so far, and so do the sums."""
    _, sums, tops, totals = _parts(block)
    factors[:] = tops
    raise_tops(_at(scores, 0), count, _at(tops, 0))
    for j in range(LANES):
        change = factors[j] - tops[j]
        factors[j] = F(0) if change < LOW_LOG else exp2(change)
        totals[j] *= factors[j]
    scale(_at(sums, 0), len(sums), _at(factors, 0))
    exponentials(_at(scores, 0), count, _at(tops, 0), _at(totals, 0))


@kernel()
def _add_keys(block: Array, start: int, first: int, count: int, group: int, seen: int, space: Space) -> None:
    """One block over `count` keys, of which `first` is the first."""
    _, keys, values, scores, factors = space
    queries, sums, _, _ = _parts(block)
    D = len(queries)
    for i in range(0, count, ROWS):
        product(_at(keys, i), D, 1, _at(queries, 0), _at(scores, i), D)
    if first + count > seen + start // group:
        _mask(scores, first, count, start, group, seen)
    _to_weights(block, scores, count, factors)
    for d in range(0, D, ROWS):
        add_product(_at(values, 0) + 4 * d, 1, D, _at(scores, 0), _at(sums, d), count)


@kernel()
def _attend_gang(
    head: int,
    start: int,
    stop: int,
    rows: Rows,
    prompt: Prompt,
    factor: Scalar,
    seen: int,
    merge: bool,
    space: Space,
) -> None:
    """Rows [start, stop) of a KV head."""
    blocks, keys, values = space[0], space[1], space[2]
    k, v, pages, L = prompt
    group = rows[0].shape[1] // k.shape[2]
    count = (stop - start + LANES - 1) // LANES
    for b in range(count):
        _begin(blocks[b], head, start + b * LANES, rows, group, merge)
    end = _seen_by(stop - 1, group, seen, L)
    for first in range(0, end, KEYS):
        _copy(k, pages, head, first, min(KEYS, end - first), keys, factor)
        _copy(v, pages, head, first, min(KEYS, end - first), values, F(1))
        for b in range(count):
            row = start + b * LANES
            last = _seen_by(min(row + LANES, stop) - 1, group, seen, L)
            if last > first:
                _add_keys(blocks[b], row, first, min(KEYS, last - first), group, seen, space)
    for b in range(count):
        _end(blocks[b], head, start + b * LANES, rows, group)


@kernel()
def _zeros(rows: int, columns: int) -> Array:
    """float32 that begin at a cache line: a vector across two is slow."""
    memory = np.zeros(rows * columns + 16, np.float32)
    skip = -_at(memory, 0) % 64 // 4
    return memory[skip : skip + rows * columns].reshape(rows, columns)


@kernel()
def _attend_share(
    thread: int, threads: int, rows: Rows, prompt: Prompt, factor: Scalar, seen: int, merge: bool
) -> None:
    """A thread's gangs."""
    q, Hkv = rows[0], prompt[0].shape[2]
    count, D = q.shape[0] * (q.shape[1] // Hkv), (q.shape[2] + ROWS - 1) // ROWS * ROWS
    blocks = (count + LANES - 1) // LANES
    gang = max(1, min(MOST_BLOCKS, GANG // D, (blocks * Hkv + threads - 1) // threads))
    gangs = (blocks + gang - 1) // gang
    space = (
        _zeros(gang * (2 * D + 2), LANES).reshape(gang, 2 * D + 2, LANES),
        _zeros(KEYS, D),
        _zeros(KEYS, D),
        _zeros(KEYS, LANES),
        _zeros(1, LANES)[0],
    )
    for turn in range((gangs * Hkv + threads - 1) // threads):
        # there and back again, as causal gangs grow dearer
        place = turn * threads + (thread if turn % 2 == 0 else threads - 1 - thread)
        if place < gangs * Hkv:
            start = place % gangs * gang * LANES
            stop = min(start + gang * LANES, count)
            _attend_gang(place // gangs, start, stop, rows, prompt, factor, seen, merge, space)


@kernel(parallel=True, nogil=True)
def attend(
    q: Array,
    k: Array,
    v: Array,
    pages: Array,
    length: int,
    o: Array,
    lse2: Array,
    factor: Scalar,
    seen: int,
    merge: bool,
    threads: int,
) -> None:
    """See `flash.attend`; `factor` is the scale times log2(e). Token r of q sees the first seen + r keys."""
    for thread in prange(threads):
        rows, prompt = (q, o, lse2), (k, v, pages, length)
        _attend_share(np.int64(thread), threads, rows, prompt, factor, seen, merge)
