"""A listener whose socket file is removed: whoever is connected stays so, and others find it again."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from until import until

from xgr_runtime.transport import Link, Listener
from xgr_runtime.transport import upkeep as module
from xgr_runtime.wire.messages import PROTOCOL, Hello, ToPrefill, ToRouter

CLEANINGS: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("away")),
    "a-file-instead": lambda path: (path.unlink(), path.touch()),
    "a-link-in-a-circle": lambda path: (path.unlink(), path.symlink_to(path)),
    "folder-made-again": lambda path: (shutil.rmtree(path.parent), path.parent.mkdir(0o700)),
}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    return folder / "s"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener[Any]]:
    made: Listener[Any] = Listener(f"ipc://{path}", ToPrefill)
    yield made
    made.close()


def arrives(link: Link[Any], listener: Listener[Any], number: int, seconds: float = 20.0) -> bool:
    """Whether a message gets there and may be answered, the listener doing what its loop does."""
    end = time.monotonic() + seconds
    hello, sent = Hello(PROTOCOL, number, "r"), False
    while time.monotonic() < end:
        sent = sent or link.send(hello)
        for received in listener.receive_some():
            if received.message == hello:
                return listener.send(received.peer, hello)
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_old_links_stay_and_new_ones_come(
    cleaning: str, path: Path, listener: Listener[Any], caplog: pytest.LogCaptureFixture
) -> None:
    old: Link[Any] = Link(listener.address, ToRouter)
    assert arrives(old, listener, 1) and not caplog.records
    for times in (1, 2):
        CLEANINGS[cleaning](path)
        new: Link[Any] = Link(listener.address, ToRouter) if path.parent.exists() else old
        assert arrives(new, listener, 10 + times), "a newcomer gets through"
        assert arrives(old, listener, 20 + times), "nobody was cut off"
        assert [record.levelname for record in caplog.records] == ["WARNING"] * times
        new.close()
    old.close()


@pytest.mark.parametrize("mode", [None, 0o755], ids=["gone", "open-to-others"])
def test_a_folder_that_keeps_nobody_out_is_waited_for(
    mode: int | None, path: Path, listener: Listener[Any], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(path.parent)
    if mode:
        path.parent.mkdir(mode)
        path.parent.chmod(mode)

    def look() -> bool:
        listener.receive()
        return bool(caplog.records)

    until(look, "it is said", 20)
    for _ in range(5):
        time.sleep(0.02)
        listener.receive()
    assert len(caplog.records) == 1 and not path.exists()
    path.parent.mkdir(0o700, exist_ok=True)
    path.parent.chmod(0o700)
    until(lambda: listener.receive() or path.exists(), "it listens again", 20)


def test_a_socket_of_somebody_else_is_left_alone(path: Path, listener: Listener[Any]) -> None:
    path.unlink()
    other: Listener[Any] = Listener(listener.address, ToPrefill)
    theirs = path.stat().st_ino
    for _ in range(5):
        time.sleep(0.02)
        listener.receive()
    assert path.stat().st_ino == theirs
    other.close()


def test_others_than_files_are_not_looked_for() -> None:
    listener: Listener[Any] = Listener("tcp://127.0.0.1:*", ToPrefill)
    link: Link[Any] = Link(listener.address, ToRouter)
    assert arrives(link, listener, 1)
    link.close()
    listener.close()
