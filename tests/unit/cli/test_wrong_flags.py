"""What people get wrong on the command line of any command: one line that names it, never a stack trace."""

import os
from pathlib import Path

import pytest

from xgr_runtime.cli import main

NOBODY = "http://127.0.0.1:1"
DEMO = ["demo", "--exit"]
TRACE = ["trace", "--url", NOBODY, "--out", "{folder}/trace.json"]
BENCH = ["bench", "--url", NOBODY, "--catalog", "{folder}/none.json"]


def refusal(argv: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr of a command that ends with 2."""
    os.mkfifo(folder / "pipe.json", 0o600)  # nobody writes to it
    (folder / "deep").write_text("[" * 100_000)
    (folder / "items.json").write_text("{}")
    try:
        code = main([part.format(folder=folder) for part in argv])
    except SystemExit as stop:  # argparse's own
        code = stop.code  # type: ignore[assignment]
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        *(([*DEMO, "--port", value], "--port") for value in ("-1", "99999", "1e3", "x", "9" * 5000)),
        *(([*DEMO, flag, "-1"], flag) for flag in ("--items", "--users", "--test-users", "--seed")),
        *(([*DEMO, flag, "9" * 30], flag) for flag in ("--items", "--users", "--test-users", "--seed")),
        *(([*DEMO, "--train-seconds", value], "--train-seconds") for value in ("nan", "inf", "-1", "1e9")),
        *(([*TRACE, "--seconds", value], "--seconds") for value in ("nan", "inf", "-1", "0", "601", "1e400")),
        *(([*TRACE, "--api-key", value], "--api-key") for value in ("schlüssel", "a\nb", " ", "\udcff")),
        *(
            (["trace", "--url", url], "--url")
            for url in ("x", "http://[::1", "ftp://x", f"http://{'a' * 300}", "http://a..b")
        ),
        *(([*BENCH, "--rate", value], "--rate") for value in ("nan", "1e400", "-1", "1,,2", "1e9", "x")),
        *(([*BENCH, "--in-flight", value], "--in-flight") for value in ("1e20", "0", "nan")),
        *(([*BENCH, "--rate", "1", "--seed", value], "--seed") for value in ("-1", "1e3", "9" * 30)),
        *(([*BENCH, "--rate", "1", "--duration", value], "--duration") for value in ("nan", "inf", "0")),
        (["catalog", "build", "{folder}/pipe.json", "--out", "{folder}/out"], "pipe.json"),
        (["keys", "public", "{folder}/pipe.json"], "pipe.json"),
        (["keys", "public", "{folder}"], "cannot be read"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_it_is_named(argv: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(argv, tmp_path, capsys)
    assert named in line and len(line) < 1000


@pytest.mark.parametrize("key", ["schlüssel", "two words", "line\nbreak", "\udcff"])
def test_a_key_that_no_header_carries_is_named_and_not_shown(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XGR_API_KEY", key)
    line = refusal([*BENCH, "--rate", "1"], tmp_path, capsys)
    assert "XGR_API_KEY" in line and key not in line


@pytest.mark.parametrize("text", ["50:nan", "50:1e999", "50:0", "9" * 30, "50:0.5,nan", "1e9", "0"])
def test_widths_that_are_none(text: str) -> None:
    from xgr_runtime.cli.bench.settings import Widths
    from xgr_runtime.errors import ConfigError

    with pytest.raises(ConfigError, match="--beam-width"):
        Widths.parse(text)


@pytest.mark.parametrize("name", ["none.json", "pipe.json", "deep", "items.json"])
def test_a_catalog_that_cannot_be_served_is_named_with_its_flag(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "xgr_runtime.launcher.deployment.check", lambda config: None
    )  # the model does not matter here
    line = refusal(
        ["serve", "--model-path", str(tmp_path), "--catalog", f"{{folder}}/{name}"], tmp_path, capsys
    )
    assert line.startswith(f"xgr serve: error: --catalog {tmp_path / name}")
