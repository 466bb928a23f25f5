"""Variables of the environment: a misspelt one is refused with the nearest name, and a right one never."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from xgr_runtime.cli import main
from xgr_runtime.config import DecodeConfig, PrefillConfig, RouterConfig, ServeConfig, check_environ, parse
from xgr_runtime.config.variables import ELSEWHERE, variable
from xgr_runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
KINDS = (PrefillConfig, DecodeConfig, RouterConfig, ServeConfig)
SETTINGS = sorted({field.name for kind in KINDS for field in msgspec.structs.fields(kind)})
SECRET = "sesame"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("XGR_API_KEYS", "XGR_API_KEY"),
        ("XGR_APIKEY", "XGR_API_KEY"),
        ("XGR_API_KYE", "XGR_API_KEY"),
        ("XGR__API_KEY", "XGR_API_KEY"),
        ("XGR_API_KEY ", "XGR_API_KEY"),
        ("xgr_api_key", "XGR_API_KEY"),
        ("Xgr_Admin_Api_Key", "XGR_ADMIN_API_KEY"),
        ("XGR-API-KEY", "XGR_API_KEY"),
        ("XGRAPIKEY", "XGR_API_KEY"),
        ("XRG_API_KEY", "XGR_API_KEY"),
        ("GXR_PORT", "XGR_PORT"),
        ("XGR_ADMIN_KEY", "XGR_ADMIN_API_KEY"),
        ("XGR_BEAM_WIDTH", "XGR_MAX_BEAM_WIDTH"),
        ("XGR_MODEL", "XGR_MODEL_PATH"),
        ("XGR_CONFIG_FILE", "XGR_CONFIG"),
        ("XGR_TORCH_INDEX_URL", "XGR_TORCH_INDEX"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_environ({name: SECRET})
    assert f"did you mean {nearest}?" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["XGR_", "XGR_QQQQ", "XGR_\n\x1b[2J\udcff", "XGR_" + "Z" * 100_000])
def test_a_name_like_no_other_is_refused_in_one_short_line(name: str) -> None:
    with pytest.raises(ConfigError, match="is no variable of ours") as caught:
        check_environ({name: SECRET})
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    ["XGRAMMAR_CACHE", "XGRID", "XGR", "SGR_PORT", "GR_PORT", "RGX_THING", "API_KEY", "MY_XGR_API_KEY"],
)
def test_other_programs_variables_are_theirs(name: str) -> None:
    check_environ({name: "1"})


@pytest.mark.parametrize("name", [*map(variable, SETTINGS), *ELSEWHERE])
def test_every_name_of_ours_is_taken_and_each_slip_of_it_is_not(name: str) -> None:
    check_environ({name: "1"})
    body = name[4:]
    slips = {f"XGR_{body[:i]}{body[i + 1 :]}" for i in range(len(body))}  # a letter left out
    slips |= {f"XGR_{body[:i]}{body[i + 1]}{body[i]}{body[i + 2 :]}" for i in range(len(body) - 1)}
    slips |= {f"{name}S", f"{name}_", name.lower(), name.title(), name.replace("_", "-")}
    for slip in slips - {*map(variable, SETTINGS), *ELSEWHERE}:
        with pytest.raises(ConfigError, match="did you mean XGR_"):
            check_environ({slip: "1"})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_process_looks_before_it_reads_anything_else(kind: type[ServeConfig]) -> None:
    with pytest.raises(ConfigError, match="did you mean XGR_API_KEY"):
        parse(kind, ["--config", "/nowhere"], {"XGR_API_KEYS": SECRET})


COMMANDS = [
    ["serve"],
    ["demo", "--exit"],
    ["catalog", "inspect", "/nowhere"],
    ["bench", "--catalog", "/nowhere"],
    ["keys", "api"],
    ["trace"],
]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[0])
def test_every_command_looks_first(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XGR_API_KEYS", SECRET)
    assert main(argv) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"xgr {argv[0]}: error: XGR_API_KEYS") and SECRET not in line and not said.out


def test_a_process_of_its_own_ends_with_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "router"],
        env={"XGR_API_KEYS": SECRET, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2 and SECRET not in ended.stderr
    assert re.fullmatch(r"router: error: XGR_API_KEYS .* XGR_API_KEY\? .*\n", ended.stderr)


def test_every_name_that_we_ship_or_write_of_is_on_the_list() -> None:
    folders = ("deploy", "docs", "router", "prefill_worker", "decode_worker", "xgr_runtime", "kernels")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    texts = [file.read_text() for file in [*files, *ROOT.glob("*.md")] if file.suffix in ("", ".py", ".md")]
    named = {name for text in texts for name in re.findall(r"\bXGR_[A-Z0-9_]+", text)}
    backend = "XGR_ZMQ"  # of SGLang's KV transfer, no variable
    assert named - {backend} <= {*map(variable, SETTINGS), *ELSEWHERE}
