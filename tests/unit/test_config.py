"""Configuration: precedence, round trip to a child's flags, and errors that name what to change."""

from pathlib import Path

import msgspec
import pytest
from rich.pretty import pretty_repr

from xgr_runtime.config import (
    SECRETS,
    DecodeConfig,
    PrefillConfig,
    RouterConfig,
    ServeConfig,
    parse,
    switched_on,
    to_argv,
)
from xgr_runtime.errors import ConfigError

NEEDED = ["--model-path", "/m", "--catalog", "/c"]


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nthreads = 1\nkv-bytes = 4096\n")
    argv = [*NEEDED, "--config", str(file), "--port", "3"]
    config = parse(ServeConfig, argv, {"XGR_PORT": "2", "XGR_THREADS": "2"})
    assert (config.port, config.threads, config.kv_bytes) == (3, 2, 4096)
    assert config.max_beam_width == 1024


@pytest.mark.parametrize(
    "config",
    [
        ServeConfig(model_path="/m", catalog="/c", port=0, api_key="with=and,signs"),
        PrefillConfig(model_path="/m", control_address="ipc:///p"),
        DecodeConfig(model_path="/m", catalog="/c", control_address="ipc:///d", data_address="ipc:///k"),
        RouterConfig(model_path="/m", catalog="/c", prefill=["a", "b"], decode=["c"]),
    ],
    ids=lambda config: type(config).__name__,
)
def test_flags_carry_every_setting_to_a_child(config: ServeConfig) -> None:
    assert parse(type(config), to_argv(config), {}) == config


@pytest.mark.parametrize(
    ("argv", "environ", "named"),
    [
        (["--catalog", "/c"], {}, "--model-path"),
        ([*NEEDED, "--port", "http"], {}, "--port"),
        ([*NEEDED, "--port", "70000"], {}, "--port"),
        (NEEDED, {"XGR_PORT": "-1"}, "XGR_PORT"),
        ([*NEEDED, "--dtype", "float8"], {}, "--dtype"),
        ([*NEEDED, "--device", "tpu"], {}, "--device is .tpu.: choose from cpu, cuda, cuda:N"),
        ([*NEEDED, "--device", "cuda:x"], {}, "--device"),
        (
            [*NEEDED, "--sglang-any-version=perhaps"],
            {},
            "--sglang-any-version is 'perhaps': choose from true",
        ),
        ([*NEEDED, "--decode-workers", "0"], {}, "--decode-workers"),
        ([*NEEDED, "--chunk-bytes", str(8 << 20)], {}, "--chunk-bytes"),
        ([*NEEDED, "--api-key", ""], {}, "--api-key"),
        (NEEDED, {"XGR_API_KEY": " "}, "XGR_API_KEY"),
        ([*NEEDED, "--sglang-api-key", ""], {}, "--sglang-api-key"),
        (NEEDED, {"XGR_ADMIN_API_KEY": "two words"}, "XGR_ADMIN_API_KEY holds blanks"),
        (NEEDED, {"XGR_ADMIN_API_KEY": "open\n"}, "XGR_ADMIN_API_KEY holds blanks"),
        (NEEDED, {"XGR_API_KEY": "schlüssel"}, "XGR_API_KEY holds blanks"),
    ],
)
def test_an_error_names_what_to_change(argv: list[str], environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(ServeConfig, argv, environ)


@pytest.mark.parametrize(
    ("argv", "environ", "want"),
    [
        ([], {}, False),
        (["--sglang-any-version"], {}, True),
        (["--sglang-any-version", "--port", "3"], {}, True),
        (["--sglang-any-version=true"], {}, True),
        (["--sglang-any-version=false"], {"XGR_SGLANG_ANY_VERSION": "true"}, False),
        ([], {"XGR_SGLANG_ANY_VERSION": "1"}, True),
    ],
    ids=["absent", "bare", "bare before another", "true", "false", "environment"],
)
def test_a_switch_is_given_bare_or_with_a_value(argv: list[str], environ: dict[str, str], want: bool) -> None:
    config = parse(ServeConfig, [*NEEDED, *argv], environ)
    assert config.sglang_any_version is want
    assert parse(ServeConfig, to_argv(config), {}) == config


def test_a_switch_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("sglang-any-version = true\n")
    assert parse(ServeConfig, [*NEEDED, "--config", str(file)], {}).sglang_any_version


@pytest.mark.parametrize(
    ("environ", "on"),
    [({}, False), ({"XGR_ANY": "true"}, True), ({"XGR_ANY": "0"}, False), ({"XGR_ANY": "1"}, True)],
    ids=str,
)
def test_a_switch_in_the_environment(environ: dict[str, str], on: bool) -> None:
    assert switched_on("any", environ) is on


def test_a_switch_that_is_none() -> None:
    with pytest.raises(ConfigError, match="XGR_ANY is 'maybe'"):
        switched_on("any", {"XGR_ANY": "maybe"})


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "value", ["7351", "7351.5", "[7351]", "{ a = 7351 }", '"7351 "', '"7351\\u00e9"'], ids=repr
)
def test_a_wrong_secret_is_not_shown(tmp_path: Path, name: str, value: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(f"{name.replace('_', '-')} = {value}\n")
    with pytest.raises(ConfigError, match=name) as error:
        parse(ServeConfig, [*NEEDED, "--config", str(file)], {})
    assert "7351" not in str(error.value)


@pytest.mark.parametrize("kind", [RouterConfig, ServeConfig])
def test_a_printed_configuration_hides_its_secrets(kind: type[RouterConfig | ServeConfig]) -> None:
    workers = ["--prefill", "ipc:///p", "--decode", "ipc:///d"] if kind is RouterConfig else []
    secrets = {f"XGR_{name.upper()}": f"sesame-{name}" for name in SECRETS}
    config = parse(kind, [*NEEDED, *workers], secrets)
    assert config.admin_api_key == "sesame-admin_api_key"
    for text in (repr(config), str(config), f"{[config]}", pretty_repr(config)):
        assert "sesame" not in text and "model_path='/m'" in text


def test_every_flag_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(ServeConfig, ["--help"], {})
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for field in msgspec.structs.fields(ServeConfig):
        if field.name != "ready_fd":
            assert "--" + field.name.replace("_", "-") in text
    about = " ".join(text.rpartition("--cache-folder STR")[2].partition(" --")[0].split())
    assert "none: nowhere" in about and about.endswith("(default: empty)")  # not none, which is a value
