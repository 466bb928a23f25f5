"""Floors against numbers worked out by hand."""

import floors
import pytest
from floors import Heads, Shape, Work

HEADS = Heads(q=4, kv=2, dim=8)  # a row of q is 64 bytes, a token's keys and values 64
RATES = {"matrix": 1000.0, "copy": 100.0}


def test_the_slower_of_the_two_counts() -> None:
    assert Work(5000, 100).seconds(RATES) == 5.0
    assert Work(5000, 1000).seconds(RATES) == 10.0


def test_shared_attention_reads_each_prompt_once() -> None:
    work = floors.shared_attention(HEADS, rows=[3, 2], lengths=[10, 5])
    assert work.flop == 4 * (30 + 10) * 4 * 8  # a product with keys and one with values
    assert work.bytes == 5 * (64 + 64 + 16) + 15 * 64  # q, o and lse2 of five rows; fifteen tokens


def test_causal_attention_sees_half_of_a_whole_prompt() -> None:
    work = floors.causal_attention(HEADS, counts=[3], lengths=[3])
    assert work.flop == 4 * 6 * 4 * 8
    assert work.bytes == 3 * 2 * 64 + 3 * 64


def test_a_chunk_sees_all_that_came_before() -> None:
    work = floors.causal_attention(HEADS, counts=[2], lengths=[10])
    assert work.flop == 4 * (9 + 10) * 4 * 8
    assert work.bytes == 2 * 2 * 64 + 10 * 64


def test_tail_attention() -> None:
    stored = floors.tail_attention(HEADS, rows=2, tail_len=0, stored=True)
    assert stored.bytes == 2 * (3 * 64 + 16 + 2 * 64) and stored.flop == 4 * 2 * 4 * 8
    read = floors.tail_attention(HEADS, rows=2, tail_len=1, stored=False)
    assert read.bytes == stored.bytes and read.flop == 2 * stored.flop


def test_selection_is_bytes_alone() -> None:
    assert floors.selection(rows=2, vocab=100, children=7, kept=3) == Work(0.0, 800 + 28 + 60)


def shape() -> Shape:
    return Shape(layers=2, hidden=16, intermediate=32, vocab=50, heads=HEADS)


def test_weights_of_a_layer() -> None:
    # q and o: 16 x 32 each; k and v: 16 x 16 each; gate, up and down: 16 x 32 each
    assert shape().layer_weights == 2 * 512 + 2 * 256 + 3 * 512 == 3072
    assert shape().linear(rows=3).flop == 2 * 3 * 3072 * 2
    assert shape().linear(rows=3).bytes == (3072 * 2 + 2 * 3 * 16 * 2) * 2


def test_the_head_writes_float32() -> None:
    assert shape().head(rows=3) == Work(2 * 3 * 800, 800 * 2 + 4 * 3 * 50)


def test_a_decode_is_the_sum_of_its_levels() -> None:
    s, rows, length = shape(), [3, 3], 10
    first = s.head(2).seconds(RATES) + floors.selection(2, 50, 0, 6).seconds(RATES)
    step = s.linear(6).seconds(RATES) + s.head(6).seconds(RATES)
    step += floors.selection(6, 50, 0, 6).seconds(RATES)
    step += 2 * floors.shared_attention(HEADS, rows, [10, 10]).seconds(RATES)
    tails = floors.tail_attention(HEADS, 6, 0, True).seconds(RATES)
    tails += floors.tail_attention(HEADS, 6, 1, False).seconds(RATES)
    assert floors.decode(s, rows, length, 3, RATES) == pytest.approx(first + 2 * step + 2 * tails)


def test_a_prefill_is_its_layers_without_the_head() -> None:
    attention = floors.causal_attention(HEADS, [3, 5], [3, 5])
    expected = shape().linear(8).seconds(RATES) + 2 * attention.seconds(RATES)
    assert floors.prefill(shape(), [3, 5], RATES) == pytest.approx(expected)
    assert floors.prefill_flop(shape(), [3, 5]) == shape().linear(8).flop + 2 * attention.flop


def test_published_sizes_give_the_published_number_of_parameters() -> None:
    """A model of 1.7B: 28 layers, hidden 2,048, a tied head of 151,936."""
    big = Shape(28, 2048, 6144, 151936, Heads(16, 8, 128))
    total = big.layers * big.layer_weights + big.vocab * big.hidden
    assert total == pytest.approx(1.72e9, rel=0.01)
