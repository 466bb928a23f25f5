"""The units of deploy/systemd: systemd takes them, processes take their flags, and stops have time enough."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scripts import DEPLOY, program

from xgr_runtime.config import DecodeConfig, PrefillConfig, RouterConfig, ServeConfig, parse

FOLDER = DEPLOY / "systemd"
BIN = "/opt/xgr/bin/"
SETTINGS = {
    "xgr": 'model-path = "/m"\ncatalog = "/c"\n',
    "xgr-router": 'model-path = "/m"\ncatalog = "/c"\nprefill = ["ipc:///p"]\ndecode = ["ipc:///d"]\n',
    "xgr-prefill@": 'model-path = "/m"\ncontrol-address = "ipc:///p"\n',
    "xgr-decode@": (
        'model-path = "/m"\ncatalog = "/c"\ncontrol-address = "ipc:///d"\ndata-address = "ipc:///e"\n'
    ),
}
RUNS: dict[str, Any] = {
    "xgr serve": ServeConfig,
    "python -m router": RouterConfig,
    "python -m prefill_worker": PrefillConfig,
    "python -m decode_worker": DecodeConfig,
}


def value(unit: str, key: str) -> str:
    (found,) = [
        line.partition("=")[2]
        for line in (FOLDER / f"{unit}.service").read_text().splitlines()
        if line.startswith(f"{key}=")
    ]
    return found


def test_there_are_settings_for_each() -> None:
    assert {path.stem for path in FOLDER.glob("*.service")} == set(SETTINGS)


def test_systemd_takes_them(tmp_path: Path) -> None:
    """With programs in the place of those that an installation has."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on the PATH (Debian's package systemd)")
    for name in ("xgr", "python"):
        program(tmp_path / "bin" / name, "true")
    units = []
    for path in FOLDER.glob("*.service"):
        units.append(tmp_path / path.name)
        units[-1].write_text(path.read_text().replace(BIN, f"{tmp_path}/bin/"))
    (tmp_path / "wrong.service").write_text(f"[Service]\nExecStart={tmp_path}/bin/none\nRestrt=no\n")
    assert verified(units) == ""
    said = verified([tmp_path / "wrong.service"])
    assert "Restrt" in said and "not executable" in said, "the check can fail"


def verified(units: list[Path]) -> str:
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return (done.stdout + done.stderr).strip()


@pytest.mark.parametrize("unit", SETTINGS)
def test_the_process_takes_its_flags_and_has_time_to_stop(unit: str, tmp_path: Path) -> None:
    text = value(unit, "ExecStart").replace("%i", "0")
    assert text.startswith(BIN)
    (runs,) = [runs for runs in RUNS if text.startswith(f"{BIN}{runs} ")]
    flags = shlex.split(text)[1 + len(runs.split()) - 1 :]
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS[unit])
    (named,) = [flag for flag in flags if flag.startswith("--config=/etc/xgr/")]
    given = [f"--config={settings}" if flag == named else flag for flag in flags]
    config = parse(RUNS[runs], given, {})
    drain = config.leave_timeout if "worker" in runs else config.drain_timeout
    assert 0 < drain < int(value(unit, "TimeoutStopSec"))
    assert value(unit, "User") == "xgr"
