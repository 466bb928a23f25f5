"""What we rely on inside SGLang, one promise to a test: a new release fails here first, and says which broke.

None of it is an interface that SGLang documents. A test names the promise and the file of ours to mend. These
tests look at signatures and small objects; `test_backend` shows that the numbers are right.
"""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from enum import Enum
from types import ModuleType
from typing import Any

import pytest
import torch
from checkpoints import MakeCheckpoint
from torch import Tensor, distributed, nn

from xgr_runtime.model.sglang import versions
from xgr_runtime.model.sglang.startup import SETTINGS, start_model

SHIMS, STARTUP, BACKEND, VERSIONS, SERVE = (
    f"xgr_runtime/model/sglang/{name}.py" for name in ("shims", "startup", "backend", "versions", "serve")
)
PLUGIN, TRANSFER, INTRODUCTION = (
    f"xgr_runtime/model/sglang/transfer/{name}.py" for name in ("plugin", "backend", "introduction")
)
TRANSFER_MODULE = "xgr_runtime.model.sglang.transfer.backend"


def promise(kept: object, what: str, user: str) -> None:
    """Fails with the broken promise and the file of ours that relies on it."""
    if not kept:
        pytest.fail(
            f"sglang {versions.installed_version()}: {what}; {user} relies on the contrary", pytrace=False
        )


def srt(name: str, user: str) -> Any:
    """The module `sglang.srt.NAME`; that it exists is a promise too."""
    try:
        return importlib.import_module(f"sglang.srt.{name}")
    except ImportError as error:
        pytest.fail(
            f"sglang {versions.installed_version()}: sglang.srt.{name}, which {user} needs: {error}",
            pytrace=False,
        )


