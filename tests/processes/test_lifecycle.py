"""The whole deployment as a user runs it: start, serve, stop, start again, and a worker that dies."""

import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from freed import assert_all_freed
from serve import Serve
from shared_templates import SharedStarter
from until import PATIENCE, until

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig, parse
from xgr_runtime.errors import RequestError, StartupError
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.launcher.run_folder import run_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, as socket paths have a limit, with what a list of addresses might stumble over."""
    with tempfile.TemporaryDirectory(prefix="xgr-t-", dir="/tmp") as made:
        (odd := Path(made) / "a, b:ü").mkdir()
        yield odd


def serve(folder: Path, *argv: str) -> Serve:
    return Serve(argv, {**os.environ, "TMPDIR": str(folder)})


@contextmanager
def serving(checkpoint: Path, catalog: Path, folder: Path, *flags: str) -> Iterator[Serve]:
    files = ["--model-path", str(checkpoint), "--catalog", str(catalog)]
    server = serve(folder, *files, "--port", "0", "--kv-bytes", "67108864", *flags)
    with closing(server):
        yield server


def assert_nothing_left(family: list[psutil.Process], folder: Path, shm: set[Path]) -> None:
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, f"still running: {alive}"
    assert not run_folders(folder), "sockets or folders left"
    assert shared_memory() <= shm, "segments left"


def run_folders(folder: Path) -> list[Path]:
    """What launchers made there; torch keeps a cache of its own in the same place."""
    return list(folder.glob("xgr-*"))


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def test_a_signal_under_load_drains_and_leaves_nothing(
    checkpoint: Path, catalog_source: Path, folder: Path
) -> None:
    """SIGTERM; for SIGINT see `test_bad_input.locked`."""
    shm = shared_memory()
    with serving(checkpoint, catalog_source, folder) as server:
        client = XgrClient(server.url())
        family = server.family()
        assert len(family) == 5  # a pair of workers, the router, and the templates of both
        started = threading.Event()
        outcomes: list[object] = []

        def load() -> None:
            while True:
                try:
                    outcomes.append(client.generate(input_ids=[1, 5, 6, 7] * 60, beam_width=64, n=5))
                except RequestError as error:
                    outcomes.append(error)
                    return
                except Exception as error:  # the port is closed: the drain is over
                    outcomes.append(error)
                    return
                started.set()

        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(load)
            assert started.wait(60)
            server.process.terminate()
            assert server.end() == 0
        assert_nothing_left(family, folder, shm)
    ended = [o for o in outcomes if isinstance(o, Exception)]
    codes = {getattr(error, "code", type(error).__name__) for error in ended}
    assert codes <= {"draining", "ConnectError", "RemoteProtocolError", "ReadError"}, codes
    assert not any("Traceback" in line for line in server.lines)


def test_a_killed_launcher_takes_everything_with_it(
    checkpoint: Path, catalog_source: Path, folder: Path
) -> None:
    with serving(checkpoint, catalog_source, folder) as server:
        server.url()
        family = server.family()
        server.process.kill()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
    assert run_folders(folder)
    with run_folder(folder):  # what a killed launcher could not remove, the next one does
        assert len(run_folders(folder)) == 1


@pytest.mark.in_turns("module")
@pytest.mark.parametrize("module", ["prefill_worker", "decode_worker"])
def test_a_killed_worker_comes_back(
    checkpoint: Path, catalog_source: Path, folder: Path, module: str
) -> None:
    """As a new process; the fault suite kills those that are forked."""
    with serving(checkpoint, catalog_source, folder, "--start-method", "spawn") as server:
        client = XgrClient(server.url())
        before = client.generate(input_ids=[1, 5, 6, 7], beam_width=8)
        server.worker(module).kill()
        until(lambda: not client.ready(), "the loss is noticed", every=0.01)
        until(client.ready, "a new one is ready")
        after = client.generate(input_ids=[1, 5, 6, 7], beam_width=8)
        assert after.meta_info.beam_results == before.meta_info.beam_results
        assert_all_freed(client)


def test_what_a_worker_refuses_is_one_clear_line_and_leaves_nothing(
    checkpoint: Path, catalog_source: Path, folder: Path
) -> None:
    with serving(checkpoint, catalog_source, folder, "--kv-bytes", "1") as server:
        assert server.end(PATIENCE) == 2
    errors = [line for line in server.lines if "error:" in line]
    assert len(errors) == 1 and "--kv-bytes" in errors[0], "".join(server.lines)
    assert not any("Traceback" in line or "ready at" in line for line in server.lines)
    assert not run_folders(folder)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--model-path", "/nowhere"),
        ("--catalog", "/nowhere.json"),
        ("--max-prompt-tokens", "100000000"),
        ("--model-backend", "sglang"),
        ("--max-rows", "8"),
        ("--port", "http"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_a_wrong_flag_is_named_before_any_port_opens(
    checkpoint: Path,
    catalog_source: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    value: str,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    argv = {"--model-path": str(checkpoint), "--catalog": str(catalog_source), "--port": "0", flag: value}
    shared = SharedStarter(ServeConfig(model_path=str(checkpoint), catalog=str(catalog_source)))
    with pytest.raises(StartupError) as refused:
        config = parse(ServeConfig, [part for pair in argv.items() for part in pair])
        with Deployment(config, shared):
            pytest.fail("it serves")
    assert (value if value.startswith("/") else flag) in str(refused.value)
    assert not run_folders(folder)
