"""Attention of a process on a GPU: one workspace, and a planned attention for every bucket of rows."""

from collections.abc import Callable

from xgr_kernels.attention.paged import (
    AttentionSizes,
    PagedAttention,
    Workspace,
    choose_algorithm,
    device_facts,
)
from xgr_runtime.errors import ConfigError
from xgr_runtime.model.backends.selfcheck import attention_scale
from xgr_runtime.model.base import DTYPES, ModelBackend
from xgr_runtime.model.device.device import Device
from xgr_runtime.model.memory.kv_pool import KvPool

MakeAttention = Callable[[int, int], PagedAttention]
"""(rows, requests) -> attention of at most so many, over one stream's workspace."""


def device_attention(
    model: ModelBackend, pool: KvPool, device: Device, *, rows: int, requests: int, causal: bool
) -> MakeAttention:
    """For buckets of at most `rows` rows of `requests` requests whose KV lies in `pool`.

    `causal` for prompts, whose last rows are their last tokens. Raises `ConfigError`, `ModelError`.
    """
    sizes = AttentionSizes(
        q_heads=model.q_heads,
        kv_heads=model.identity.kv_heads,
        head_dim=model.identity.head_dim,
        page_size=pool.page_size,
        dtype=DTYPES[model.identity.dtype],
        device=device.where,
        scale=attention_scale(model),
    )
    try:
        workspace = Workspace(sizes, rows=rows, requests=requests, page_entries=pool.pages)
    except ValueError as error:
        raise ConfigError(f"{error}: choose another --dtype, or --device cpu") from None
    multiprocessors, capability = device_facts(device.where)

    def make(rows: int, requests: int) -> PagedAttention:
        return PagedAttention(
            sizes,
            workspace,
            rows=rows,
            requests=requests,
            page_entries=pool.pages,
            causal=causal,
            algorithm=choose_algorithm(sizes, [rows], multiprocessors, capability),
        )

    return make
