"""The report in JSON: everything that the table shows, and every case."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.cli.bench import facts
from xgr_runtime.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from xgr_runtime.cli.verify.judge import Bounds, Judged
    from xgr_runtime.cli.verify.totals import Totals


def write_report(
    path: Path,
    about: Mapping[str, Any],
    bounds: Bounds,
    totals: Totals,
    judged: Sequence[Judged],
    problems: Sequence[str],
) -> None:
    """Raises ConfigError where it cannot be written. about: what was compared with what."""
    content = {
        "verified": not problems,
        **about,
        "machine": facts.machine(),
        "versions": facts.versions(),
        "bounds": asdict(bounds),
        "totals": asdict(totals),
        "problems": list(problems),
        "cases": [asdict(one) for one in judged],
    }
    write_whole(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
