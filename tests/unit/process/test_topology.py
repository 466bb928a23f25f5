"""What a deployment is made of, its private folder, and what it refuses before anything starts."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from xgr_runtime.cli import main
from xgr_runtime.config import DecodeConfig, PrefillConfig, RouterConfig, ServeConfig, parse
from xgr_runtime.errors import ConfigError
from xgr_runtime.launcher.run_folder import PID_FILE, run_folder, sweep
from xgr_runtime.launcher.topology import check, count_gpus, plan

SERVE = ServeConfig(
    model_path="model",
    catalog="source.json",
    prefill_workers=2,
    decode_workers=3,
    api_key="sesame",
    max_rows=1500,
    workers_file="workers.json",
)


def test_plan_is_what_the_processes_parse() -> None:
    workers, router = plan(SERVE, Path("/run/x"), "/run/x/catalog.xgr", cores=16)
    modules = [program.module for program in workers.programs]
    assert modules == ["prefill_worker"] * 2 + ["decode_worker"] * 3
    prefill = [parse(PrefillConfig, p.argv, {}) for p in workers.programs[:2]]
    decode = [parse(DecodeConfig, p.argv, {}) for p in workers.programs[2:]]
    assert [c.name for c in prefill + decode] == [
        "prefill-0",
        "prefill-1",
        "decode-0",
        "decode-1",
        "decode-2",
    ]
    assert {c.threads for c in prefill + decode} == {3}
    assert {c.catalog for c in decode} == {"/run/x/catalog.xgr"}
    assert {c.max_rows for c in decode} == {1500}
    addresses = [c.control_address for c in prefill + decode] + [c.data_address for c in decode]
    assert len(set(addresses)) == 8
    assert all(address.startswith("ipc:///run/x/") for address in addresses)
    (program,) = router.programs
    config = parse(RouterConfig, program.argv, program.environ)
    assert config.prefill == [c.control_address for c in prefill]
    assert config.decode == [c.control_address for c in decode]
    assert config.api_key == "sesame"
    assert config.workers_file == "workers.json"


def test_key_is_in_no_argument_and_only_the_router_has_it() -> None:
    workers, router = plan(SERVE, Path("/run/x"), "c", cores=1)
    for program in [*workers.programs, *router.programs]:
        assert not [arg for arg in program.argv if "sesame" in arg]
    assert [p.name for p in [*workers.programs, *router.programs] if "sesame" in p.environ.values()] == [
        "router"
    ]


@pytest.mark.parametrize(("given", "cores", "threads"), [(0, 16, 3), (0, 2, 1), (7, 2, 7)])
def test_threads(given: int, cores: int, threads: int) -> None:
    config = ServeConfig(model_path="m", catalog="c", prefill_workers=2, decode_workers=3, threads=given)
    workers, _ = plan(config, Path("/run/x"), "c", cores)
    assert {program.environ["OMP_NUM_THREADS"] for program in workers.programs} == {str(threads)}


@pytest.mark.parametrize(("sharing", "threads"), [("turns", 8), ("none", 4)])
def test_two_workers_that_take_turns_have_all_cores_each(sharing: str, threads: int) -> None:
    workers, _ = plan(serve(sharing=sharing), Path("/run/x"), "c", cores=8)
    assert [program.environ["OMP_NUM_THREADS"] for program in workers.programs] == [str(threads)] * 2


def devices(config: ServeConfig, gpus: int) -> list[tuple[str, bool, bool]]:
    """Of each worker, prefill first: device, whether memory is shared in place, whether turns are taken."""
    workers, _ = plan(config, Path("/run/x"), "c", cores=4, gpus=gpus)
    kinds = [PrefillConfig] * config.prefill_workers + [DecodeConfig] * config.decode_workers
    parsed = [parse(kind, p.argv, {}) for kind, p in zip(kinds, workers.programs, strict=True)]
    memory = [getattr(c, "publish_memory", "") or getattr(c, "memory_of", "") for c in parsed]
    assert set(memory) <= {"", "/run/x/memory.json"} and len(set(memory)) == 1
    return [(c.device, bool(m), bool(c.turns_file)) for c, m in zip(parsed, memory, strict=True)]  # type: ignore[attr-defined]


def serve(**settings: Any) -> ServeConfig:
    return ServeConfig(model_path="m", catalog="c", **settings)


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({}, 0, [("cpu", False, True)] * 2),
        ({"layout": "colocated"}, 0, [("cpu", True, True)] * 2),
        ({"sharing": "none"}, 0, [("cpu", False, False)] * 2),
        ({"decode_workers": 2}, 0, [("cpu", False, False)] * 3),
        ({"device": "cuda"}, 1, [("cuda", True, True)] * 2),
        ({"device": "cuda", "sharing": "mps"}, 1, [("cuda", True, False)] * 2),
        ({"device": "cuda", "sharing": "none"}, 1, [("cuda", True, False)] * 2),
        ({"device": "cuda", "kv_transfer": "frames"}, 1, [("cuda:0", False, False)] * 2),
        ({"device": "cuda", "layout": "split"}, 1, [("cuda:0", False, False)] * 2),
        ({"device": "cuda:3"}, 8, [("cuda:3", True, True)] * 2),
        ({"device": "cuda"}, 2, [("cuda:0", False, False), ("cuda:1", False, False)]),
        (
            {"device": "cuda", "decode_workers": 2},
            2,
            [("cuda:0", False, False), ("cuda:1", False, False), ("cuda:0", False, False)],
        ),
    ],
    ids=str,
)
def test_layouts(settings: dict[str, object], gpus: int, expected: list[tuple[str, bool, bool]]) -> None:
    assert devices(serve(**settings), gpus) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prefill_workers": 2}, "--prefill-workers"),
        ({"decode_workers": 2}, "--decode-workers"),
        ({"sglang_prefill": ["http://127.0.0.1:1"]}, "--sglang-prefill"),
        ({"kv_transfer": "frames"}, "--kv-transfer"),
    ],
    ids=str,
)
def test_what_cannot_be_colocated_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(serve(layout="colocated", port=0, **settings))


@pytest.mark.parametrize("content", [None, '{"prefill": []}'], ids=["missing", "no list"])
def test_a_file_of_workers_is_read_before_anything_starts(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "workers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"--workers-file {path}"):
        check(serve(port=0, workers_file=str(path)))


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("0", 1),
        ("2, 3", 2),
        ("", 1),
        ("1,0,-1,2", 2),
        ("0,7,1", 1),
        ("NoDevFiles", 1),
        ("GPU-8a,GPU-9b", 2),
        ("MIG-8a,MIG-9b", 1),
    ],
)
def test_gpus_are_counted_as_cuda_shows_them(
    tmp_path: Path, visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus(tmp_path) == count


def test_run_folder_is_private_and_goes(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert (folder.path / PID_FILE).read_text() == f"{os.getpid()}\n"
        (folder.path / "socket").touch()
    assert not list(tmp_path.iterdir())


def test_no_place_for_a_run_folder_names_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set TMPDIR"), run_folder(tmp_path / "none"):
        pass
    with pytest.raises(OSError), run_folder(tmp_path):
        raise OSError("of the one who uses it")
    assert not list(tmp_path.iterdir())


def test_sweep_takes_the_dead_and_leaves_the_living(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from xgr_runtime.launcher.run_folder import run_folder\n"
    )
    code += "with run_folder(Path(sys.argv[1])) as f: os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    (dead,) = tmp_path.iterdir()
    strange = tmp_path / "xgr-notes"
    strange.mkdir()  # no pid file: somebody else's
    with run_folder(tmp_path) as living:
        sweep(tmp_path)
        assert not dead.exists()
        assert set(tmp_path.iterdir()) == {living.path, strange}


def checkpoint(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    save_file({}, folder / "model.safetensors")
    return str(folder)


def test_port_in_use_names_the_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1, .*--port"):
            check(ServeConfig(model_path=checkpoint(tmp_path), catalog="c", port=port))
    check(ServeConfig(model_path=checkpoint(tmp_path), catalog="c", port=port))  # free again


def test_unknown_host_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--host"):
        check(ServeConfig(model_path=checkpoint(tmp_path), catalog="c", port=0, host="192.0.2.1"))


@pytest.mark.parametrize(
    ("host", "key", "warned"), [("0.0.0.0", "", True), ("0.0.0.0", "k", False), ("127.0.0.1", "", False)]
)
def test_open_host_without_key_is_warned_about(
    tmp_path: Path, host: str, key: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check(ServeConfig(model_path=checkpoint(tmp_path), catalog="c", port=0, host=host, api_key=key))
    assert ("no --api-key" in caplog.text) is warned


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--model-path is required"),
        (["--model-path=/nowhere", "--catalog=c"], "/nowhere"),
        (["--model-path={model}", "--catalog=/nowhere.json"], "/nowhere.json"),
        (["--model-path={model}", "--catalog=c", "--prefill-workers=0"], "--prefill-workers"),
        (["--model-path={model}"], "no catalog is named: give --catalog FILE, or a --catalog-store"),
        (["--model-path={model}", "--catalog-store={model}/store"], "holds no catalog yet"),
        (["--model-path={model}", "--catalog-store={model}/config.json"], "config.json cannot be used"),
    ],
)
def test_serve_refuses_in_one_line(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(tmp_path)
    code = main(["serve", "--port=0", *[arg.format(model=model) for arg in argv]])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("xgr serve: error: ")
    assert words in lines[0]


def test_help_needs_no_torch() -> None:
    code = "import sys; from xgr_runtime.cli import main\n"
    code += "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert all(command in ended.stdout for command in ("serve", "demo", "catalog"))
