"""Hostile values of every setting: each gives a configuration that can be used, or an error that names it."""

import math
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xgr_runtime.config import (
    SECRETS,
    DecodeConfig,
    PrefillConfig,
    RouterConfig,
    ServeConfig,
    flag,
    from_args,
    parse,
    to_argv,
)
from xgr_runtime.config.machine import check_memory, check_threads, check_workers
from xgr_runtime.config.values import MOST_FILE
from xgr_runtime.config.variables import variable
from xgr_runtime.errors import ConfigError
from xgr_runtime.launcher.topology import check
from xgr_runtime.process.log import configure

KINDS: dict[type[Any], dict[str, str]] = {
    PrefillConfig: {"model_path": "/m", "control_address": "ipc:///p"},
    DecodeConfig: {
        "model_path": "/m",
        "catalog": "/c",
        "control_address": "ipc:///d",
        "data_address": "ipc:///k",
    },
    RouterConfig: {"model_path": "/m", "catalog": "/c", "prefill": "ipc:///p", "decode": "ipc:///d"},
    ServeConfig: {"model_path": "/m", "catalog": "/c"},
}
# A setting that several processes have with the same type is read in the same way: once is enough.
SETTINGS = {
    (field.name, repr(field.type)): (kind, field) for kind in KINDS for field in msgspec.structs.fields(kind)
}
FIELDS = [pytest.param(kind, field, id=f"{kind.__name__}-{field.name}") for kind, field in SETTINGS.values()]
NUMBERS = [
    *("", "-1", "0", "-0", "0x10", "1_000", "1e3", "1e20", "1e30", "1e400", "-1e400", "1e-300", "0.5", "nan"),
    *("-nan", "inf", "-inf", "Infinity", "999999999", "100000", "99999999999", str(1 << 63), str(1 << 64)),
    *("9" * 5000, "\u0663", "\uff11", "true", "None", "x"),
]
TEXTS = [
    *(
        "",
        " ",
        "1e30",
        "[]",
        "{}",
        '["a", 1]',
        "[",
        "[" * 5000,
        ",",
        "a,b",
        "a\nb",
        "a\x00b",
        "\x1b[2J",
        "\ud800",
    ),
    *("\udcff", "ü", "%", "%(x)s", "{0}", "../..", "x" * 100_000, "cpu\n", "cuda:\u0663", "cuda:99999999999"),
]


def number_type(field: Any) -> Any:
    """What msgspec knows of a setting that is a number, None of others."""
    info: Any = msgspec.inspect.type_info(field.type)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    return info if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType) else None


def refused_or_usable(kind: type[Any], given: dict[str, str], environ: dict[str, str], named: str) -> None:
    try:
        config = from_args(kind, Namespace(**({"config": None} | given)), environ)
    except ConfigError as error:
        assert named in str(error)
        assert len(str(error)) < 2000  # a wrong value is shown, but not all of it
        return
    assert parse(kind, to_argv(config), {}) == config  # a child gets just this
    for value in msgspec.structs.asdict(config).values():
        assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_on_the_command_line_and_in_the_environment(kind: type[Any], field: Any) -> None:
    others = {name: value for name, value in KINDS[kind].items() if name != field.name}
    for value in NUMBERS if number_type(field) else TEXTS:
        refused_or_usable(kind, {**others, field.name: value}, {}, flag(field.name))
        refused_or_usable(kind, others, {variable(field.name): value}, variable(field.name))


TOML = [
    *("-1", "1e30", "nan", "inf", "-inf", "9" * 400, "true", "[]", "[1, 2]", "[[]]", "{}", "{ a = 1 }", '""'),
    *("1979-05-27", '"a\\u0000b"', '"\\u001b[2J"', '["a\\nb", "c,d"]', f'"{"x" * 10_000}"'),
]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_in_the_file(kind: type[Any], field: Any, tmp_path: Path) -> None:
    others = {name: value for name, value in KINDS[kind].items() if name != field.name}
    file = tmp_path / "settings.toml"
    for value in TOML:
        file.write_text(f"{field.name} = {value}\n")
        refused_or_usable(kind, {**others, "config": str(file)}, {}, field.name)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_is_given(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(KINDS)))
    field = data.draw(st.sampled_from([field.name for field in msgspec.structs.fields(kind)]))
    numbers = st.one_of(st.integers().map(str), st.floats().map(str))
    value = data.draw(st.one_of(numbers, st.text(st.characters(codec=None), max_size=200)))
    refused_or_usable(kind, {**KINDS[kind], field: value}, {}, flag(field))


