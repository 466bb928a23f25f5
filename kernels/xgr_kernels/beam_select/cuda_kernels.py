"""The Triton half of beam selection: row statistics, threshold, compaction, ranking.

One file on purpose, from the bottom up: the story is told in `cuda.Selector`, which launches these in order.
They also run on CPU tensors under TRITON_INTERPRET=1. Names: p_ pointer, o_ offset from one row to the next.

Catalogs and filters are addresses in the request table, so one compiled kernel, and one captured graph,
serves all of them. Every candidate has a key of its own, larger for a better one, in 64 bits:

    (score as an int32 of the same order) << 32  |  ~(parent << 20 | token)

A sum of exponentials is carried as (top, total): the largest x seen, and the sum of exp(x - top); (LOWEST, 0)
is the empty sum. A NaN or a +inf among the x ends as a NaN total, with no test in the loop.
"""

import triton
import triton.language as tl

# Columns of the request table, int64
ROW_BEGIN = tl.constexpr(0)
ROW_END = tl.constexpr(1)
OUT_BEGIN = tl.constexpr(2)  # first row of the answer
OUT_END = tl.constexpr(3)  # rows up to here that the answer leaves empty become dead
WIDTH = tl.constexpr(4)
LEGAL = tl.constexpr(5)  # 1 for the softmax over legal children
LEVEL = tl.constexpr(6)
NODES = tl.constexpr(7)  # of the level
TOKENS = tl.constexpr(8)  # address of int32 [NODES]
LO = tl.constexpr(9)  # address of int32 [NODES + 1]; 0 at the last level, whose nodes are leaves
BITS = tl.constexpr(10)  # address of the live leaves, uint64; 0 if all are
RANK = tl.constexpr(11)  # address of the ranks of BITS, uint32 per 512 leaves
DENY = tl.constexpr(12)  # address of sorted leaves, int32
DENIED = tl.constexpr(13)  # how many
FIRST_TOKEN = tl.constexpr(14)  # whose logits are column 0
PASSES_OVER = tl.constexpr(15)  # 1 if the level may have more live nodes than WIDTH
COLUMNS = tl.constexpr(16)

# Columns of a beam, int32
TOKEN = tl.constexpr(0)
SCORE = tl.constexpr(1)  # bits of a float32
FIRST_LEAF = tl.constexpr(2)
END_LEAF = tl.constexpr(3)
ANCESTORS = tl.constexpr(4)

TOKEN_BITS = tl.constexpr(20)
MOST_TOKENS = tl.constexpr(2**20)  # of a vocabulary
MOST_ROWS = tl.constexpr(2**12)  # of one request
LOG2_E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))
LOWEST = tl.constexpr(-3.4028234663852886e38)  # the least finite float32
NO_KEY = tl.constexpr(-(2**63))  # below the key of any candidate


# ---- log-sum-exp -------------------------------------------------------------------------------------------


