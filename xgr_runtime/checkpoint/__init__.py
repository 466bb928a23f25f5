"""The files of a checkpoint: what each of them is, which are loaded, and one hash that names their content.

All of it runs before any weight is loaded and needs no torch, so that a wrong folder costs one line and
milliseconds.
"""

from xgr_runtime.checkpoint.adapter import Adapter, find_adapter
from xgr_runtime.checkpoint.config import not_applied, read_config, saved_dtype
from xgr_runtime.checkpoint.contents import passed_over
from xgr_runtime.checkpoint.described import described
from xgr_runtime.checkpoint.names import INDEX, SINGLE
from xgr_runtime.checkpoint.weights import (
    check_globbed,
    sampled_files,
    weight_files,
    weights_hash,
)

__all__ = [
    "INDEX",
    "SINGLE",
    "Adapter",
    "check_globbed",
    "described",
    "find_adapter",
    "not_applied",
    "passed_over",
    "read_config",
    "sampled_files",
    "saved_dtype",
    "weight_files",
    "weights_hash",
]
