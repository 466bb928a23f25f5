"""Files of traffic, devices, costs and recorded requests: what they become; wrong ones are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from xgr_runtime.errors import ConfigError
from xgr_runtime.planning.devices import DeviceKind, Site, read_devices
from xgr_runtime.planning.traffic import PlannedTraffic, drawn, read_recorded, read_traffic

MODEL = "{layers = 2, hidden = 64, intermediate = 64, q_heads = 2, kv_heads = 2, head_dim = 32, vocab = 100}"
COSTS = {
    "machine": "a machine",
    "prefill": {"fixed": 1e-3, "per_token": 1e-4, "per_pair": 0.0},
    "decode": {"fixed": 1e-3, "per_token": 1e-4, "per_pair": 0.0},
    "token_bytes": 1024,
    "layers": 4,
    "kv_pages": 100,
    "overhead": 0.002,
}


def devices(folder: Path, text: str) -> tuple[list[DeviceKind], Site]:
    (folder / "costs.json").write_text(json.dumps(COSTS))
    file = folder / "devices.toml"
    file.write_text(text)
    return read_devices(file)


def test_devices_by_costs_and_by_roofline(tmp_path: Path) -> None:
    (ours, card), around = devices(
        tmp_path,
        f"""
        model = {MODEL}
        cores = 2
        [[devices]]
        name = "ours"
        price = 1
        costs = "costs.json"
        page_size = 32
        roles = ["decode", "prefill"]
        [[devices]]
        name = "card"
        price = 3.5
        roofline = "H100"
        kv_tokens = 5000
        """,
    )
    assert (ours.kv_tokens, ours.layers, ours.roles, ours.cohorts) == (3200, 4, ("prefill", "decode"), False)
    assert (card.kv_tokens, card.price, card.cohorts, card.token_bytes) == (5000, 3.5, True, 2 * 2 * 2 * 64)
    assert around == Site(link=50e9, router=0.5e-3, overhead=0.002, cores=2)
    assert ours.speed.forward([(0, 10)]) == pytest.approx(2e-3)
    one, many = card.speed.forward([(0, 64)]), card.speed.forward([(0, 64)] * 64)
    assert one < many < 64 * one


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ('name = "a"\nprice = 1', "device a needs costs, a file of `xgr bench --calibrate`, or a roofline"),
        ('name = "a"\nprice = 1\ncosts = "costs.json"\nroofline = "H100"', "needs costs"),
        ('name = "a"\nprice = 1\nroofline = "H1"', "no numbers of a device 'H1': use one of H200, H100"),
        ('name = "a"\nprice = 1\nroofline = "H100"', "device a needs kv_tokens"),
        ('name = "a"\nprice = 0\ncosts = "costs.json"', "devices.0..price"),
        ('name = "a"\nprice = 1\ncosts = "none.json"', "none.json cannot be read"),
        ('name = "a"\nprice = 1\ncosts = "devices.toml"', "is no file of `xgr bench --calibrate`"),
        ('name = "a"\nprice = 1\nroles = []\ncosts = "costs.json"', "roles"),
        ('name = "a"\nprices = 1', "prices"),
        (
            'name = "a"\nprice = 1\ncosts = "costs.json"\n' * 1 + '[[devices]]\nname = "a"\nprice = 2\n',
            "one name",
        ),
    ],
    ids=range(10),
)
def test_a_wrong_file_of_devices_is_refused(tmp_path: Path, device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        devices(tmp_path, f"model = {MODEL}\n[[devices]]\n{device}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate = 1", "slo_ms"),
        ("rate = 0\nslo_ms = 1", "rate"),
        ("rate = 1\nslo_ms = 1\nprompt_tokens = {}", "prompt_tokens and beam_width need a number"),
        ("rate = 1\nslo_ms = 1\nbeam_width = {0 = 1}", "beam_width"),
        ("rate = 1\nslo_ms = 1\nwidth = 3", "width"),
        ("rate = ", "traffic.toml"),
    ],
    ids=range(6),
)
def test_a_wrong_file_of_traffic_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "traffic.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_traffic(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_traffic(tmp_path / "other.toml")


def test_drawn_requests_are_as_the_traffic_says() -> None:
    traffic = PlannedTraffic(
        rate=5.0, slo_ms=100, prompt_tokens={64: 3, 256: 1}, beam_width={8: 1, 32: 1}, returning=0.5, users=20
    )
    requests = drawn(traffic, 4000, 3)
    assert requests[-1].at == pytest.approx(4000, rel=0.1), "one per second"
    assert np.mean([request.width == 8 for request in requests]) == pytest.approx(0.5, abs=0.05)
    seen: dict[int, np.ndarray] = {}
    back = 0
    for request in requests:
        assert len(request.tokens) <= 256
        before = seen.get(int(request.tokens[0]))
        if before is not None:
            assert len(request.tokens) == len(before) + 9
            assert (request.tokens[: len(before)] == before).all()
            back += 1
        seen[int(request.tokens[0])] = request.tokens
    assert 0.35 < back / len(requests) <= 0.52, "some of those who return begin anew"


def test_recorded_requests_come_as_they_came(tmp_path: Path) -> None:
    lines = [
        {"at": 100.0, "prompt_tokens": 5, "beam_width": 2, "user": "a", "rid": "x"},
        {"at": 100.5, "prompt_tokens": 4, "beam_width": 3},
        {"at": 104.0, "prompt_tokens": 8, "beam_width": 2, "user": "a"},
        {"at": 102.0, "prompt_tokens": 3, "beam_width": 2, "user": "a"},
    ]
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    requests, rate = read_recorded(file)
    assert rate == pytest.approx(3 / 4)
    assert [request.at / rate for request in requests] == pytest.approx([0.0, 0.5, 2.0, 4.0])
    first, other, short, long = (request.tokens for request in requests)
    assert [len(tokens) for tokens in (first, other, short, long)] == [5, 4, 3, 8]
    assert (short == first[:3]).all() and (long[:5] == first).all()
    assert other[0] != first[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"at": 1, "prompt_tokens": 5, "beam_width": 2}', "no two requests at different times"),
        ('{"at": 1, "prompt_tokens": 5}', "line 1: .*beam_width"),
        ('{"at": 1, "prompt_tokens": 0, "beam_width": 2}', "line 1: .*prompt_tokens"),
        ("{", "line 1"),
        ("", "no two requests"),
    ],
    ids=range(5),
)
def test_a_wrong_log_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recorded(file)
