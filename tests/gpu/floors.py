"""The least time that work can take: its operations over the matrix rate or its bytes over the copy rate.

Plain arithmetic. Each input counts as read once and each output as written once; the longer time counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes of device memory read and written."""

    flop: float
    bytes: float

    def seconds(self, rates: Mapping[str, float]) -> float:
        """`rates` are matrix (FLOP/s) and copy (bytes/s, read and written)."""
        return max(self.flop / rates["matrix"], self.bytes / rates["copy"])

    def __add__(self, other: Work) -> Work:
        return Work(self.flop + other.flop, self.bytes + other.bytes)


@dataclass(frozen=True)
class Heads:
    """Sizes of one layer's attention."""

    q: int
    kv: int
    dim: int
    itemsize: int = 2

    @property
    def row(self) -> int:
        """Bytes of one row of q or o."""
        return self.q * self.dim * self.itemsize

    @property
    def token(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.kv * self.dim * self.itemsize


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated feed-forward layers and a tied head."""

    layers: int
    hidden: int
    intermediate: int
    vocab: int
    heads: Heads

    @property
    def layer_weights(self) -> int:
        """Parameters of one layer's projections."""
        heads = self.heads
        attention = self.hidden * heads.dim * (2 * heads.q + 2 * heads.kv)
        return attention + 3 * self.hidden * self.intermediate

    def linear(self, rows: int) -> Work:
        """All projections of all layers: weights are read once, activations at least once."""
        size = self.heads.itemsize
        read = self.layer_weights * size + 2 * rows * self.hidden * size
        return Work(2.0 * rows * self.layer_weights * self.layers, float(read) * self.layers)

    def head(self, rows: int) -> Work:
        """The vocabulary head, whose logits are float32."""
        weights = self.vocab * self.hidden
        return Work(2.0 * rows * weights, float(weights * self.heads.itemsize + 4 * rows * self.vocab))


def shared_attention(heads: Heads, rows: Sequence[int], lengths: Sequence[int]) -> Work:
    """rows[b] beams over lengths[b] prompt tokens each, for all b; one layer."""
    pairs = sum(R * L for R, L in zip(rows, lengths, strict=True))
    moved = sum(rows) * (2 * heads.row + 4 * heads.q) + sum(lengths) * heads.token
    return Work(4.0 * pairs * heads.q * heads.dim, float(moved))


def causal_attention(heads: Heads, counts: Sequence[int], lengths: Sequence[int]) -> Work:
    """The last counts[b] tokens of lengths[b], each over itself and those before it; one layer."""
    pairs = sum(n * (L - n) + n * (n + 1) / 2 for n, L in zip(counts, lengths, strict=True))
    moved = sum(counts) * 2 * heads.row + sum(lengths) * heads.token
    return Work(4.0 * pairs * heads.q * heads.dim, float(moved))


def tail_attention(heads: Heads, rows: int, tail_len: int, stored: bool) -> Work:
    """One layer: q, o and lse2 in, o out, the newest k and v in and perhaps stored, `tail_len` tokens in."""
    tokens = 1 + stored + tail_len
    return Work(
        4.0 * rows * (1 + tail_len) * heads.q * heads.dim,
        float(rows * (3 * heads.row + 4 * heads.q + tokens * heads.token)),
    )


def selection(rows: int, vocab: int, children: int, kept: int) -> Work:
    """Logits and the children's tokens are read once; 20 bytes of a beam are written. No matrix product."""
    return Work(0.0, float(4 * rows * vocab + 4 * children + 20 * kept))


def prefill_flop(shape: Shape, counts: Sequence[int]) -> float:
    """Operations of one forward over whole prompts, without the head."""
    return shape.linear(sum(counts)).flop + causal_attention(shape.heads, counts, counts).flop * shape.layers


def prefill(shape: Shape, counts: Sequence[int], rates: Mapping[str, float]) -> float:
    """Seconds of one forward over whole prompts, without the head."""
    attention = causal_attention(shape.heads, counts, counts).seconds(rates) * shape.layers
    return shape.linear(sum(counts)).seconds(rates) + attention


def decode(shape: Shape, rows: Sequence[int], length: int, depth: int, rates: Mapping[str, float]) -> float:
    """Seconds of all levels of a cohort: rows[b] beams of request b over `length` prompt tokens.

    Level 0 needs the head alone, from one row of each request; each further level a forward of all beams.
    """
    R, lengths = sum(rows), [length] * len(rows)
    first = shape.head(len(rows)).seconds(rates) + selection(len(rows), shape.vocab, 0, R).seconds(rates)
    step = shape.linear(R).seconds(rates) + shape.head(R).seconds(rates)
    step += selection(R, shape.vocab, 0, R).seconds(rates)
    step += shared_attention(shape.heads, rows, lengths).seconds(rates) * shape.layers
    tails = [
        tail_attention(shape.heads, R, level - 1, stored=level < depth - 1).seconds(rates)
        for level in range(1, depth)
    ]
    return first + step * (depth - 1) + sum(tails) * shape.layers
