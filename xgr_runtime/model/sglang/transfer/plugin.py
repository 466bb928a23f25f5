"""The entry point that SGLang calls in each of its processes: how `xgr_zmq` becomes one of its backends."""

from collections.abc import Callable
from enum import Enum
from typing import Any

BACKEND = "xgr_zmq"
_UTILS = "sglang.srt.disaggregation.utils"


def register() -> None:
    """Offer `--disaggregation-transfer-backend xgr_zmq`, and introduce the server in `/server_info`.

    SGLang logs what an entry point raises and goes on: the flag is then refused as unknown.
    """
    from sglang.srt.disaggregation import utils
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import add_disagg_transfer_backend_choices

    from xgr_runtime.model.sglang.transfer.introduction import introduce

    add_disagg_transfer_backend_choices([BACKEND])
    HookRegistry.register(f"{_UTILS}.TransferBackend", with_ours(utils.TransferBackend), HookType.REPLACE)
    HookRegistry.register(f"{_UTILS}.get_kv_class", our_class_or, HookType.AROUND)
    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler.get_internal_state", introduce, HookType.AFTER
    )
    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler.send_kv_chunk", tell_cached_tokens, HookType.BEFORE
    )


def tell_cached_tokens(scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> None:
    """A request's KV is about to be sent: its sender learns how many tokens the radix cache had of it."""
    if hasattr(req.disagg_kv_sender, "cached_tokens"):
        req.disagg_kv_sender.cached_tokens = int(req.cached_tokens)


def with_ours(known: type[Enum]) -> Any:
    """SGLang's enumeration of transfer backends and ours; an enumeration cannot be extended in place."""
    members = {member.name: member.value for member in known}
    return Enum(known.__name__, {**members, "XGR_ZMQ": BACKEND}, module=known.__module__)  # type: ignore[misc]


def our_class_or(original: Callable[..., Any], transfer_backend: Any, class_type: Any) -> Any:
    """The class that SGLang asks for: ours for our backend, its own for every other."""
    if transfer_backend.value != BACKEND:
        return original(transfer_backend, class_type)
    from sglang.srt.disaggregation.base import KVArgs

    from xgr_runtime.model.sglang.transfer import backend

    classes = {
        "KVARGS": KVArgs,  # SGLang's own; up to 0.5.17 each backend says so itself
        "MANAGER": backend.ZmqKVManager,
        "SENDER": backend.ZmqKVSender,
        "BOOTSTRAP_SERVER": backend.NoBootstrapServer,
    }
    return classes[class_type.name]