def takes(function: Callable[..., object], names: set[str], user: str) -> None:
    """`function` takes these arguments by name, and requires no other."""
    found = inspect.signature(function).parameters
    promise(names <= set(found), f"{function.__qualname__} takes no {names - set(found)}", user)
    required = {
        name
        for name, parameter in found.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    more = required - names - {"self"}
    promise(not more, f"{function.__qualname__} requires {more}", user)


def test_the_installed_release_is_in_the_tested_range() -> None:
    version = versions.installed_version() or ""
    promise(versions.is_tested(version), f"tested were {versions.TESTED}", VERSIONS)


# Without a GPU


def test_a_variable_chooses_the_cpu() -> None:
    promise(srt("utils.common", SHIMS).is_cpu(), "SGLANG_USE_CPU_ENGINE=1 does not choose the CPU", SHIMS)


def test_stand_in_kernels_are_not_taken_for_real_ones() -> None:
    real = hasattr(torch.ops.sgl_kernel, "convert_weight_packed")
    promise(
        real or not srt("utils.common", SHIMS).cpu_has_amx_support(),
        "another operator than convert_weight_packed tells that a CPU's kernels are there",
        SHIMS,
    )


# Start-up


def test_settings_are_fields_of_server_args() -> None:
    takes(srt("server_args", STARTUP).ServerArgs, {"model_path", "dtype", "device", *SETTINGS}, STARTUP)


def test_settings_are_published_in_a_way_that_we_know() -> None:
    context = srt("runtime_context", STARTUP)
    if hasattr(context, "SpawnRanks"):
        takes(context.SpawnRanks, {"world_rank", "gpu_id"}, STARTUP)
        takes(context.publish, {"server_args", "role", "ranks"}, STARTUP)
    elif hasattr(context, "publish"):
        takes(context.publish, {"server_args", "role"}, STARTUP)
    else:
        takes(context.get_context().set_server_args, {"server_args"}, STARTUP)


def test_groups_are_made_in_a_way_that_we_know() -> None:
    if hasattr(srt("runtime_context", STARTUP), "SpawnRanks"):
        bootstrap = srt("distributed.bootstrap", STARTUP)
        takes(bootstrap.init_parallel_runtime, {"server_args", "device", "dist_port"}, STARTUP)
        takes(bootstrap.init_layer_runtime, {"model_config"}, STARTUP)
    else:
        takes(srt("distributed.parallel_state", STARTUP).destroy_model_parallel, set(), STARTUP)
        state = srt("distributed.parallel_state_wrapper", STARTUP).ParallelState
        odd = [n for n in inspect.signature(state).parameters if not re.search("_(rank|size)$|^gpu_id$", n)]
        promise(not odd, f"ParallelState has {odd}, which are neither ranks nor sizes", STARTUP)


def test_the_runner_takes_what_we_give() -> None:
    given = {"model_config", "mem_fraction_static", "gpu_id", "nccl_port", "server_args"}
    if not hasattr(srt("runtime_context", STARTUP), "SpawnRanks"):
        given.add("ps")
    takes(srt("model_executor.model_runner", STARTUP).ModelRunner, given, STARTUP)


def test_a_config_is_read_from_the_settings() -> None:
    takes(srt("configs.model_config", STARTUP).ModelConfig.from_server_args, {"server_args"}, STARTUP)


def test_a_group_that_exists_is_used(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint("qwen3", 2)
    start_model(folder, "float32")
    calls: list[object] = []
    monkeypatch.setattr(distributed, "init_process_group", lambda *args, **kwargs: calls.append(kwargs))
    start_model(folder, "float32")
    promise(not calls, "torch.distributed is started anew where it runs, which opens a TCP port", STARTUP)


def test_the_runner_takes_the_gpu_that_is_asked_for(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a start on a second GPU up to the first call that needs one."""
    folder = make_checkpoint("qwen3", 2)
    start_model(folder, "float32")  # later releases make their groups once, here without a GPU

    class Chosen(Exception):
        pass

    def set_device(device: int) -> None:
        raise Chosen(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    with pytest.raises(Chosen) as chosen:
        start_model(folder, "float32", "cuda:1")
    promise(chosen.value.args == (1,), f"on cuda:1 its runner takes GPU {chosen.value.args[0]}", STARTUP)


def test_experts_of_a_former_model_can_be_forgotten() -> None:
    forget = srt("eplb.expert_location", STARTUP).set_global_expert_location_metadata
    takes(forget, {"value", "allow_overwrite"}, STARTUP)


# A forward


def test_a_batch_takes_our_fields() -> None:
    batch = srt("model_executor.forward_batch_info", BACKEND).ForwardBatch
    given = {
        "forward_mode",
        "batch_size",
        "input_ids",
        "req_pool_indices",
        "seq_lens",
        "out_cache_loc",
        "seq_lens_sum",
        "positions",
        "capture_hidden_mode",
    }
    takes(batch, given, BACKEND)


def test_modes_that_we_name() -> None:
    batches = srt("model_executor.forward_batch_info", BACKEND)
    promise(batches.ForwardMode.DECODE.is_decode(), "ForwardMode.DECODE is no decode", BACKEND)
    promise(hasattr(batches.CaptureHiddenMode, "NULL"), "there is no CaptureHiddenMode.NULL", BACKEND)


def test_layers_find_the_attention_backend_in_the_context() -> None:
    contexts = srt("model_executor.forward_context", BACKEND)
    attention = object()
    with contexts.forward_context(contexts.ForwardContext(attn_backend=attention)):
        promise(contexts.get_attn_backend() is attention, "ForwardContext.attn_backend is not used", BACKEND)
    promise(not contexts.has_forward_context(), "a forward's context outlives it", BACKEND)


@pytest.mark.parametrize("name", ["forward_decode", "forward_extend"])
def test_attention_backends_have_these_methods(name: str) -> None:
    base = srt("layers.attention.base_attn_backend", BACKEND).AttentionBackend
    takes(getattr(base, name), {"q", "k", "v", "layer", "forward_batch", "save_kv_cache"}, BACKEND)


def test_an_attention_backend_needs_nothing_else() -> None:
    base = srt("layers.attention.base_attn_backend", BACKEND).AttentionBackend
    promise(not getattr(base, "__abstractmethods__", None), "AttentionBackend has abstract methods", BACKEND)
    takes(base.__init__, {"self"} & set(inspect.signature(base.__init__).parameters), BACKEND)


def test_an_attention_layer_hands_its_rows_over() -> None:
    """q [N, Hq * D], k and v [N, Hkv, D] and the layer go in, and the answer comes back as it is."""
    base = srt("layers.attention.base_attn_backend", BACKEND).AttentionBackend
    contexts = srt("model_executor.forward_context", BACKEND)
    batches = srt("model_executor.forward_batch_info", BACKEND)
    layer = srt("layers.radix_attention", BACKEND).RadixAttention(4, 8, 0.3, num_kv_heads=2, layer_id=5)
    seen: list[tuple[object, ...]] = []

    class Spy(base):  # type: ignore[misc, valid-type]
        def forward_decode(
            self, q: Tensor, k: Tensor, v: Tensor, layer: nn.Module, *_: object, **kwargs: object
        ) -> Tensor:
            seen.append((q.shape, k.shape, v.shape, layer, {n for n in kwargs if n != "save_kv_cache"}))
            return q + 1

    rows = torch.zeros(3, dtype=torch.int64)
    batch = batches.ForwardBatch(
        forward_mode=batches.ForwardMode.DECODE,
        batch_size=3,
        input_ids=rows,
        req_pool_indices=rows,
        seq_lens=rows + 1,
        out_cache_loc=rows,
        seq_lens_sum=0,
    )
    with contexts.forward_context(contexts.ForwardContext(attn_backend=Spy())):
        output = layer(torch.zeros(3, 32), torch.zeros(3, 16), torch.zeros(3, 16), batch)
    expected = ((3, 32), (3, 2, 8), (3, 2, 8), layer, set())  # type: ignore[var-annotated]
    promise(seen == [expected], f"an attention layer hands over {seen}", BACKEND)
    promise(bool((output == 1).all()), "an attention layer changes its backend's answer", BACKEND)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("layer_id", 5),
        ("tp_q_head_num", 4),
        ("qk_head_dim", 8),
        ("v_head_dim", 8),
        ("scaling", 0.3),
        ("logit_cap", 0.0),
        ("sliding_window_size", -1),
        ("is_cross_attention", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_attention_layer_says_what_it_needs(attribute: str, value: object) -> None:
    layer = srt("layers.radix_attention", BACKEND).RadixAttention(4, 8, 0.3, num_kv_heads=2, layer_id=5)
    found = getattr(layer, attribute, "missing")
    promise(found == value, f"a plain RadixAttention's {attribute} is {found}, not {value}", BACKEND)


def test_an_attention_layer_says_that_it_is_causal() -> None:
    attention = srt("layers.radix_attention", BACKEND)
    layer = attention.RadixAttention(4, 8, 0.3, num_kv_heads=2, layer_id=5)
    promise(
        layer.attn_type == attention.AttentionType.DECODER, "a plain RadixAttention is no DECODER", BACKEND
    )


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_a_model_has_an_inner_model_and_a_head(make_checkpoint: MakeCheckpoint, family: str) -> None:
    model = start_model(make_checkpoint(family, 2), "float32")
    inner = getattr(model, "model", None)
    promise(isinstance(inner, nn.Module), f"{type(model).__name__} has no `model`", BACKEND)
    assert inner is not None
    takes(inner.forward, {"input_ids", "positions", "forward_batch"}, BACKEND)
    head = getattr(model, "lm_head", None)
    promise(
        isinstance(getattr(head, "weight", None), Tensor),
        f"{type(model).__name__} has no lm_head.weight",
        BACKEND,
    )


def test_wrapped_models_can_be_told() -> None:
    wrapped = srt("models.transformers", BACKEND).TransformersForCausalLM
    promise(wrapped.__module__ == "sglang.srt.models.transformers", "wrapped models moved", BACKEND)


# The plugin


def test_plugins_are_loaded_from_the_entry_points_that_we_use() -> None:
    plugins = srt("plugins", PLUGIN)
    promise(plugins.GENERAL_PLUGINS_GROUP == "sglang.srt.plugins", "entry points have another group", PLUGIN)
    takes(plugins.load_plugins, set(), PLUGIN)


def test_a_backend_can_be_offered() -> None:
    """The flag takes what a plugin adds before the arguments are parsed."""
    settings = srt("server_args", PLUGIN)
    settings.add_disagg_transfer_backend_choices(["offered_by_a_test"])
    parser = argparse.ArgumentParser()
    settings.ServerArgs.add_cli_args(parser)
    flag = "--disaggregation-transfer-backend"
    (action,) = [a for a in parser._actions if flag in a.option_strings]
    promise("offered_by_a_test" in (action.choices or ()), f"{flag} takes no added choice", PLUGIN)


def test_hooks_wrap_replace_and_follow() -> None:
    """On a module of our own: a class is replaced wherever it was imported, functions are wrapped."""
    hooks = srt("plugins.hook_registry", PLUGIN)
    source, importer = ModuleType("xgr_hook_source"), ModuleType("xgr_hook_importer")

    class Old: ...

    class New: ...

    source.Thing = importer.Thing = Old  # type: ignore[attr-defined]
    source.around = lambda x: x + 1  # type: ignore[attr-defined]
    source.after = lambda x: x + 1  # type: ignore[attr-defined]
    sys.modules |= {source.__name__: source, importer.__name__: importer}
    try:
        register = hooks.HookRegistry.register
        register(f"{source.__name__}.Thing", New, hooks.HookType.REPLACE)
        register(f"{source.__name__}.around", lambda original, x: 10 * original(x), hooks.HookType.AROUND)
        register(f"{source.__name__}.after", lambda result, x: (result, x), hooks.HookType.AFTER)
        hooks.HookRegistry.apply_hooks()
        promise(source.Thing is New and importer.Thing is New, "REPLACE does not reach importers", PLUGIN)
        promise(source.around(1) == 20, "AROUND does not wrap", PLUGIN)
        promise(source.after(1) == (2, 1), "AFTER does not get result and arguments", PLUGIN)
    finally:
        del sys.modules[source.__name__], sys.modules[importer.__name__]


def test_backends_are_looked_up_by_an_enumeration_and_one_function() -> None:
    utils = srt("disaggregation.utils", PLUGIN)
    promise(issubclass(utils.TransferBackend, Enum), "TransferBackend is no enumeration", PLUGIN)
    takes(utils.get_kv_class, {"transfer_backend", "class_type"}, PLUGIN)
    kinds = {member.name for member in utils.KVClassType}
    ours = {"KVARGS", "MANAGER", "SENDER", "BOOTSTRAP_SERVER"}
    promise(ours <= kinds, f"KVClassType has no {ours - kinds}", PLUGIN)


def test_our_classes_are_what_the_scheduler_makes() -> None:
    """Nothing abstract is left, and every method takes what SGLang's own backends take."""
    base, ours = srt("disaggregation.base", TRANSFER), importlib.import_module(TRANSFER_MODULE)
    pairs = [
        (base.BaseKVManager, ours.ZmqKVManager),
        (base.BaseKVSender, ours.ZmqKVSender),
        (base.BaseKVBootstrapServer, ours.NoBootstrapServer),
    ]
    for theirs, mine in pairs:
        left = set(mine.__abstractmethods__)
        promise(not left, f"{theirs.__name__} has the further abstract methods {left}", TRANSFER)
        for name in theirs.__abstractmethods__:
            given = inspect.signature(getattr(theirs, name)).parameters
            try:
                inspect.signature(getattr(mine, name)).bind(**dict.fromkeys(given))
            except TypeError as error:
                promise(False, f"{theirs.__name__}.{name} is called with {[*given]}: {error}", TRANSFER)


def test_states_are_ordered() -> None:
    """SGLang takes the least state of all ranks: ours that do not talk must not hold the others up."""
    poll = srt("disaggregation.base", TRANSFER).KVPoll
    states = [poll.Failed, poll.Bootstrapping, poll.WaitingForInput, poll.Transferring, poll.Success]
    promise(states == sorted(states), "KVPoll is not ordered from Failed to Success", TRANSFER)


def test_a_senders_address_is_the_clients_bootstrap_host() -> None:
    """The way on which the ticket reaches us: host, colon, port."""
    queue = srt("disaggregation.prefill", TRANSFER).PrefillBootstrapQueue
    source = inspect.getsource(queue)
    promise('f"{req.bootstrap_host}:{self.bootstrap_port}"' in source, "bootstrap_addr is another", TRANSFER)
    request = srt("managers.io_struct", TRANSFER).GenerateReqInput
    fields = {"rid", "input_ids", "sampling_params", "bootstrap_host", "bootstrap_room"}
    missing = fields - set(inspect.signature(request).parameters)
    promise(not missing, f"/generate takes no {missing}", "router/workers/sglang_worker.py")


def test_the_pool_is_described_as_we_read_it() -> None:
    fields = set(inspect.get_annotations(srt("disaggregation.base", TRANSFER).KVArgs))
    read = {"engine_rank", "kv_data_ptrs", "kv_data_lens", "kv_item_lens", "page_size", "state_types"}
    read |= {"gpu_id", "kv_head_num", "total_kv_head_num"}
    promise(read <= fields, f"KVArgs has no {read - fields}", TRANSFER)


@pytest.mark.parametrize("page_size", [1, 4], ids="page={}".format)
def test_the_pool_lies_in_memory_as_we_read_it(page_size: int) -> None:
    """Keys of all layers, then values; a token's heads side by side, page after page."""
    pools = srt("mem_cache.memory_pool", TRANSFER)
    settings = {"size": 16, "page_size": page_size, "dtype": torch.float32, "head_num": 2, "head_dim": 8}
    pool = pools.MHATokenToKVPool(**settings, layer_num=3, device="cpu", enable_memory_saver=False)
    pointers, _, item_bytes = pool.get_contiguous_buf_infos()
    buffers = [pool.get_key_buffer(layer) for layer in range(3)]
    buffers += [pool.get_value_buffer(layer) for layer in range(3)]
    promise(pointers == [x.data_ptr() for x in buffers], "buffers are not keys, then values", TRANSFER)
    promise({tuple(x.shape[1:]) for x in buffers} == {(2, 8)}, "a slot is not [heads, head_dim]", TRANSFER)
    promise(all(x.is_contiguous() for x in buffers), "slots are not side by side", TRANSFER)
    promise(set(item_bytes) == {page_size * 2 * 8 * 4}, "an item is not a page", TRANSFER)


def test_a_models_config_says_what_we_compare(make_checkpoint: MakeCheckpoint) -> None:
    settings = srt("server_args", INTRODUCTION).ServerArgs
    made = settings(model_path=str(make_checkpoint("qwen3", 2)), device="cpu", dtype="float32")
    config = srt("configs.model_config", INTRODUCTION).ModelConfig.from_server_args(made)
    fields = ("num_hidden_layers", "hidden_size", "vocab_size")
    missing = [name for name in fields if not isinstance(getattr(config, name, None), int)]
    promise(not missing, f"ModelConfig has no {missing}", INTRODUCTION)
    promise(config.dtype is torch.float32, "ModelConfig.dtype is no torch type", INTRODUCTION)


def test_the_scheduler_says_what_we_report() -> None:
    scheduler = srt("managers.scheduler", INTRODUCTION).Scheduler
    takes(scheduler.get_internal_state, {"recv_req"}, INTRODUCTION)
    state = srt("managers.io_struct", INTRODUCTION).GetInternalStateReqOutput
    promise("internal_state" in state.__annotations__, "its answer has no internal_state", INTRODUCTION)
    source = inspect.getsource(importlib.import_module(scheduler.__module__))
    for name in (
        "disagg_prefill_bootstrap_queue",
        "disagg_prefill_inflight_queue",
        "waiting_queue",
        "token_to_kv_pool_allocator",
        "tree_cache",
        "max_total_num_tokens",
        "max_req_input_len",
    ):
        promise(f"self.{name}" in source, f"Scheduler has no {name}", INTRODUCTION)
    caches = srt("mem_cache.base_prefix_cache", INTRODUCTION).BasePrefixCache
    promise(hasattr(caches, "evictable_size"), "a prefix cache has no evictable_size", INTRODUCTION)


def test_a_request_says_how_much_of_it_was_cached_where_its_kv_is_sent() -> None:
    scheduler = srt("managers.scheduler", PLUGIN).Scheduler
    given = [*inspect.signature(scheduler.send_kv_chunk).parameters]
    promise(given[:2] == ["self", "req"], f"send_kv_chunk takes {given}", PLUGIN)
    request = inspect.getsource(srt("managers.schedule_batch", PLUGIN).Req)
    for name in ("cached_tokens", "disagg_kv_sender"):
        promise(f"self.{name}" in request, f"Req has no {name}", PLUGIN)


def test_the_server_is_a_module_that_runs() -> None:
    server = importlib.import_module("sglang.launch_server")
    promise('__name__ == "__main__"' in inspect.getsource(server), "sglang.launch_server runs nothing", SERVE)