@triton.jit
def _absorb(top: tl.tensor, total: tl.tensor, x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Each lane's sum with one more term; one exponential serves both the old total and the new term."""
    shrink = tl.exp2(-tl.abs(x - top) * LOG2_E)
    total = tl.where(x > top, total * shrink + 1.0, total + shrink)
    return tl.where(x > top, x, top), total


@triton.jit
def _join(top: tl.tensor, total: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The sum of all lanes."""
    largest = tl.max(top, axis=0)
    return largest, tl.sum(total * tl.exp2((top - largest) * LOG2_E), axis=0)


@triton.jit
def _log(top: tl.tensor, total: tl.tensor) -> tl.tensor:
    """The natural log-sum-exp, rounded once; NaN for a NaN total, -inf for the empty sum."""
    return (top.to(tl.float64) + tl.log(total.to(tl.float64))).to(tl.float32)


# ---- keys and their order ----------------------------------------------------------------------------------


@triton.jit
def _score(score: tl.tensor, logit: tl.tensor, lse: tl.tensor) -> tl.tensor:
    """The score of a child, rounded as the definition says; adding 0 turns -0 into 0."""
    return (score + (logit - lse)) + 0.0


@triton.jit
def _ordered(bits: tl.tensor) -> tl.tensor:
    """float32 bits to an int32 of the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key(score: tl.tensor, parent: tl.tensor, token: tl.tensor) -> tl.tensor:
    image = _ordered(score.to(tl.int32, bitcast=True)).to(tl.int64)
    place = ~((parent << TOKEN_BITS) | token)
    return (image << 32) | (place.to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def _of_key(key: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(bits of the score, parent, token) of a key."""
    place = ~key.to(tl.int32)
    parent = (place >> TOKEN_BITS) & (MOST_ROWS - 1)
    return _ordered((key >> 32).to(tl.int32)), parent, place & (MOST_TOKENS - 1)


@triton.jit
def _nth_largest(values: tl.tensor, n: tl.tensor, BITS_OF_VALUE: tl.constexpr) -> tl.tensor:
    """The n-th largest of signed integers, counted with repeats; n is at most their number.

    The largest value that n of them reach, found bit by bit from the sign down.
    """
    zero = (n * 0).to(values.dtype)
    lowest = zero + (-(1 << (BITS_OF_VALUE - 1)))
    found = tl.where(tl.sum((values >= 0).to(tl.int32), axis=0) >= n, zero, lowest)
    bit = zero + (1 << (BITS_OF_VALUE - 2))
    for _ in range(BITS_OF_VALUE - 1):
        reached = tl.sum((values >= found + bit).to(tl.int32), axis=0)
        found = tl.where(reached >= n, found + bit, found)
        bit = bit >> 1
    return found


# ---- the trie and its filters ------------------------------------------------------------------------------


@triton.jit
def _column(p_table: tl.tensor, request: tl.tensor, COLUMN: tl.constexpr) -> tl.tensor:
    return tl.load(p_table + request * COLUMNS + COLUMN)


@triton.jit
def _at_token_0(p_logits: tl.tensor, p_table: tl.tensor, request: tl.tensor) -> tl.tensor:
    """Where token 0 would have its logits: rows may hold those of later tokens alone."""
    return p_logits - _column(p_table, request, FIRST_TOKEN)


@triton.jit
def _int32s(address: tl.tensor) -> tl.tensor:
    return address.to(tl.pointer_type(tl.int32))


@triton.jit
def _filter(
    p_table: tl.tensor, request: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The columns that say which nodes live."""
    return (
        _column(p_table, request, LO),
        _column(p_table, request, BITS),
        _column(p_table, request, RANK),
        _column(p_table, request, DENY),
        _column(p_table, request, DENIED).to(tl.int32),
    )


@triton.jit
def _count_below(p_sorted: tl.tensor, n: tl.tensor, wanted: tl.tensor, MOST_LOG2: tl.constexpr) -> tl.tensor:
    """How many of n ascending int32 are below `wanted`, for each lane; n < 2**(MOST_LOG2 + 1)."""
    found = wanted * 0
    for halving in tl.static_range(MOST_LOG2 + 1):
        probe = found + (1 << (MOST_LOG2 - halving))
        value = tl.load(p_sorted + probe - 1, mask=probe <= n, other=0)
        found = tl.where((probe <= n) & (value < wanted), probe, found)
    return found


@triton.jit
def _first_at_least(
    p_sorted: tl.tensor, wanted: tl.tensor, first: tl.tensor, last: tl.tensor, LANES: tl.constexpr
) -> tl.tensor:
    """The first index in [first, last) of an ascending int32 that is at least `wanted`, else `last`.

    All lanes probe at once, so that a million nodes take three trips to memory.
    """
    lane = tl.arange(0, LANES)
    while first < last:
        share = (last - first + LANES - 1) // LANES
        probe = first + lane * share + share - 1  # the last entry of each lane's share
        value = tl.load(p_sorted + probe, mask=probe < last, other=0)
        below = tl.sum(((probe < last) & (value < wanted)).to(tl.int32), axis=0)
        first = first + below * share
        last = tl.minimum(last, first + share - 1)
    return first


@triton.jit
def _count_bits(word: tl.tensor) -> tl.tensor:
    """The number of set bits of each uint64, as int32."""
    word = word - ((word >> 1) & 0x5555555555555555)
    word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((word * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def _allowed_before(bits: tl.tensor, rank: tl.tensor, leaf: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """How many of the leaves [0, leaf) the bitmap allows."""
    p_bits = bits.to(tl.pointer_type(tl.uint64))
    count = tl.load(_int32s(rank) + (leaf >> 9), mask=mask, other=0)
    for part in tl.static_range(8):
        word = ((leaf >> 9) << 3) + part
        below = leaf - (word << 6)  # bits of the word that count; 64 or more: all
        value = tl.load(p_bits + word, mask=mask & (below > 0), other=0)
        # A shift by 64 is undefined, so a whole word is shifted by 0.
        count += _count_bits(value << tl.where(below >= 64, 0, 64 - (below & 63)).to(tl.uint64))
    return count


@triton.jit
def _leaves(lo: tl.tensor, node: tl.tensor, mask: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The leaves [first, end) under each node."""
    first = node
    end = node + 1
    if lo != 0:
        first = tl.load(_int32s(lo) + node, mask=mask, other=0)
        end = tl.load(_int32s(lo) + node + 1, mask=mask, other=0)
    return first, end


@triton.jit
def _alive(
    lo: tl.tensor,
    bits: tl.tensor,
    rank: tl.tensor,
    deny: tl.tensor,
    denied: tl.tensor,
    node: tl.tensor,
    mask: tl.tensor,
) -> tl.tensor:
    """Those of `mask` whose node has a live leaf; without a filter, `mask`."""
    live = mask
    if (bits != 0) | (denied != 0):
        first, end = _leaves(lo, node, mask)
        leaves = end - first
        if bits != 0:
            if lo != 0:
                leaves = _allowed_before(bits, rank, end, mask) - _allowed_before(bits, rank, first, mask)
            else:
                word = tl.load(bits.to(tl.pointer_type(tl.uint64)) + (node >> 6), mask=mask, other=0)
                leaves = ((word >> (node & 63).to(tl.uint64)) & 1).to(tl.int32)
        if denied != 0:
            DENIED_LOG2: tl.constexpr = 8
            leaves -= _count_below(_int32s(deny), denied, end, DENIED_LOG2)
            leaves += _count_below(_int32s(deny), denied, first, DENIED_LOG2)
        live = mask & (leaves > 0)
    return live


# ---- pass 1: rows ------------------------------------------------------------------------------------------


@triton.jit
def row_statistics(
    p_logits: tl.tensor,
    p_owner: tl.tensor,
    p_now: tl.tensor,
    p_top: tl.tensor,
    p_total: tl.tensor,
    V: int,
    share: int,
    o_logits: int,
    o_beam: int,
    MOST_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (R, splits). The sum of exponentials of logits [share * split, share * (split + 1)) of a row."""
    row = tl.program_id(0)
    split = tl.program_id(1)
    p_beam = p_now + row * o_beam
    dead = tl.load(p_beam + FIRST_LEAF) >= tl.load(p_beam + END_LEAF)
    if (tl.load(p_owner + row) < 0) | dead:
        return
    lane = tl.arange(0, BLOCK)
    p_row = p_logits + row.to(tl.int64) * o_logits
    top = tl.full([BLOCK], LOWEST, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    begin = split * share
    for at in range(begin, tl.minimum(begin + share, V), BLOCK):
        x = tl.load(p_row + at + lane, mask=at + lane < V, other=-INF)
        top, total = _absorb(top, total, x)
    largest, sum_ = _join(top, total)
    tl.store(p_top + row * MOST_SPLITS + split, largest)
    tl.store(p_total + row * MOST_SPLITS + split, sum_)


@triton.jit(do_not_specialize=["splits"])
def find_children(
    p_logits: tl.tensor,
    p_owner: tl.tensor,
    p_now: tl.tensor,
    p_table: tl.tensor,
    p_top: tl.tensor,
    p_total: tl.tensor,
    p_lse: tl.tensor,
    p_first: tl.tensor,
    p_children: tl.tensor,
    p_invalid: tl.tensor,
    splits: int,
    o_logits: int,
    o_beam: int,
    MOST_SPLITS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Grid (R). The log-sum-exp of a row, its nodes [first, first + children), and whether it is valid."""
    row = tl.program_id(0)
    request = tl.load(p_owner + row)
    if request < 0:
        return
    p_beam = p_now + row * o_beam
    lo = tl.load(p_beam + FIRST_LEAF)
    hi = tl.load(p_beam + END_LEAF)
    if lo >= hi:
        tl.store(p_children + row, 0)
        return
    level_lo = _column(p_table, request, LO)
    first = lo
    end = hi
    if level_lo != 0:
        nodes = _column(p_table, request, NODES).to(tl.int32)
        first = _first_at_least(_int32s(level_lo), lo, lo * 0, nodes, LANES)
        # A child has a leaf at least, so there are no more children than leaves.
        end = _first_at_least(_int32s(level_lo), hi, first, tl.minimum(nodes - first, hi - lo) + first, LANES)
    tl.store(p_first + row, first)
    tl.store(p_children + row, end - first)

    split = tl.arange(0, MOST_SPLITS)
    top, total = _join(
        tl.load(p_top + row * MOST_SPLITS + split, mask=split < splits, other=LOWEST),
        tl.load(p_total + row * MOST_SPLITS + split, mask=split < splits, other=0.0),
    )
    lse = _log(top, total)
    score = tl.load(p_beam + SCORE).to(tl.float32, bitcast=True)
    good = (lse < INF) & (score < INF)  # false for NaN
    legal = _column(p_table, request, LEGAL) != 0
    if good & (legal | (lse == -INF)):
        tokens = _column(p_table, request, TOKENS)
        p_logits = _at_token_0(p_logits, p_table, request)
        filter_lo, bits, rank, deny, denied = _filter(p_table, request)
        lane = tl.arange(0, LANES)
        tops = tl.full([LANES], LOWEST, tl.float32)
        totals = tl.zeros([LANES], tl.float32)
        live = tl.zeros([LANES], tl.int32)
        for at in range(first, end, LANES):
            alive = _alive(filter_lo, bits, rank, deny, denied, at + lane, at + lane < end)
            token = tl.load(_int32s(tokens) + at + lane, mask=alive, other=0)
            p_x = p_logits + row.to(tl.int64) * o_logits + token
            tops, totals = _absorb(tops, totals, tl.load(p_x, mask=alive, other=-INF))
            live += alive.to(tl.int32)
        if legal:
            top, total = _join(tops, totals)
            lse = _log(top, total)
        good = (lse > -INF) | (tl.sum(live, axis=0) == 0)
    tl.store(p_lse + row, lse)
    if good == 0:  # of several rows perhaps, so an atomic
        tl.atomic_or(p_invalid + request, 1, sem="relaxed")


@triton.jit
def lay_out(
    p_table: tl.tensor,
    p_children: tl.tensor,
    p_invalid: tl.tensor,
    p_offset: tl.tensor,
    p_candidates: tl.tensor,
    p_threshold: tl.tensor,
    p_stored: tl.tensor,
    p_again: tl.tensor,
    LANES: tl.constexpr,
) -> None:
    """Grid (requests). Numbers a request's children from row to row, and resets its state.

    An invalid request has no candidates from here on.
    """
    request = tl.program_id(0)
    end = _column(p_table, request, ROW_END).to(tl.int32)
    seen = end * 0
    for at in range(_column(p_table, request, ROW_BEGIN).to(tl.int32), end, LANES):
        row = at + tl.arange(0, LANES)
        children = tl.load(p_children + row, mask=row < end, other=0)
        tl.store(p_offset + row, seen + tl.cumsum(children, axis=0) - children, mask=row < end)
        seen += tl.sum(children, axis=0)
    tl.store(p_candidates + request, tl.where(tl.load(p_invalid + request) != 0, 0, seen))
    tl.store(p_threshold + request, NO_KEY)
    tl.store(p_stored + request, 0)
    tl.store(p_again + request, 1)


# ---- pass 2: candidates ------------------------------------------------------------------------------------


@triton.jit
def _candidates(
    i: tl.tensor,
    inside: tl.tensor,
    p_logits: tl.tensor,
    p_now: tl.tensor,
    p_lse: tl.tensor,
    p_first: tl.tensor,
    p_offset: tl.tensor,
    tokens: tl.tensor,
    row_begin: tl.tensor,
    rows: tl.tensor,
    o_logits: int,
    o_beam: int,
    ROWS_LOG2: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """(parent, node, token, score, mask) of children i of a request; a logit of -inf leaves the mask."""
    parent = _count_below(p_offset + row_begin, rows, i + 1, ROWS_LOG2) - 1
    row = row_begin + tl.where(inside, parent, 0)
    node = tl.load(p_first + row, mask=inside, other=0) + i - tl.load(p_offset + row, mask=inside, other=0)
    token = tl.load(_int32s(tokens) + node, mask=inside, other=0)
    logit = tl.load(p_logits + row.to(tl.int64) * o_logits + token, mask=inside, other=-INF)
    before = tl.load(p_now + row * o_beam + SCORE, mask=inside, other=0).to(tl.float32, bitcast=True)
    score = _score(before, logit, tl.load(p_lse + row, mask=inside, other=0.0))
    return parent, node, token, score, inside & (logit > -INF)


@triton.jit
def bound_blocks(
    p_logits: tl.tensor,
    p_now: tl.tensor,
    p_table: tl.tensor,
    p_lse: tl.tensor,
    p_first: tl.tensor,
    p_offset: tl.tensor,
    p_candidates: tl.tensor,
    p_maxima: tl.tensor,
    o_logits: int,
    o_beam: int,
    ROWS_LOG2: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Grid (requests, programs). The best score of each of a program's BLOCKS blocks, -inf for none.

    Programs take the tiles of a request's children in turn; a block is a few lanes of all tiles of a program.
    So there are always as many blocks, all of one size, however skewed the catalog.
    """
    request = tl.program_id(0)
    program = tl.program_id(1)
    programs = tl.num_programs(1)
    candidates = tl.load(p_candidates + request)
    if candidates == 0:
        return
    row_begin = _column(p_table, request, ROW_BEGIN).to(tl.int32)
    rows = _column(p_table, request, ROW_END).to(tl.int32) - row_begin
    tokens = _column(p_table, request, TOKENS)
    p_logits = _at_token_0(p_logits, p_table, request)
    lo, bits, rank, deny, denied = _filter(p_table, request)
    best = tl.full([TILE], -INF, tl.float32)
    for at in range(program * TILE, candidates, programs * TILE):
        i = at + tl.arange(0, TILE)
        _, node, _, score, mask = _candidates(
            i, i < candidates, p_logits, p_now, p_lse, p_first, p_offset, tokens, row_begin, rows,
            o_logits, o_beam, ROWS_LOG2,
        )  # fmt: skip
        alive = _alive(lo, bits, rank, deny, denied, node, mask)
        best = tl.maximum(best, tl.where(alive, score, -INF))
    blocks = tl.max(tl.reshape(best, [BLOCKS, TILE // BLOCKS]), axis=1)
    tl.store(p_maxima + (request * programs + program) * BLOCKS + tl.arange(0, BLOCKS), blocks)


@triton.jit
def find_threshold(
    p_table: tl.tensor,
    p_candidates: tl.tensor,
    p_maxima: tl.tensor,
    p_threshold: tl.tensor,
    MAXIMA: tl.constexpr,
) -> None:
    """Grid (requests). The W-th largest block maximum: W candidates reach it, so nothing below is chosen."""
    request = tl.program_id(0)
    if tl.load(p_candidates + request) == 0:
        return
    maxima = tl.load(p_maxima + request * MAXIMA + tl.arange(0, MAXIMA))
    width = _column(p_table, request, WIDTH)
    image = _nth_largest(_ordered(maxima.to(tl.int32, bitcast=True)), width, 32)
    tl.store(p_threshold + request, image.to(tl.int64) << 32)


@triton.jit
def collect(
    p_logits: tl.tensor,
    p_now: tl.tensor,
    p_table: tl.tensor,
    p_lse: tl.tensor,
    p_first: tl.tensor,
    p_offset: tl.tensor,
    p_candidates: tl.tensor,
    p_threshold: tl.tensor,
    p_again: tl.tensor,
    p_stored: tl.tensor,
    p_keys: tl.tensor,
    p_nodes: tl.tensor,
    o_logits: int,
    o_beam: int,
    ROWS_LOG2: tl.constexpr,
    TILE: tl.constexpr,
    CAPACITY: tl.constexpr,
) -> None:
    """Grid (requests, programs). Stores the candidates that reach the threshold, in any order.

    Those beyond CAPACITY are counted and dropped. One atomic addition for each tile that has any.
    """
    request = tl.program_id(0)
    if tl.load(p_again + request) == 0:
        return
    candidates = tl.load(p_candidates + request)
    threshold = tl.load(p_threshold + request)
    row_begin = _column(p_table, request, ROW_BEGIN).to(tl.int32)
    rows = _column(p_table, request, ROW_END).to(tl.int32) - row_begin
    tokens = _column(p_table, request, TOKENS)
    p_logits = _at_token_0(p_logits, p_table, request)
    lo, bits, rank, deny, denied = _filter(p_table, request)
    for at in range(tl.program_id(1) * TILE, candidates, tl.num_programs(1) * TILE):
        i = at + tl.arange(0, TILE)
        parent, node, token, score, mask = _candidates(
            i, i < candidates, p_logits, p_now, p_lse, p_first, p_offset, tokens, row_begin, rows,
            o_logits, o_beam, ROWS_LOG2,
        )  # fmt: skip
        key = _key(score, parent, token)
        taken = _alive(lo, bits, rank, deny, denied, node, mask & (key >= threshold)).to(tl.int32)
        count = tl.sum(taken, axis=0)
        if count > 0:
            slot = tl.atomic_add(p_stored + request, count, sem="relaxed") + tl.cumsum(taken, axis=0) - 1
            fits = (taken != 0) & (slot < CAPACITY)
            tl.store(p_keys + request * CAPACITY + slot, key, mask=fits)
            tl.store(p_nodes + request * CAPACITY + slot, node, mask=fits)


@triton.jit
def tighten(
    p_table: tl.tensor,
    p_stored: tl.tensor,
    p_keys: tl.tensor,
    p_threshold: tl.tensor,
    p_again: tl.tensor,
    CAPACITY: tl.constexpr,
) -> None:
    """Grid (requests). Where more were found than stored, the W-th best of the stored is a higher threshold.

    W candidates reach it, and at least CAPACITY - W of those before do not.
    """
    request = tl.program_id(0)
    if tl.load(p_stored + request) <= CAPACITY:
        tl.store(p_again + request, 0)
        return
    keys = tl.load(p_keys + request * CAPACITY + tl.arange(0, CAPACITY))
    tl.store(p_threshold + request, _nth_largest(keys, _column(p_table, request, WIDTH), 64))
    tl.store(p_stored + request, 0)


@triton.jit
def emit(
    p_table: tl.tensor,
    p_now: tl.tensor,
    p_next: tl.tensor,
    p_stored: tl.tensor,
    p_keys: tl.tensor,
    p_nodes: tl.tensor,
    p_count: tl.tensor,
    p_overflow: tl.tensor,
    p_ceiling: tl.tensor,
    o_beam: int,
    T: tl.constexpr,
    CAPACITY: tl.constexpr,
    LANES: tl.constexpr,
    OTHERS: tl.constexpr,
) -> None:
    """Grid (requests, CAPACITY / LANES). Ranks the stored by counting; writes the best, then dead rows.

    Where WIDTH are kept and there were more, the last one's score bounds what is passed over: its program
    alone raises the request's ceiling, float32, to it.
    """
    request = tl.program_id(0)
    stored = tl.load(p_stored + request)
    if stored > CAPACITY:
        if tl.program_id(1) == 0:
            tl.store(p_overflow + request, 1)
        stored = stored * 0
    out_begin = _column(p_table, request, OUT_BEGIN).to(tl.int32)
    out_rows = _column(p_table, request, OUT_END).to(tl.int32) - out_begin
    width = _column(p_table, request, WIDTH).to(tl.int32)
    found = tl.minimum(stored, width)
    if tl.program_id(1) == 0:
        tl.store(p_count + request, found)
    if tl.program_id(1) * LANES >= tl.maximum(stored, out_rows):
        return
    i = tl.program_id(1) * LANES + tl.arange(0, LANES)
    key = tl.load(p_keys + request * CAPACITY + i, mask=i < stored, other=NO_KEY)
    node = tl.load(p_nodes + request * CAPACITY + i, mask=i < stored, other=0)
    rank = tl.zeros([LANES], tl.int32)
    if tl.program_id(1) * LANES < stored:
        for at in range(0, stored, OTHERS):
            j = at + tl.arange(0, OTHERS)
            other = tl.load(p_keys + request * CAPACITY + j, mask=j < stored, other=NO_KEY)
            rank += tl.sum((other[None, :] > key[:, None]).to(tl.int32), axis=1)
    chosen = (i < stored) & (rank < width)
    bits, parent, token = _of_key(key)
    first, end = _leaves(_column(p_table, request, LO), node, chosen)
    p_out = p_next + (out_begin + rank) * o_beam
    tl.store(p_out + TOKEN, token, mask=chosen)
    tl.store(p_out + SCORE, bits, mask=chosen)
    tl.store(p_out + FIRST_LEAF, first, mask=chosen)
    tl.store(p_out + END_LEAF, end, mask=chosen)
    last = chosen & (rank == width - 1) & (_column(p_table, request, PASSES_OVER) != 0)
    before = tl.load(p_ceiling + request + rank * 0, mask=last, other=-INF)
    higher = tl.maximum(before, bits.to(tl.float32, bitcast=True))
    tl.store(p_ceiling + request + rank * 0, higher, mask=last)

    row = _column(p_table, request, ROW_BEGIN).to(tl.int32) + parent
    level = _column(p_table, request, LEVEL)
    for t in tl.static_range(T):
        inherited = tl.load(p_now + row * o_beam + ANCESTORS + t, mask=chosen & (level > 0), other=0)
        tl.store(p_out + ANCESTORS + t, tl.where(level == t + 1, row, inherited), mask=chosen)

    dead = (i >= found) & (i < out_rows)
    p_dead = p_next + (out_begin + i) * o_beam
    for column in tl.static_range(ANCESTORS + T):
        tl.store(p_dead + column, -8388608 if column == SCORE else 0, mask=dead)  # the bits of -inf
