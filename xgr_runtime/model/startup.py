"""What both workers do first: threads, checkpoint, identity, and a KV pool within its bound."""

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from xgr_kernels.backend import choose_backend
from xgr_kernels.cpu.compiled import keep_freed_memory, use_threads
from xgr_runtime.cache.kernels import KernelFolder
from xgr_runtime.cache.merged import merged_checkpoint
from xgr_runtime.checkpoint import saved_dtype, weight_files
from xgr_runtime.config import DecodeConfig, PrefillConfig
from xgr_runtime.config.machine import check_memory, check_threads, cores
from xgr_runtime.config.toolchain import check_toolchain
from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.published import Publication, PublishedMemory, wait_for
from xgr_runtime.kv.shared_memory import CannotMap, lives
from xgr_runtime.model.base import DTYPES, ModelBackend
from xgr_runtime.model.choice import check_dtype, load_backend
from xgr_runtime.model.device.gpu_kernels import compiled_once, keep_gpu_kernels, told
from xgr_runtime.model.device.place import check_room, take_device
from xgr_runtime.model.kept_checks import KeptChecks
from xgr_runtime.model.memory.kv_memory import exported_memory, mapped_memory, private_memory
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.memory.shared_weights import WeightSharing
from xgr_runtime.model.ready_kernels import ready_kernels, usable_cache

log = logging.getLogger(__name__)

_KV_SHARE = 0.6  # of the free memory of a GPU


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint ready to run, and the memory for its KV."""

    backend: ModelBackend
    pool: KvPool
    threads: int
    weights: WeightSharing  # keeps the memory that others map
    publication: Publication | None = None  # says where that is
    cache: Path | None = None  # the folder of what is kept for later starts
    check_seconds: float = 0.0  # that its answers were compared with those of others
    gpu_kernels: KernelFolder | None = None  # where those are kept that libraries compile

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens that the pool and the model's positions allow."""
        return min(self.pool.pages * self.pool.page_size, self.backend.max_positions)

    def first_calls(self, stopping: Callable[[], bool], *what: object) -> AbstractContextManager[None]:
        """Around what first calls every kernel, which compiles those of a GPU: see `compiled_once`.

        `what` they depend on besides the model.
        """
        device = self.backend.device
        if device.type != "cuda":
            return nullcontext()
        model = self.backend.identity
        sizes = (model.dtype, self.backend.q_heads, model.kv_heads, model.head_dim, model.hidden, model.vocab)
        name = torch.cuda.get_device_name(device)
        return compiled_once(
            self.gpu_kernels, [self.backend.name, name, sizes, self.pool.page_size, *what], stopping
        )


def load_model(config: PrefillConfig | DecodeConfig, stopping: Callable[[], bool] = bool) -> LoadedModel:
    """Load the checkpoint that `config` names, and make the KV pool that the worker's role asks for.

    An adapter is merged first, unless a launcher has done it. `stopping` ends the wait for another worker's
    memory. Raises `ModelError`, `ConfigError`.
    """
    cache = usable_cache(config.cache_folder)
    path, base = Path(config.model_path), config.base_model_path
    with merged_checkpoint(path, base, cache, config.dtype, config.device) as folder:
        return _load(config, folder, cache, stopping)


