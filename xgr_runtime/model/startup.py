"""What both workers do first: threads, checkpoint, identity, and a KV pool within its bound."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from xgr_runtime.config import DecodeConfig, PrefillConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.messages import ModelIdentity
from xgr_runtime.model.base import DTYPES, Geometry, ModelBackend
from xgr_runtime.model.checkpoint import read_config
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.kv import KvPool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint ready to run, and the memory for its KV."""

    backend: ModelBackend
    identity: ModelIdentity
    pool: KvPool
    threads: int

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens that the pool and the model's positions allow."""
        return min(self.pool.pages * self.pool.page_size, self.backend.geometry.max_positions)


def load_model(config: PrefillConfig | DecodeConfig) -> LoadedModel:
    """Load the checkpoint that `config` names. Raises `ModelError`, `ConfigError`."""
    threads = config.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    folder = Path(config.model_path)
    dtype = _checkpoint_dtype(folder) if config.dtype == "auto" else config.dtype
    backend = load_backend(config.model_backend, folder, dtype, config.sglang_any_version)
    geometry = backend.geometry
    pages = config.kv_bytes // (config.page_size * geometry.token_bytes)
    if not pages:
        raise ConfigError(f"--kv-bytes {config.kv_bytes} holds no page of KV: raise it")
    log.info(
        "%s runs %s in %s on %d threads, KV for %d tokens",
        backend.name,
        folder.name,
        dtype,
        threads,
        pages * config.page_size,
    )
    pool = KvPool(geometry, pages, config.page_size)
    return LoadedModel(backend, _identity(backend.weights_hash, geometry), pool, threads)


def prompt_limit(model: LoadedModel, wanted: int, generated: int = 0) -> int:
    """The longest prompt to accept: what memory and the model allow beside `generated` further positions.

    `wanted` is the configured limit, 0 for none. Raises `ConfigError` when it cannot be met.
    """
    possible = min(model.max_prompt_tokens, model.backend.geometry.max_positions - generated)
    if wanted > possible:
        raise ConfigError(f"--max-prompt-tokens is {wanted}, this model and --kv-bytes allow {possible}")
    return wanted or possible


def _identity(weights_hash: str, geometry: Geometry) -> ModelIdentity:
    return ModelIdentity(
        weights_hash=weights_hash,
        dtype=geometry.dtype,
        layers=geometry.layers,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        hidden=geometry.hidden,
        vocab=geometry.vocab,
        tp_size=1,
    )


def _checkpoint_dtype(folder: Path) -> str:
    """What the checkpoint was saved in, where we run that; float32 otherwise."""
    raw = read_config(folder)
    saved = str(raw.get("dtype") or raw.get("torch_dtype") or "")
    return saved if saved in DTYPES else "float32"
