"""Which node the next process goes to: a function of the nodes and of who runs there already."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

PARTNER = {"prefill": "decode", "decode": "prefill"}
_ROUNDING = 1e-6  # parts of CPUs and GPUs are decimal


@dataclass(frozen=True)
class Node:
    """A node of the cluster, and all that it has."""

    id: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Held:
    """A process of ours on a node, and what it takes."""

    role: str
    node: str
    cpus: float
    gpus: float


def place(
    role: str,
    cpus: float,
    gpus: float,
    nodes: Sequence[Node],
    held: Collection[Held],
    avoid: Collection[str] = (),
    home: str = "",
) -> str:
    """The node for one more process of `role`, which takes that much; empty where none has room.

    Those in `avoid` only where no other has room. The fewest of the role come first, so that a node's end
    costs few of them; then the most partners that are without one of this role, for workers on one machine
    hand KV over through memory; then, for routers, `home`; then whoever holds the least.
    """
    room = [node for node in nodes if _has_room(node, cpus, gpus, held)]
    room = [node for node in room if node.id not in avoid] or room

    def rank(node: Node) -> tuple[int, int, bool, int, str]:
        roles = [one.role for one in held if one.node == node.id]
        same = roles.count(role)
        alone = max(0, roles.count(PARTNER.get(role, "")) - same)
        return same, -alone, role in PARTNER or node.id != home, len(roles), node.id

    return min(room, key=rank).id if room else ""


def _has_room(node: Node, cpus: float, gpus: float, held: Collection[Held]) -> bool:
    here = [one for one in held if one.node == node.id]
    return (
        sum(one.cpus for one in here) + cpus <= node.cpus + _ROUNDING
        and sum(one.gpus for one in here) + gpus <= node.gpus + _ROUNDING
    )
