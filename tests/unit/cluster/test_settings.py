"""The table [cluster], and what of a serve.toml no cluster can have."""

from __future__ import annotations

import argparse
import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ports import free_port

from xgr_runtime.cli import main
from xgr_runtime.cluster.plan import ClusterPlan, make_plan, router_of, worker_program, write_keys
from xgr_runtime.cluster.scaling import WorkerBounds
from xgr_runtime.config import (
    ClusterConfig,
    DecodeConfig,
    PrefillConfig,
    RouterConfig,
    ServeConfig,
    from_args,
    parse,
    read_cluster,
)
from xgr_runtime.errors import ConfigError
from xgr_runtime.transport.keyring import read_keyring


def plan_of(**settings: Any) -> ClusterPlan:
    serve = ServeConfig(**({"model_path": "/model", "catalog": "/shop.xgr", "api_key": "k" * 9} | settings))
    return make_plan(serve, ClusterConfig(), "")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([], "is no table"),
        ({"prefil_min": 1}, "prefil_min"),
        ({"prefill_min": 3, "prefill-max": 2}, "prefill_min is 3 and prefill_max 2: raise the second"),
        ({"decode_max": 0}, "decode_max"),
        ({"decode_target": "many"}, "decode_target"),
        ({"name": "a/b"}, "small letters"),
        ({"name": ""}, "small letters"),
        ({"prefill_gpus": 1.5}, "a whole number, or a part of one"),
        ({"decode_cpus": float("nan")}, "decode_cpus"),
        ({"scale_down_seconds": 0}, "scale_down_seconds"),
    ],
)
def test_a_wrong_table_is_refused_by_name(table: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_cluster(table)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"standby": 1}, "standby is for one machine"),
        ({"any_workers": 1}, "any_workers is for one machine"),
        ({"catalog_store": "/store"}, "catalog_store is for one machine"),
        ({"workers_file": "/w.json"}, "workers_file is for one machine"),
        ({"catalog": ""}, "no catalog is named"),
        ({"layout": "colocated"}, "colocated"),
        ({"device": "cuda:1"}, "Ray chooses which"),
    ],
)
def test_what_one_machine_alone_can_have_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_of(**settings)


def test_gpus_go_with_the_device() -> None:
    plan = plan_of(device="cuda")
    assert [plan.gpus(role) for role in ("router", "prefill", "decode")] == [0.0, 1.0, 1.0]
    serve = ServeConfig(model_path="/model", catalog="/shop.xgr")
    with pytest.raises(ConfigError, match="device is cpu: set device to cuda"):
        make_plan(serve, ClusterConfig(decode_gpus=0.5), "")
    with pytest.raises(ConfigError, match="decode_gpus is 0"):
        make_plan(msgspec.structs.replace(serve, device="cuda"), ClusterConfig(decode_gpus=0.0), "")


def test_one_file_is_for_a_machine_and_for_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('model_path = "/model"\ncatalog = "c"\n[cluster]\nprefill-max = 3\n')
    args = argparse.Namespace(config=str(path))
    assert from_args(ServeConfig, args, {}).catalog == "c"
    path.write_text('model_path = "/model"\n[cluster]\nprefil_max = 3\n')
    with pytest.raises(ConfigError, match="prefil_max"):
        from_args(ServeConfig, args, {})


def test_the_sample_is_a_deployment() -> None:
    sample = Path(__file__).parents[3] / "deploy" / "ray" / "serve.toml"
    serve = from_args(ServeConfig, argparse.Namespace(config=str(sample)), {})
    cluster = read_cluster(tomllib.loads(sample.read_text())["cluster"])
    plan = make_plan(serve, cluster, "")
    assert plan.bounds("decode") == WorkerBounds(2, 16, 0.6, 300.0) and plan.cpus("prefill") == 4.0


def test_processes_read_what_they_are_given(tmp_path: Path) -> None:
    """Each has the secret key of its role, and knows the public ones of all."""
    plan = plan_of(device="cuda", drain_timeout=7.0)
    folders = {role: tmp_path / role for role in ("router", "prefill", "decode")}
    given = {}
    for role, folder in folders.items():
        folder.mkdir()
        given[role] = write_keys(plan, role, folder)
        ring = read_keyring(given[role]["curve_key"], given[role]["curve_allow"])
        assert ring and ring.name == role and set(ring.allowed) == set(folders)
        assert plan.keys[role][1] not in repr(plan)
    prefill = parse(
        PrefillConfig, worker_program(plan, "prefill", "p", "fe80::1", (1, 2), **given["prefill"]).argv, {}
    )
    assert (prefill.control_address, prefill.device, prefill.leave_timeout) == (
        "tcp://[fe80::1]:1",
        "cuda:0",
        7,
    )
    decode = parse(
        DecodeConfig, worker_program(plan, "decode", "d", "10.0.0.1", (1, 2), **given["decode"]).argv, {}
    )
    assert (decode.data_address, decode.catalog) == ("tcp://10.0.0.1:2", "/shop.xgr")
    program = router_of(plan, "router-0", tmp_path / "workers.json", **given["router"])
    assert not any("k" * 9 in arg for arg in program.argv), "everybody reads arguments"
    router = parse(RouterConfig, program.argv, program.environ)
    assert (router.crash_budget, router.max_attempts) == (3, 4), "a node takes a pair"
    assert router.api_key == "k" * 9 and router.workers_file == str(tmp_path / "workers.json")


def test_the_command_says_in_a_line_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more)
    )
    assert main(["ray", "status"]) == 2
    assert capsys.readouterr().err == "xgr ray: error: Ray is not installed: pip install 'xgr-runtime[ray]'\n"


@pytest.mark.parametrize("address", ["nonsense", "ray://10.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_that_cannot_be_is_refused_at_once(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="pip install 'xgr-runtime[ray]'")
    assert main(["ray", "down", "--address", address]) == 2
    said = capsys.readouterr().err
    assert said.startswith("xgr ray: error: ") and address in said and said.count("\n") == 1


def test_an_address_where_nobody_listens_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="pip install 'xgr-runtime[ray]'")
    address = f"127.0.0.1:{free_port()}"
    assert main(["ray", "status", "--address", address]) == 2
    assert f"no Ray cluster at --address {address} (Connection refused)" in capsys.readouterr().err
