"""Where the Helm chart lies, and what its tests call what helm makes of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from scripts import DEPLOY

FOLDER = DEPLOY / "kubernetes"
CHART = FOLDER / "xgr-runtime"
EXAMPLES = sorted(path.stem for path in (FOLDER / "examples").glob("*.yaml"))

Document = dict[str, Any]
Render = Callable[..., "subprocess.CompletedProcess[str]"]
Validate = Callable[..., str]
