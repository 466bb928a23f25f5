"""The file by which a decode worker finds the memory of its prefill worker."""

import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv import published as module
from xgr_runtime.kv.published import Publication, PublishedMemory, publish, wait_for
from xgr_runtime.kv.shared_memory import this_process
from xgr_runtime.wire.messages import HostRegion, ModelIdentity, ProcessId, SharedKv

MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)


def published_by(owner: ProcessId, id: int = 7) -> PublishedMemory:
    return PublishedMemory(MODEL, SharedKv(id, 4, 16, HostRegion(owner, 3, 100), HostRegion(owner, 4, 24)))


def dead_process() -> ProcessId:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ProcessId(ended.pid, 1)


def test_it_comes_back_as_it_was_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    for id in (7, 8):  # a restarted owner replaces it
        publish(path, published_by(this_process(), id))
        assert wait_for(path, bool, patience=0.0) == published_by(this_process(), id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and list(tmp_path.iterdir()) == [path]


def test_it_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    publish(path, published_by(dead_process()))  # of an earlier run
    later = threading.Timer(0.2, publish, [path, published_by(this_process(), 9)])
    later.start()
    assert wait_for(path, bool, patience=30.0).kv.id == 9
    later.join()


@pytest.mark.parametrize("owner", [None, "dead"], ids=["no-file", "dead-owner"])
def test_the_wait_ends(tmp_path: Path, owner: str | None) -> None:
    path = tmp_path / "memory.json"
    if owner:
        publish(path, published_by(dead_process()))
    with pytest.raises(ConfigError, match=r"memory\.json"):
        wait_for(path, bool, patience=0.0)
    with pytest.raises(ConfigError):
        wait_for(path, lambda: True, patience=1e9)


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff"], ids=str)
def test_another_file_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "memory.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match="not what a prefill worker publishes"):
        wait_for(path, bool, patience=time.monotonic())


def test_what_somebody_removes_is_published_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP_EVERY", 0.0)
    path = tmp_path / "run" / "memory.json"
    path.parent.mkdir()
    kept = Publication(path, published_by(this_process()))
    path.unlink()
    kept.keep()
    assert wait_for(path, bool, patience=0.0) == published_by(this_process())
    shutil.rmtree(path.parent)
    kept.keep()  # there is no folder yet
    path.parent.mkdir()
    kept.keep()
    assert wait_for(path, bool, patience=0.0) == published_by(this_process())


def test_what_another_run_has_published_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP_EVERY", 0.0)
    path = tmp_path / "memory.json"
    kept = Publication(path, published_by(this_process(), 7))
    publish(path, published_by(this_process(), 8))
    kept.keep()
    assert wait_for(path, bool, patience=0.0).kv.id == 8
