"""Attention of a process on a GPU: one workspace, and a planned attention for every bucket of rows."""

import logging
from collections.abc import Callable, Sequence

from xgr_kernels.attention.paged import (
    AttentionSizes,
    PagedAttention,
    Workspace,
    device_facts,
    safest_algorithm,
    useful_algorithms,
)
from xgr_kernels.attention.paged.rules import OWN
from xgr_runtime.errors import ConfigError
from xgr_runtime.model.backends.selfcheck import attention_scale
from xgr_runtime.model.base import DTYPES, ModelBackend
from xgr_runtime.model.device.device import Device
from xgr_runtime.model.memory.kv_pool import KvPool

log = logging.getLogger(__name__)

MakeAttention = Callable[[int, int], PagedAttention]
"""(rows, requests) -> attention of at most so many, over one stream's workspace."""

MakeAttentions = Callable[[int, int], Sequence[PagedAttention]]
"""The same, by each kernel that is the quickest for some cohort of the bucket: see `quickest`."""


class DeviceAttention:
    """Makes attention for buckets of rows of requests whose KV lies in a pool."""

    def __init__(
        self, model: ModelBackend, pool: KvPool, device: Device, *, rows: int, requests: int, causal: bool
    ) -> None:
        """At most `rows` rows of `requests` requests; `causal` if a request's rows are its last tokens.

        Raises `ConfigError`, `ModelError`.
        """
        self._sizes = sizes = AttentionSizes(
            q_heads=model.q_heads,
            kv_heads=model.identity.kv_heads,
            head_dim=model.identity.head_dim,
            page_size=pool.page_size,
            dtype=DTYPES[model.identity.dtype],
            device=device.where,
            scale=attention_scale(model),
        )
        try:
            self._workspace = Workspace(sizes, rows=rows, requests=requests, page_entries=pool.pages)
        except ValueError as error:
            raise ConfigError(f"{error}: choose another --dtype, or --device cpu") from None
        if not sizes.by_flashinfer:
            log.warning("attention is slower than it could be: %s", sizes.why_own)
        self._causal = causal
        self._processor = device_facts(device.where)

    def one(self, rows: int, requests: int) -> PagedAttention:
        """By the kernel that loses least where it loses: for buckets with one graph. See `MakeAttention`."""
        return self._make(
            rows, requests, safest_algorithm(self._sizes, _served(rows), requests, self._processor)
        )

    def each(self, rows: int, requests: int) -> list[PagedAttention]:
        """See `MakeAttentions`."""
        algorithms = useful_algorithms(self._sizes, _served(rows), requests, self._processor)
        return [self._make(rows, requests, algorithm) for algorithm in algorithms]

    def _make(self, rows: int, requests: int, algorithm: str) -> PagedAttention:
        kind = PagedAttention
        if algorithm == OWN:
            from xgr_kernels.attention.paged.own import OwnAttention  # it needs Triton

            kind = OwnAttention
        return kind(
            self._sizes,
            self._workspace,
            rows=rows,
            requests=requests,
            page_entries=self._workspace.page_entries,
            causal=self._causal,
            algorithm=algorithm,
        )


def _served(rows: int) -> range:
    """The rows of the launches of a bucket: fewer than half go to a smaller one."""
    return range(rows // 2 + 1, rows + 1)
