"""The ways of prompt KV from a prefill to a decode worker, and a pair of workers for each."""

from dataclasses import dataclass
from typing import Any

from cluster import Cluster

PAGE = 8  # tokens
WAYS: dict[str, dict[str, Any]] = {
    "frames": {"kv_transfer": "frames"},
    "pull": {},
    "pull-into-other-pages": {"decode_settings": {"page_size": PAGE - 1}},
    "in-place": {"colocated": True},
}
# Whatever is small enough to hurt: each prompt takes several forwards.
SIZES: dict[str, dict[str, Any]] = {"plain": {}, "chunked": {"batch_tokens": 48, "chunk_bytes": 4096}}
SERVED = [
    ("frames", "chunked"),
    ("pull", "plain"),
    ("pull-into-other-pages", "chunked"),
    ("in-place", "plain"),
    ("in-place", "chunked"),
]


@dataclass(frozen=True)
class Served:
    """One prefill and one decode worker between whom KV goes this way, in pages of `PAGE` tokens."""

    way: str
    cluster: Cluster