def _load(
    config: PrefillConfig | DecodeConfig, folder: Path, cache: Path | None, stopping: Callable[[], bool]
) -> LoadedModel:
    """Raises `ModelError`, `ConfigError`."""
    check_threads(config.threads)
    found = cores()
    threads = config.threads or found.count
    log.info("%d threads, by %s", threads, "--threads" if config.threads else found.limit)
    torch.set_num_threads(threads)
    dtype = saved_dtype(folder, config.device) if config.dtype == "auto" else config.dtype
    check_dtype(dtype, config.device)
    kernels = None
    if config.device == "cpu":
        ready_kernels(cache, dtype, stopping)
    else:
        kernels = keep_gpu_kernels(cache)
        check_toolchain(config.device, first=kernels is None or kernels.fresh)
        _check_gpu_memory(config.device, folder, DTYPES[dtype])
    publishes = config.publish_memory if isinstance(config, PrefillConfig) else ""
    memory_of = config.memory_of if isinstance(config, DecodeConfig) else ""
    weights = WeightSharing(bool(publishes), memory_of, stopping)
    place = weights.place if weights.shares else None
    checks = KeptChecks(cache)
    with nullcontext() if config.device == "cpu" else told():
        backend = load_backend(
            config.model_backend, folder, dtype, config.sglang_any_version, config.device, place, checks
        )
    use_threads(threads)
    keep_freed_memory()
    if memory_of:
        # KV and weights of the same run: those of an earlier one may be gone from a GPU.
        published = weights.taken_from or wait_for(Path(memory_of), stopping)
        pool = _mapped_pool(memory_of, published, backend)
    else:
        pool = _own_pool(config, backend)
    publication = None
    if publishes:
        if pool.memory.shared is None:
            raise ConfigError(
                "--publish-memory needs memory that can be shared: --kv-transfer auto, on Linux"
            )
        publication = Publication(
            Path(publishes), PublishedMemory(backend.identity, pool.memory.shared, weights.shared)
        )
    log.info(
        "%s runs %s in %s on %d threads, KV for %d tokens",
        backend.name,
        folder.name,
        dtype,
        threads,
        pool.pages * pool.page_size,
    )
    return LoadedModel(backend, pool, threads, weights, publication, cache, checks.seconds, kernels)


def _check_gpu_memory(setting: str, folder: Path, dtype: torch.dtype) -> None:
    """Raises `ConfigError` for a checkpoint that does not fit there, `ModelError` for a damaged one."""
    saved = sum(file.stat().st_size for file in weight_files(folder))
    needed = saved * dtype.itemsize // DTYPES[saved_dtype(folder, setting)].itemsize
    check_room(take_device(setting), needed, "the model's weights")


def _own_pool(config: PrefillConfig | DecodeConfig, backend: ModelBackend) -> KvPool:
    """A pool in our own memory, which decode workers may map if it is a prefill worker's."""
    identity, page_size = backend.identity, config.page_size
    kv_bytes = config.kv_bytes or _default_kv_bytes(backend.device)
    if backend.device.type == "cpu":
        check_memory(kv_bytes, "--kv-bytes", kv_bytes, "prompt KV")
    pages = kv_bytes // (page_size * identity.token_bytes)
    if not pages:
        raise ConfigError(f"--kv-bytes {kv_bytes} holds no page of KV: raise it")
    shared = isinstance(config, PrefillConfig) and config.kv_transfer == "auto" and sys.platform == "linux"
    make = exported_memory if shared else private_memory
    return KvPool(identity, pages, page_size, make(identity, pages, page_size, backend.device))


def _default_kv_bytes(device: torch.device) -> int:
    """A GPU's memory besides is for graphs and logits, and for another worker on it."""
    if device.type == "cuda":
        return int(_KV_SHARE * torch.cuda.mem_get_info(device)[0])
    return 1 << 30


def _mapped_pool(path: str, published: PublishedMemory, backend: ModelBackend) -> KvPool:
    """The pool that a prefill worker has published in the file `path`. Raises `ConfigError`."""
    if name := published.model.difference(backend.identity):
        raise ConfigError(f"the prefill worker of --memory-of {path} runs a model of another {name}")
    try:
        memory = mapped_memory(published.kv, backend.identity)
    except CannotMap as error:
        if not lives(published.kv.generations.owner):
            raise ConfigError(
                f"the prefill worker of --memory-of {path} died meanwhile: start again"
            ) from None
        raise ConfigError(f"--memory-of {path}: {error}; use --layout split") from None
    return KvPool(backend.identity, published.kv.pages, published.kv.page_size, memory)


def choose_kernels(device: str) -> str:
    """The kernels for `device`, logged with the reason. Raises `ConfigError` where none can run."""
    try:
        kernels, reason = choose_backend("auto", device)
    except ValueError as error:
        raise ConfigError(f"--device {device}: {error}") from None
    log.info("kernels: %s (%s)", kernels, reason)
    return kernels


def prompt_limit(model: LoadedModel, wanted: int, generated: int = 0) -> int:
    """The longest prompt to accept: what memory and the model allow beside `generated` further positions.

    `wanted` is the configured limit, 0 for none. Raises `ConfigError` when it cannot be met.
    """
    possible = min(model.max_prompt_tokens, model.backend.max_positions - generated)
    if wanted > possible:
        raise ConfigError(f"--max-prompt-tokens is {wanted}, this model and --kv-bytes allow {possible}")
    return wanted or possible
