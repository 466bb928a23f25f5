"""`xgr serve` whose workers fail on command, some of them behind links that can be held: see `fleet`.

The variable REMOTE names the latter, comma-separated. Others are told that their sockets are `NAME.link` and
`NAME.data.link`, and they take KV in frames, as from another machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from link_proxy import LinkProxy

from xgr_runtime.cli import main
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher import deployment
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.supervisor import StartGroup
from xgr_runtime.launcher.topology import plan

REMOTE = [name for name in os.environ.get("REMOTE", "").split(",") if name]


def faulty_plan(config: ServeConfig, folder: Path, *args: Any, **more: Any) -> list[StartGroup]:
    """The deployment's own plan, with other programs for the workers and other addresses for the router."""
    return [
        replace(group, programs=[faulty(program, folder) for program in group.programs])
        for group in plan(config, folder, *args, **more)
    ]


def faulty(program: Program, folder: Path) -> Program:
    if program.module == "router":
        return replace(program, argv=[elsewhere(arg) for arg in program.argv])
    argv = [program.module, *program.argv]
    if program.name in REMOTE:
        stand_between(folder, program.name)
        if program.module == "decode_worker":
            stand_between(folder, program.name, ".data")
            address = f"ipc://{folder / program.name}.data.link"
            argv += [f"--advertise-data-address={address}", "--kv-transfer=frames"]
    return replace(program, module="faulty_worker", argv=argv)


def stand_between(folder: Path, name: str, suffix: str = "") -> None:
    socket, held = folder / f"{name}{suffix}", Path(os.environ["FAULTS"]) / f"{name}.held"
    LinkProxy(socket.with_name(f"{socket.name}.link"), socket, held)


def elsewhere(arg: str) -> str:
    """A list of the workers' addresses, with those of the remote ones replaced."""
    if not arg.startswith(("--prefill=", "--decode=")):
        return arg
    return ",".join(f"{a}.link" if a.rpartition("/")[2] in REMOTE else a for a in arg.split(","))


def run(argv: Sequence[str]) -> int:
    vars(deployment)["plan"] = faulty_plan
    return main(["serve", *argv])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
