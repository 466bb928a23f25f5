"""Output that nobody reads to its end, as behind `| head`: a command ends in silence, without a traceback."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

import pytest

from xgr_runtime import cli


@contextmanager
def read_by_nobody() -> Iterator[None]:
    """The standard output is a pipe whose reader has gone. At the end Python writes what is left."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as text, redirect_stdout(text):
        yield


def command(monkeypatch: pytest.MonkeyPatch, run: Callable[[], int]) -> None:
    """`xgr keys` does this."""

    def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        subparsers.add_parser("keys").set_defaults(func=lambda args: run())

    monkeypatch.setattr(cli.keys, "add_parser", add_parser)


@pytest.mark.parametrize("lines", [1, 100_000], ids=["kept-until-the-end", "more-than-is-kept"])
def test_a_long_or_a_short_answer(
    lines: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        for line in range(lines):
            print(line)
        return 0

    command(monkeypatch, run)
    with read_by_nobody():
        assert cli.main(["keys"]) == cli.NOBODY_READS
    assert capfd.readouterr().err == ""


def test_help() -> None:
    with read_by_nobody():
        assert cli.main(["--help"]) == cli.NOBODY_READS


def test_a_link_that_breaks_is_another_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> int:
        here, there = socket.socketpair()
        there.close()
        with here:
            return here.send(b"x")

    command(monkeypatch, run)
    with pytest.raises(BrokenPipeError):
        cli.main(["keys"])
