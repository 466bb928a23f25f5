"""`xgr plan` as a user runs it."""

import json
from pathlib import Path

import pytest

from xgr_runtime.cli import main

COST = {"fixed": 1e-3, "per_token": 1e-4, "per_pair": 0.0}
COSTS = {"machine": "m", "prefill": COST, "decode": COST, "token_bytes": 64, "layers": 2, "kv_pages": 4096}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "costs.json").write_text(json.dumps(COSTS))
    (tmp_path / "devices.toml").write_text(
        '[[devices]]\nname = "ours"\nprice = 2.5\ncosts = "costs.json"\nroles = ["prefill", "decode"]\n'
    )
    (tmp_path / "traffic.toml").write_text("rate = 30\nslo_ms = 400\nprompt_tokens = 400\nbeam_width = 20\n")
    return ["plan", str(tmp_path / "traffic.toml"), "--devices", str(tmp_path / "devices.toml")]


def test_a_plan_is_printed_and_its_last_line_is_json(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*files, "--requests", "150"]) == 0
    out, err = capsys.readouterr()
    line = json.loads(out.splitlines()[-1])
    assert line["mix"] == [
        {"device": "ours", "role": "prefill", "count": 2},
        {"device": "ours", "role": "decode", "count": 1},
    ]
    assert line["price"] == 7.5
    assert line["even_split"]["price"] == 10.0
    assert line["p99_ms"] <= 400
    assert line["margin"] >= 1
    assert out.startswith("2 x ours as prefill, 1 x ours as decode: price 7.5\n")
    assert "what breaks first" in out
    assert "1 x ours as prefill, 1 x ours as decode" not in err, "one prefill device cannot bear the rate"


def test_recorded_requests_are_played_at_their_rate(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    lines = [{"at": at / 10, "prompt_tokens": 400, "beam_width": 20} for at in range(120)]
    log.write_text("\n".join(map(json.dumps, lines)))
    assert main([*files, "--recorded", str(log)]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["rate"] == pytest.approx(10)
    assert line["price"] == 5.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--requests", "50"], "--requests is 50"),
        (["--recorded", "/nowhere/log"], "/nowhere/log cannot be read"),
        (["--rate", "1e6"], "all devices together do not hold"),
    ],
    ids=["few", "no-log", "too-much"],
)
def test_what_cannot_be_planned_is_one_line(
    files: list[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*files, *flags]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_prompt_that_no_device_holds_is_said(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "traffic.toml").write_text("rate = 1\nslo_ms = 400\nprompt_tokens = 100000\n")
    assert main([*files, "--requests", "100"]) == 2
    assert "device ours holds 65536 tokens and 2048 rows" in capsys.readouterr().err
