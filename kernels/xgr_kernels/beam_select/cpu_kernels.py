"""The compiled half of beam selection on CPU: row statistics, threshold, exact choice.

One file on purpose: see `xgr_kernels.cpu.compiled` for what numba's cache notices.
Arrays of a catalog enter as addresses, so that one compilation serves every catalog, memory-mapped or not.

The story, from the bottom: `select` finds each row's children, takes their statistics row by row, then
chooses request by request. A child's score grows with its logit, so a block's largest logit bounds the block;
the W-th largest of these bounds is a score that W candidates reach: nothing below it need be looked at.
"""

from typing import Any

import numba
import numpy as np
from numba import prange

from xgr_kernels.cpu.compiled import (
    Array,
    F,
    Scalar,
    count_bits,
    exp,
    from_bits,
    kernel,
    maximum,
    pointer,
    to_bits,
)

Level = tuple[Any, ...]  # (is the level that of leaves, tokens, lo, bits, rank, deny) of a request

carray: Any = numba.carray  # type: ignore[attr-defined]
BLOCK = 64  # children under one bound
CHUNK = (
    16 * BLOCK
)  # floats summed in float32 lanes before they join a float64 sum; stays in the first-level cache
_WINDOW = 64  # words of a filter that are counted one after the other
ALL = np.int64(2**63 - 1)  # the cut that every candidate passes

# Columns of the request table handed to `select`
ROW_START, ROW_END, WIDTH, OVER, LEAF_LEVEL, NODES, TOKENS, LO, BITS, WORDS, RANK, RANKS, DENY, DENIED = (
    range(14)
)
COLUMNS = 14
VOCAB, LEGAL, GIVEN = range(3)  # what a row's log-sum-exp is over
NORMALISERS = {"vocab": VOCAB, "legal": LEGAL, "given": GIVEN}


# ---- log-sum-exp -------------------------------------------------------------------------------------------


@kernel(fastmath={"reassoc", "nsz"})
def _sum_exp(x: Array, top: Scalar) -> Scalar:
    total = F(0)
    for i in range(x.size):
        total += exp(x[i] - top)
    return total


@kernel(fastmath={"nsz"})
def _largest(x: Array) -> Scalar:
    """The largest of x, -inf for none; NaN if x holds one."""
    top = F(-np.inf)
    for i in range(x.size):
        top = maximum(x[i], top)
    return top


