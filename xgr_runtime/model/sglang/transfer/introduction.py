"""How a stock SGLang server introduces itself to our routers: `WorkerHello` inside its `/server_info`.

The answer comes from SGLang's scheduler process, so it also proves that its loop turns.
"""

from pathlib import Path
from typing import Any

import msgspec

from xgr_runtime.checkpoint import check_globbed, read_config, weight_files, weights_hash
from xgr_runtime.errors import ConfigError
from xgr_runtime.model.base import DTYPES
from xgr_runtime.model.sglang.transfer.memory import SglangKv
from xgr_runtime.wire.messages import PROTOCOL, Limits, Load, ModelIdentity, WorkerHello

# Flags of SGLang with which a checkpoint's files do not say what is computed, and their plain values.
_PLAIN = {"quantization": None, "rl_quant_profile": None, "json_model_override_args": "{}"}


def refuse_layout(args: Any, mode: Any, server_args: Any, model: Any, latent: bool) -> None:
    """Raises ConfigError, in one line, for what this release cannot hand over. `model` is a `ModelConfig`."""
    if mode.value != "prefill":
        raise ConfigError(
            "xgr_zmq serves --disaggregation-mode prefill only: decode workers are started by xgr"
        )
    for field in ("pp_size", "dp_size"):
        if getattr(server_args, field) != 1:
            flag = "--" + field.replace("_", "-")
            raise ConfigError(f"xgr_zmq needs {flag} 1 for now, it is {getattr(server_args, field)}")
    refuse_another_function(server_args)
    if args.kv_head_num * server_args.tp_size != args.total_kv_head_num:
        raise ConfigError(
            f"--tp-size {server_args.tp_size} does not divide {args.total_kv_head_num} KV heads"
        )
    plain = len(args.kv_data_ptrs) == 2 * model.num_hidden_layers  # a draft model adds its own
    if latent or args.state_types or not plain:
        raise ConfigError("xgr_zmq hands over plain keys and values only: this model keeps more than that")


def refuse_another_function(server_args: Any) -> None:
    """Raises ConfigError for flags with which its KV is not that of the checkpoint that we decode with.

    The weights' hash cannot tell: answers would be wrong and nobody would notice.
    """
    for field, plain in _PLAIN.items():
        value = getattr(server_args, field, plain)
        if value != plain:
            flag = "--" + field.replace("_", "-")
            raise ConfigError(
                f"xgr_zmq hands over the KV of the checkpoint as it is: leave out {flag} {value}"
            )
    if server_args.load_format == "dummy":
        raise ConfigError("xgr_zmq hands over the KV of the checkpoint: leave out --load-format dummy")


def model_identity(args: Any, server_args: Any, model: Any, memory: SglangKv) -> ModelIdentity:
    """What our decode workers compare with their own model. Raises `ModelError`, `ConfigError`."""
    folder = Path(server_args.model_path)
    read_config(folder)  # which says what is wrong with a path that is no local folder
    check_globbed(folder)
    dtype = str(model.dtype).removeprefix("torch.")
    kept = {"auto": dtype, "bf16": "bfloat16"}.get(server_args.kv_cache_dtype, server_args.kv_cache_dtype)
    if dtype not in DTYPES or kept != dtype:
        found = f"they are in {dtype} and {kept}: see --dtype and --kv-cache-dtype"
        raise ConfigError(f"xgr_zmq needs model and KV in {' or '.join(DTYPES)}, both the same; {found}")
    return ModelIdentity(
        weights_hash=weights_hash(folder, weight_files(folder)),
        dtype=dtype,
        layers=memory.layers,
        kv_heads=args.total_kv_head_num,
        head_dim=memory.token_bytes // (args.kv_head_num * DTYPES[dtype].itemsize),
        hidden=model.hidden_size,
        vocab=model.vocab_size,
        tp_size=1,  # as handed over: the first rank has collected the heads of all
    )


def worker_name(server_args: Any) -> str:
    return f"sglang-{server_args.port}"


def introduce(result: Any, scheduler: Any, _request: Any) -> Any:
    """SGLang's answer to `/server_info`, with ours in it as `xgr`."""
    queue = scheduler.disagg_prefill_bootstrap_queue
    manager = queue and queue.kv_manager
    if hasattr(manager, "outbound"):
        manager.exchange()  # also when nobody polls
        result.internal_state["xgr"] = msgspec.to_builtins(_hello(scheduler, manager))
    return result


def _hello(scheduler: Any, manager: Any) -> WorkerHello:
    return WorkerHello(
        protocol=PROTOCOL,
        role="prefill",
        worker=manager.name,
        incarnation=manager.incarnation,
        model=manager.identity,
        data_address="",
        catalogs=[],
        limits=Limits(scheduler.max_req_input_len - 1),
        load=_load(scheduler, manager),
    )


def _load(scheduler: Any, manager: Any) -> Load:
    """Pages that the radix cache could give back count as cached, not as used."""
    page_size = manager.memory.page_size
    total = scheduler.max_total_num_tokens
    free = scheduler.token_to_kv_pool_allocator.available_size()
    cached = scheduler.tree_cache.evictable_size()
    outbound = manager.outbound
    queues = (
        scheduler.disagg_prefill_bootstrap_queue.queue,
        scheduler.waiting_queue,
        scheduler.disagg_prefill_inflight_queue,
    )
    return Load(
        requests=sum(map(len, queues)),
        pages_used=max(0, total - free - cached) // page_size,
        pages_cached=cached // page_size,
        pages_total=total // page_size,
        credits_out=outbound.credits_out,
        leases=len(outbound.transfers),
        rows_used=0,
        counters={"stale_messages": outbound.stale_messages, "bad_messages": outbound.bad_messages},
    )
