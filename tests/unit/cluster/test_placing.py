"""Which node the next process goes to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.cluster.placing import Held, Node, place

NODES = [Node(name, 3.0, 1.0) for name in "abc"]


def filled(roles: list[str], nodes: list[Node] = NODES, home: str = "") -> list[Held]:
    """Those roles, placed one after another, each with a CPU."""
    held: list[Held] = []
    for role in roles:
        node = place(role, 1.0, 0.0, nodes, held, home=home)
        assert node
        held.append(Held(role, node, 1.0, 0.0))
    return held


def test_each_pair_is_together_and_pairs_are_apart() -> None:
    held = filled(["router", "prefill", "prefill", "decode", "decode"], home="b")
    assert [one.node for one in held] == ["b", "a", "c", "a", "c"]


def test_one_that_comes_again_goes_beside_who_is_alone() -> None:
    held = [Held("prefill", "c", 1.0, 0.0), Held("prefill", "a", 1.0, 0.0), Held("decode", "a", 1.0, 0.0)]
    assert place("decode", 1.0, 0.0, NODES, held) == "c"


def test_a_node_that_lost_something_is_the_last_resort() -> None:
    assert place("prefill", 1.0, 0.0, NODES, [], avoid={"a"}) == "b"
    assert place("prefill", 1.0, 0.0, NODES, [], avoid={"a", "b", "c"}) == "a"


def test_parts_of_a_gpu_fill_it_exactly() -> None:
    held = [Held("prefill", "a", 0.1, 0.1)] * 9
    assert place("decode", 0.1, 0.1, NODES[:1], held) == "a"
    assert place("decode", 0.1, 0.1, NODES[:1], [*held, held[0]]) == ""


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), min_size=1, max_size=4),
    st.lists(st.sampled_from(["router", "prefill", "decode"]), max_size=12),
)
def test_no_node_holds_more_than_it_has_and_none_with_room_is_missed(
    sizes: list[tuple[int, int]], roles: list[str]
) -> None:
    nodes = [Node(str(number), cpus / 2, float(gpus)) for number, (cpus, gpus) in enumerate(sizes)]
    held: list[Held] = []
    for role in roles:
        gpus = 0.0 if role == "router" else 0.5
        node = place(role, 1.0, gpus, nodes, held)
        room = [
            one.id
            for one in nodes
            if one.cpus - sum(h.cpus for h in held if h.node == one.id) >= 1.0
            and one.gpus - sum(h.gpus for h in held if h.node == one.id) >= gpus
        ]
        assert node in room if room else node == ""
        if node:
            held.append(Held(role, node, 1.0, gpus))