@kernel()
def _absorb(x: Array, top: Scalar, total: Scalar, maxima: Array) -> tuple[Scalar, Scalar]:
    """Joins x to a running sum of exp(. - top), NaN if x holds one; writes block maxima [ceil(n / BLOCK)]."""
    for start in range(0, x.size, CHUNK):
        chunk = x[start : start + CHUNK]
        peak = F(-np.inf)
        for block in range(0, chunk.size, BLOCK):
            largest = _largest(chunk[block : block + BLOCK])
            maxima[(start + block) // BLOCK] = largest
            peak = largest if largest > peak else peak
        if peak > top:
            total *= np.exp(np.float64(top) - np.float64(peak))
            top = peak
        if top < np.inf:
            total += np.float64(_sum_exp(chunk, top if top > -np.inf else F(0)))
    return top, total


@kernel()
def _finish(top: Scalar, total: Scalar) -> Scalar:
    """The float32 log-sum-exp of a running sum; NaN for NaN or +inf among the terms, -inf for none."""
    if np.isnan(total) or not top < np.inf:
        return F(np.nan)
    return F(np.float64(top) + np.log(total)) if top > -np.inf else F(-np.inf)


# ---- the trie and its filters ------------------------------------------------------------------------------


@kernel()
def _lower_bound(values: Array, wanted: int, first: int, last: int) -> int:
    """The first index in [first, last) whose value is at least `wanted`, else `last`; values ascend."""
    while first < last:
        middle = (first + last) >> 1
        if values[middle] < wanted:
            first = middle + 1
        else:
            last = middle
    return first


@kernel()
def _allowed_before(bits: Array, rank: Array, leaf: int) -> Scalar:
    """How many of the leaves [0, leaf) the bits allow."""
    if bits.size == 0:
        return np.int64(leaf)
    count = np.int64(rank[leaf >> 9])
    for word in range((leaf >> 9) << 3, leaf >> 6):
        count += count_bits(bits[word])
    if leaf & 63:
        count += count_bits(bits[leaf >> 6] & ((np.uint64(1) << np.uint64(leaf & 63)) - np.uint64(1)))
    return count


@kernel()
def _load(x: Array, trie: Level, first: int, last: int, values: Array) -> int:
    """values[i] = logit of node first + i, or -inf if it is dead. Returns the number of live ones."""
    _, tokens, _, bits, _, deny = trie
    if bits.size > 0 or deny.size > 0:
        live: int = _load_live(x, trie, first, last, values)
        return live
    n = last - first
    start, end = tokens[first], tokens[last - 1]
    if end - start == n - 1:
        values[:n] = x[start : end + 1]
    else:
        for i in range(n):
            values[i] = x[tokens[first + i]]
    return n


@kernel()
def _load_live(x: Array, trie: Level, first: int, last: int, values: Array) -> int:
    """`_load` with a filter. A node is alive if more leaves in it are allowed than are denied."""
    leaf_level, tokens, lo, bits, rank, deny = trie
    n = last - first
    low, end = (first, last) if leaf_level else (np.int64(lo[first]), np.int64(lo[last]))
    denied = _lower_bound(deny, low, 0, deny.size)
    none_denied = denied == deny.size or deny[denied] >= end
    before = _allowed_before(bits, rank, low)
    if none_denied and _allowed_before(bits, rank, end) == before:
        values[:n] = F(-np.inf)
        return 0
    if none_denied and bits.size > 0 and end - low <= _WINDOW * 64:
        within: int = _load_window(x, tokens, lo, bits, leaf_level, first, n, values)
        return within
    live = 0
    for i in range(n):
        high = first + i + 1 if leaf_level else np.int64(lo[first + i + 1])
        after = _allowed_before(bits, rank, high)
        alive = after - before
        before = after
        while denied < deny.size and deny[denied] < high:
            alive -= 1
            denied += 1
        values[i] = x[tokens[first + i]] if alive > 0 else F(-np.inf)
        live += alive > 0
    return live


@kernel()
def _load_window(
    x: Array, tokens: Array, lo: Array, bits: Array, leaf_level: bool, first: int, n: int, values: Array
) -> int:
    """`_load_live` where few leaves lie under the nodes: counts allowed leaves from word to word."""
    counts = np.empty(n + 1, np.int64)
    start = first if leaf_level else np.int64(lo[first])
    at, total = start >> 6, np.int64(0)
    word = bits[at]
    for i in range(n + 1):
        leaf = first + i if leaf_level else np.int64(lo[first + i])
        while at < leaf >> 6:
            total += count_bits(word)
            at += 1
            word = bits[at] if at < bits.size else np.uint64(0)
        below = (np.uint64(1) << np.uint64(leaf & 63)) - np.uint64(1)
        counts[i] = total + count_bits(word & below)
    live = 0
    for i in range(n):
        alive = counts[i + 1] > counts[i]
        values[i] = x[tokens[first + i]] if alive else F(-np.inf)
        live += alive
    return live


@kernel()
def _trie_of(request: Array) -> Level:
    """The level and filter of one request, as arrays over their addresses."""
    return (
        request[LEAF_LEVEL] == 1,
        carray(pointer(request[TOKENS]), request[NODES], np.int32),
        carray(pointer(request[LO]), request[NODES] + 1, np.int32),
        carray(pointer(request[BITS]), request[WORDS], np.uint64),
        carray(pointer(request[RANK]), request[RANKS], np.uint32),
        carray(pointer(request[DENY]), request[DENIED], np.int32),
    )


@kernel()
def _children(trie: Level, lo: int, hi: int) -> tuple[Scalar, Scalar]:
    """The nodes of the level whose first leaf lies in [lo, hi)."""
    leaf_level, tokens, first_leaf, _, _, _ = trie
    if leaf_level:
        return np.int64(lo), np.int64(hi)
    first = _lower_bound(first_leaf, lo, 0, tokens.size)
    return np.int64(first), np.int64(_lower_bound(first_leaf, hi, first, tokens.size))


# ---- pass 1: a row's log-sum-exp and the bounds of its blocks of children ----------------------------------


@kernel()
def _row_statistics(
    x: Array, trie: Level, over: int, first: int, last: int, maxima: Array
) -> tuple[Scalar, int]:
    """(lse, live children) of a row; lse is NaN if its logits hold NaN or +inf, and 0 if they are `GIVEN`.

    Fills maxima [ceil(children / BLOCK)] with the largest live logit of each block, -inf for none.
    """
    _, tokens, _, bits, _, deny = trie
    unused = np.empty((x.size + BLOCK - 1) // BLOCK, np.float32)
    top, total = F(-np.inf), np.float64(0)
    n = last - first
    if (
        n > 0
        and tokens[last - 1] - tokens[first] == n - 1
        and bits.size == 0
        and deny.size == 0
        and over == VOCAB
    ):
        start, end = tokens[first], tokens[last - 1] + 1
        top, total = _absorb(x[:start], top, total, unused)
        top, total = _absorb(x[start:end], top, total, maxima)
        top, total = _absorb(x[end:], top, total, unused)
        return _finish(top, total), n
    top, total = _absorb(x, top, total, unused)
    lse = _finish(top, total)
    top, total, live = F(-np.inf), np.float64(0), 0
    values = np.empty(BLOCK, np.float32)
    for block in range(first, last, BLOCK):
        size = min(BLOCK, last - block)
        live += _load(x, trie, block, block + size, values)
        at = (block - first) // BLOCK
        if over == LEGAL:
            top, total = _absorb(values[:size], top, total, maxima[at : at + 1])
        else:
            maxima[at] = _largest(values[:size])
    if over == LEGAL and not np.isnan(lse):
        lse = _finish(top, total)
    if over == GIVEN and not np.isnan(lse):
        lse = F(0)
    return lse, live


# ---- pass 2: the exact choice ------------------------------------------------------------------------------


@kernel()
def _score(score: Scalar, logit: Scalar, lse: Scalar) -> Scalar:
    """The score of a child, rounded as the definition says; adding 0 turns -0 into 0."""
    return (score + (logit - lse)) + F(0)


@kernel()
def _order(score: Scalar) -> Scalar:
    """An int64 in 32 bits, smaller for a better score."""
    bits = np.int64(to_bits(score))
    return ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@kernel()
def _floor(cut: Scalar) -> Scalar:
    """The score of a cut: nothing below it can pass, so one comparison of floats turns most children away."""
    if cut == ALL:
        return F(-np.inf)
    bits = ~(cut >> 32)
    return from_bits(np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)))


