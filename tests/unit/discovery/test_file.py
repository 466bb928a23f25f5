"""A file of workers: what it may hold, and what is said of one that holds something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.discovery.file import MOST_BYTES, FileList
from xgr_runtime.discovery.static import StaticList
from xgr_runtime.errors import ConfigError


def test_all_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "workers.json"
    path.write_text('{"decode": ["ipc:///r/d"], "prefill": ["tcp://127.0.0.1:1", "http://127.0.0.1:2"]}')
    assert FileList(path).look() == [
        WorkerAddress("prefill", "tcp://127.0.0.1:1"),
        WorkerAddress("prefill", "http://127.0.0.1:2"),
        WorkerAddress("decode", "ipc:///r/d"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no list of workers"),
        (b'{"prefill": ["ipc:///r/p"], "decode": ["ipc:', "is no list of workers"),
        (b'{"prefill": ["ipc:///r/p"]}', "decode"),
        (b'{"prefill": [], "decode": [], "router": []}', "router"),
        (b'{"prefill": "ipc:///r/p", "decode": []}', "prefill"),
        (b'{"prefill": [1], "decode": []}', "prefill"),
        (b"[]", "is no list of workers"),
        (b"\xff\xfe", "is no list of workers"),
        (b'{"prefill": ["\xff"], "decode": []}', "is no list of workers"),
        (b"[" * 100_000, "is no list of workers"),
        (b'{"prefill": ["a", "a"], "decode": []}', "a is named twice"),
        (b'{"prefill": ["a"], "decode": ["a"]}', "a is named twice"),
        (b" " * (MOST_BYTES + 1), "bytes"),
        (b'{"prefill": [], "decode": []}', "names no worker"),
    ],
    ids=lambda value: f"{value[:30]!r}",
)
def test_what_is_no_list_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "workers.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as raised:
        FileList(path).look()
    assert str(path) in str(raised.value)


def test_what_is_no_file_is_named_and_waited_for_by_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match=f"{path} "):
            FileList(path).look()


def test_a_file_that_others_may_write_to_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "workers.json"
    path.write_text('{"prefill": ["a"], "decode": []}')
    for mode in (0o620, 0o602):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"chmod go-w {path}"):
            FileList(path).look()
    path.chmod(0o644)
    assert len(FileList(path).look()) == 1


def test_settings_name_each_worker_once() -> None:
    assert StaticList(["a", "b"], ["c"]).look() == [
        WorkerAddress("prefill", "a"),
        WorkerAddress("prefill", "b"),
        WorkerAddress("decode", "c"),
    ]
    with pytest.raises(ConfigError, match="a is named twice"):
        StaticList(["a"], ["a"]).look()