def test_every_number_has_bounds() -> None:
    for kind in KINDS:
        for field in msgspec.structs.fields(kind):
            if info := number_type(field):
                assert info.ge is not None and info.le is not None and info.le < 1 << 53, field.name


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_never_shown(name: str) -> None:
    for value in ("sesame\x00", "sesame" * 1000, "sesame\udcff", " sesame", "sesame\n"):
        with pytest.raises(ConfigError, match=flag(name)) as caught:
            parse(ServeConfig, ["--model-path=/m", "--catalog=/c", f"{flag(name)}={value}"], {})
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--heartbeat=5", "--silence=4"], "--silence is 4 and --heartbeat is 5"),
        (["--max-rows=8"], "--max-rows is 8 and --max-beam-width is 1024"),
        (["--stuck-timeout=0.01"], "--stuck-timeout is 0.01"),
    ],
)
def test_settings_that_do_not_go_together(flags: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(ServeConfig, ["--model-path=/m", "--catalog=/c", *flags], {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "no text in UTF-8"),
        (b"port = 1\n\x80", "no text in UTF-8"),
        (b"port = " + b"9" * 5000, "not TOML"),
        (b"port = " + b"[" * 100_000, "nested too deeply"),
        (b"\x00", "not TOML"),
        (b"#" * (MOST_FILE + 1), "larger than 1 MiB"),
        (b"port = ", "not TOML"),
        (b"prot = 1\nkvbytes = 1\n", r"kvbytes \(did you mean kv_bytes\?\), prot \(did you mean port\?\)"),
        (b"".join(b"x%d = 1\n" % n for n in range(10_000)), "unknown settings"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_files_that_are_no_settings(tmp_path: Path, content: bytes, words: str) -> None:
    (file := tmp_path / "settings.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        parse(ServeConfig, ["--config", str(file)], {})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "path", ["{folder}", "{folder}/pipe", "/dev/zero", "/dev/null", "{folder}/none", "a\x00b"]
)
def test_a_file_of_settings_is_an_ordinary_file(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    with pytest.raises(ConfigError, match="--config"):
        parse(ServeConfig, ["--config", path.format(folder=tmp_path)], {})


def test_what_this_machine_has_not() -> None:
    cores = len(os.sched_getaffinity(0))
    for ask in (
        lambda: check_threads(5 * cores),
        lambda: check_workers(200, 200),
        lambda: check_memory(1 << 50, "--kv-bytes", 1 << 50, "prompt KV"),
    ):
        with pytest.raises(ConfigError, match=r"--\w+.*lower|--threads"):
            ask()
    check_threads(cores)
    check_workers(1, 1)
    check_memory(1 << 20, "--kv-bytes", 1 << 20, "prompt KV")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threads", 4096),
        ("prefill_workers", 256),
        ("decode_workers", 256),
        ("kv_bytes", 1 << 50),
        ("host_cache_bytes", 1 << 50),
        ("host", "a" * 300),
        ("host", "a..b"),
        ("host", "256.1.1.1"),
    ],
)
def test_a_deployment_is_checked_before_anything_is_started(tmp_path: Path, field: str, value: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    config = ServeConfig(**{"model_path": str(tmp_path), "catalog": "c", "port": 0, field: value})
    with pytest.raises(ConfigError, match=flag(field)):
        check(config)


@pytest.mark.parametrize("name", ["50%", "%(message)s", "{x}", "%s"])
def test_a_name_with_signs_of_formats_logs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    lines: list[str] = []
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure(name)
        monkeypatch.setattr("xgr_runtime.process.log.stderr.put", lines.append)
        logging.getLogger("test").warning("hello")
    finally:
        root.handlers[:], root.level = before, level
    assert lines[0].endswith(f" {name}: hello")