@kernel()
def _keep_smallest(keys: Array, n: int, wanted: int) -> None:
    """Quickselect, after Hoare: the `wanted` smallest of keys[:n] move to the front, their largest last."""
    low, high, at = 0, n - 1, wanted - 1
    while low < high:
        a, b, c = keys[low], keys[(low + high) >> 1], keys[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            return


@kernel()
def _push(keys: Array, n: int, cut: Scalar, key: Scalar, wanted: int) -> tuple[int, Scalar]:
    """(n, cut) after adding a key that passes; a full buffer keeps its `wanted` best and lowers the cut."""
    keys[n] = key
    n += 1
    if n == keys.size:
        _keep_smallest(keys, n, wanted)
        n, cut = wanted, keys[wanted - 1]
    return n, cut


@kernel()
def _threshold(
    keys: Array, order: Array, wanted: int, scores: Array, lse: Array, maxima: Array, block_offset: Array
) -> Scalar:
    """The cut that the `wanted`-th largest block bound sets: as many candidates reach it. ALL if too few."""
    n, cut = 0, ALL
    for row_key in order:
        r = row_key & 0xFFFFFFFF
        if row_key >> 32 > cut >> 32:
            break
        for block in range(block_offset[r], block_offset[r + 1]):
            if maxima[block] > -np.inf:
                key = (_order(_score(scores[r], maxima[block], lse[r])) << 32) | 0xFFFFFFFF
                if key <= cut:
                    n, cut = _push(keys, n, cut, key, wanted)
    if n >= wanted:
        _keep_smallest(keys, n, wanted)
        cut = keys[wanted - 1]
    return cut


@kernel()
def _collect(
    keys: Array,
    order: Array,
    wanted: int,
    cut: Scalar,
    x: Array,
    trie: Level,
    scores: Array,
    lse: Array,
    first: Array,
    child_offset: Array,
    maxima: Array,
    block_offset: Array,
) -> tuple[int, int, int]:
    """Fills keys with the best candidates. Returns (how many, rows looked at, children looked at)."""
    n, rows, visited = 0, 0, 0
    values = np.empty(BLOCK, np.float32)
    for row_key in order:
        r = row_key & 0xFFFFFFFF
        if row_key >> 32 > cut >> 32:
            break
        rows += 1
        children = child_offset[r + 1] - child_offset[r]
        for block in range(block_offset[r], block_offset[r + 1]):
            if not maxima[block] > -np.inf or _order(_score(scores[r], maxima[block], lse[r])) > cut >> 32:
                continue
            start = (block - block_offset[r]) * BLOCK
            size = min(BLOCK, children - start)
            _load(x[r], trie, first[r] + start, first[r] + start + size, values)
            visited += size
            floor = _floor(cut)
            for i in range(size):
                score = _score(scores[r], values[i], lse[r])
                if score >= floor and values[i] > -np.inf:
                    key = (_order(score) << 32) | (child_offset[r] + start + i)
                    if key <= cut:
                        n, cut = _push(keys, n, cut, key, wanted)
    if n > wanted:
        _keep_smallest(keys, n, wanted)
        n = wanted
    keys[:n].sort()
    return n, rows, visited


@kernel()
def _choose(
    request: Array,
    x: Array,
    scores: Array,
    lse: Array,
    first: Array,
    child_offset: Array,
    block_offset: Array,
    maxima: Array,
    out_score: Array,
    out_node: Array,
) -> tuple[int, int, int, Scalar]:
    """Writes a request's children, best first. All arrays hold its rows only, child_offset starting at 0.

    Returns (results, rows looked at, children looked at, cut).
    """
    R = scores.size
    wanted = min(request[WIDTH], child_offset[R])
    if wanted == 0:
        return 0, 0, 0, ALL
    trie = _trie_of(request)
    order = np.empty(R, np.int64)
    n = 0
    for r in range(R):
        top = F(-np.inf)
        if block_offset[r + 1] > block_offset[r]:
            top = _largest(maxima[block_offset[r] : block_offset[r + 1]])
        if top > -np.inf:
            order[n] = (_order(_score(scores[r], top, lse[r])) << 32) | r
            n += 1
    order = np.sort(order[:n])
    keys = np.empty(4 * wanted + 64, np.int64)
    cut = _threshold(keys, order, wanted, scores, lse, maxima, block_offset)
    n, rows, visited = _collect(
        keys, order, wanted, cut, x, trie, scores, lse, first, child_offset, maxima, block_offset
    )
    for i in range(n):
        ordinal = keys[i] & 0xFFFFFFFF
        r = np.searchsorted(child_offset, ordinal, side="right") - 1
        node = first[r] + ordinal - child_offset[r]
        token = trie[1][node]
        out_score[i] = _score(scores[r], x[r, token], lse[r])
        out_node[i, 0] = token
        out_node[i, 1] = r
        out_node[i, 2] = node if trie[0] else trie[2][node]
        out_node[i, 3] = node + 1 if trie[0] else trie[2][node + 1]
    return n, rows, visited, cut


@kernel(parallel=True)
def select(
    logits: int, V: int, requests: Array, row_request: Array, scores: Array, lo: Array, hi: Array
) -> tuple[Array, ...]:
    """Beam selection of a whole batch.

    logits: address of [R, V] float32; requests [B, COLUMNS] int64; row_request [R] int64; scores [R] float32;
    lo, hi [R] int32. Returns (lse [R] float32, child_offset [R+1], counts [B, 5]: results, rows looked at,
    children looked at, cut, invalid; out_offset [B+1], score [N] float32, node [N, 4] int32: token, parent,
    lo, hi).
    Results of request b start at out_offset[b].
    """
    R, B = scores.size, len(requests)
    x = carray(pointer(logits), (R, V), np.float32)
    first = np.zeros(R, np.int64)
    child_offset = np.zeros(R + 1, np.int64)
    block_offset = np.zeros(R + 1, np.int64)
    for r in range(R):
        first[r], last = _children(_trie_of(requests[row_request[r]]), lo[r], hi[r])
        child_offset[r + 1] = child_offset[r] + last - first[r]
        block_offset[r + 1] = block_offset[r] + (last - first[r] + BLOCK - 1) // BLOCK
    maxima = np.empty(block_offset[R], np.float32)
    lse = np.empty(R, np.float32)
    bad = np.zeros(R, np.bool_)
    for r in prange(R):
        request = requests[row_request[r]]
        last = first[r] + child_offset[r + 1] - child_offset[r]
        bounds = maxima[block_offset[r] : block_offset[r + 1]]
        lse[r], live = _row_statistics(x[r], _trie_of(request), request[OVER], first[r], last, bounds)
        bad[r] = np.isnan(lse[r]) or not scores[r] < np.inf or (live > 0 and not lse[r] > -np.inf)

    out_offset = np.zeros(B + 1, np.int64)
    for b in range(B):
        children = child_offset[requests[b, ROW_END]] - child_offset[requests[b, ROW_START]]
        out_offset[b + 1] = out_offset[b] + min(requests[b, WIDTH], children)
    out_score = np.empty(out_offset[B], np.float32)
    out_node = np.empty((out_offset[B], 4), np.int32)
    counts = np.zeros((B, 5), np.int64)
    for b in prange(B):
        start, end = requests[b, ROW_START], requests[b, ROW_END]
        if bad[start:end].any():
            counts[b, 4] = 1
        else:
            counts[b, :4] = _choose(
                requests[b],
                x[start:end],
                scores[start:end],
                lse[start:end],
                first[start:end],
                child_offset[start : end + 1] - child_offset[start],
                block_offset[start : end + 1],
                maxima,
                out_score[out_offset[b] : out_offset[b + 1]],
                out_node[out_offset[b] : out_offset[b + 1]],
            )
    return lse, child_offset, counts, out_offset, out_score, out_node
