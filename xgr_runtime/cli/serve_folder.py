"""What commands take for a deployment: a folder with serve.toml, or the settings themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgr_runtime.config import ServeConfig, from_args
from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse

SETTINGS = "serve.toml"


def serve_config(args: argparse.Namespace) -> ServeConfig:
    """Of `args.folder` and of the flags of `ServeConfig`. Raises ConfigError naming what is missing."""
    if args.folder is not None:
        if args.config is not None:
            raise ConfigError(f"{args.folder} and --config: give one of them")
        args.config = str(args.folder / SETTINGS)
        if not (args.folder / SETTINGS).is_file():
            raise ConfigError(
                f"{args.folder} holds no {SETTINGS}: name the folder that `xgr import` wrote, or give "
                "--model-path and --catalog"
            )
    config = from_args(ServeConfig, args)
    if not config.catalog:
        raise ConfigError("--catalog is required here: name the file or source of the catalog")
    return config
