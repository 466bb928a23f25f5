"""One template for all processes of a run that import the same, in place of one for each deployment.

Tests of a deployment's life and of faults leave this alone: their launcher has its own.
"""

from __future__ import annotations

import os
import sys

from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.launcher.template import Starter, Template
from xgr_runtime.launcher.topology import templates

_BEGUN: dict[str, Template] = {}


class SharedStarter(Starter):
    """Its templates have begun, and outlive it. Made in the main thread: a template dies with its thread."""

    def __init__(self, config: ServeConfig) -> None:
        super().__init__({name: _shared(made) for name, made in templates(config, _cores()).items()})

    def close(self) -> None:
        """Nothing: `close_all` does it."""


def deployment_of(config: ServeConfig) -> Deployment:
    """One whose processes are forked from what all share."""
    return Deployment(config, SharedStarter(config))


def close_all() -> None:
    """End every template; whoever was forked goes on."""
    for template in _BEGUN.values():
        template.close()
    _BEGUN.clear()


def _shared(made: Template) -> Template:
    """The one that imports the same under the same variables, begun. What it forks finds our modules, too."""
    key = f"{made.name} {made._imports} {sorted(made._environ.items())}"
    if key not in _BEGUN:
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        _BEGUN[key] = Template(made.name, made._imports, {**made._environ, **path})
        _BEGUN[key].begin()
    return _BEGUN[key]


def _cores() -> int:
    return len(os.sched_getaffinity(0))
