"""A process that is given no pipe where it should tell that it is ready says so in one line."""

import os
import sys

import pytest

from xgr_runtime.config import RouterConfig
from xgr_runtime.process.lifecycle import main
from xgr_runtime.process.log import stderr


@pytest.mark.parametrize("fd", [999_999, 0], ids=["none", "no pipe"])
def test_it_is_named(fd: int, capfd: pytest.CaptureFixture[str]) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        given = fd or null
        flags = ["--model-path=/m", "--catalog=/c", "--prefill=ipc:///p", "--decode=ipc:///d"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "_exit", sys.exit)  # a process below a launcher does not return
            assert _code([*flags, f"--ready-fd={given}"]) == 2
    finally:
        os.close(null)
    assert stderr.flush(20.0)
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"router: error: --ready-fd is {given}, no pipe of a launcher: leave it out"


def _code(argv: list[str]) -> object:
    try:
        return main(RouterConfig, lambda *_: None, "router", argv)
    except SystemExit as stop:
        return stop.code
