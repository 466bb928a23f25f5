"""Configuration: one frozen struct per process, and how it is read."""

from xgr_runtime.config.cluster import ClusterConfig, read_cluster
from xgr_runtime.config.parsing import (
    C,
    add_flags,
    check_environ,
    check_secret,
    flag,
    from_args,
    parse,
    switched_on,
    to_argv,
)
from xgr_runtime.config.structs import (
    SECRETS,
    AnyConfig,
    Backend,
    DecodeConfig,
    Dtype,
    ImportsConfig,
    KernelsConfig,
    PrefillConfig,
    RouterConfig,
    ServeConfig,
    TemplateConfig,
)

__all__ = [
    "SECRETS",
    "AnyConfig",
    "Backend",
    "C",
    "ClusterConfig",
    "DecodeConfig",
    "Dtype",
    "ImportsConfig",
    "KernelsConfig",
    "PrefillConfig",
    "RouterConfig",
    "ServeConfig",
    "TemplateConfig",
    "add_flags",
    "check_environ",
    "check_secret",
    "flag",
    "from_args",
    "parse",
    "read_cluster",
    "switched_on",
    "to_argv",
]
