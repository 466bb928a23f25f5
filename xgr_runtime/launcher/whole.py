"""A configuration whose checkpoint is whole: an adapter is merged into its base before anything loads it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from xgr_runtime.cache.folder import cache_folder
from xgr_runtime.cache.merged import merged_checkpoint
from xgr_runtime.config import ServeConfig


@contextlib.contextmanager
def whole(config: ServeConfig) -> Iterator[ServeConfig]:
    """`config`, which names the merged checkpoint if it named an adapter; that stays as long as the block.

    The model keeps the name of the folder that was asked for. Raises `ModelError`, `ConfigError`.
    """
    path, cache = Path(config.model_path), cache_folder(config.cache_folder)
    with merged_checkpoint(path, config.base_model_path, cache, config.dtype, config.device) as found:
        if found == path:
            yield config
            return
        name = config.served_model_name or path.resolve().name
        yield msgspec.structs.replace(
            config, model_path=str(found), base_model_path="", served_model_name=name
        )
