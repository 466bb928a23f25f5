"""How a configuration is read: flag over environment over file over default, all checked in one place."""

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from xgr_runtime.config.cluster import read_cluster
from xgr_runtime.config.structs import (
    SECRETS,
    AnyConfig,
    DecodeConfig,
    PrefillConfig,
    RouterConfig,
    ServeConfig,
    _Model,
    _Process,
)
from xgr_runtime.config.values import MOST_TEXT, brief, check_value, joined, listed, read_file
from xgr_runtime.config.variables import check_variables, variable
from xgr_runtime.errors import ConfigError

LEAST_STUCK = 0.1  # seconds


C = TypeVar("C", bound=_Process)


def parse(
    kind: type[C], argv: Sequence[str], environ: Mapping[str, str] | None = None, program: str = ""
) -> C:
    """The process's configuration. Raises `ConfigError` naming the flag, variable or key to change."""
    about = (kind.__doc__ or "").strip()
    parser = argparse.ArgumentParser(program or None, description=about, allow_abbrev=False)
    add_flags(parser, kind)
    return from_args(kind, parser.parse_args(argv), environ)


def add_flags(parser: argparse._ActionsContainer, kind: type[_Process]) -> None:
    """One flag per field; values are checked later, all in one place."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these settings")
    hints = _hints(kind)
    for field in msgspec.structs.fields(kind):
        if field.name in ("ready_fd", "orders_fd"):  # between launcher and child, nobody else's business
            parser.add_argument(flag(field.name), help=argparse.SUPPRESS)
            continue
        text = _description(hints[field.name])
        default = "required" if field.required else f"default: {_shown_default(field)}"
        # A switch is given bare, or with the value that `to_argv` writes.
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if _plain(hints[field.name]) is bool else {}
        metavar = _metavar(hints[field.name])
        parser.add_argument(flag(field.name), metavar=metavar, help=f"{text} ({default})", **switch)


@cache
def _hints(kind: type[_Process]) -> dict[str, Any]:
    """The types of its settings. To find them is most of reading a configuration."""
    return get_type_hints(kind, include_extras=True)


def _shown_default(field: Any) -> object:
    """An empty list is made by a factory, which msgspec keeps apart from plain defaults. A text is never
    called none, which is a value of some.
    """
    if field.default == "":
        return "empty"
    return "none" if field.default is msgspec.NODEFAULT else field.default


def from_args(kind: type[C], args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> C:
    """Merge flags over environment over file over defaults, and check everything."""
    environ = os.environ if environ is None else environ
    check_environ(environ)
    file = read_file(args.config or environ.get("XGR_CONFIG"))
    if kind is ServeConfig and "cluster" in file:  # of `xgr ray up`, in the same file
        read_cluster(file.pop("cluster"))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    names = [field.name for field in msgspec.structs.fields(kind)]
    for name in names:
        for value, source in (
            (getattr(args, name, None), flag(name)),
            (environ.get(variable(name)), variable(name)),
            (file.pop(name.replace("_", "-"), file.pop(name, None)), f"{name} in the configuration file"),
        ):
            if value is not None and name not in values:
                values[name], sources[name] = value, source
    for key in SECRETS:
        if key in values:
            check_secret(values[key], sources[key])
    if file:
        raise ConfigError(f"unknown settings in the configuration file: {_unknown(file, names)}")
    return _convert(kind, values, sources)


def _unknown(file: Mapping[str, Any], known: Sequence[str]) -> str:
    """What the file names and should not, with what it may have meant."""
    near = {name: difflib.get_close_matches(name.replace("-", "_"), known, n=1) for name in sorted(file)[:10]}
    texts = [f"{name} (did you mean {match[0]}?)" if match else name for name, match in near.items()]
    return brief(", ".join(texts))


def check_environ(environ: Mapping[str, str]) -> None:
    """Raises `ConfigError` for variables that look like ours and are a setting of no process."""
    kinds = (PrefillConfig, DecodeConfig, AnyConfig, RouterConfig, ServeConfig)
    check_variables(environ, {name for kind in kinds for name in kind.__struct_fields__})


def check_secret(value: object, source: str) -> None:
    """Raises `ConfigError`, which names where it was given and never shows it."""
    if not isinstance(value, str):
        raise ConfigError(f"{source} is no text: put the key in quotes")
    if not value.strip():
        raise ConfigError(f"{source} is an empty secret: give a key or none at all")
    if len(value) > MOST_TEXT:
        raise ConfigError(f"{source} is a secret of more than {MOST_TEXT} characters: give a shorter one")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(f"{source} holds blanks or more than printable ASCII: no header carries it so")


def to_argv(config: _Process) -> list[str]:
    """Flags that make `parse` return this very configuration: how the launcher hands it down."""
    argv = []
    for name, value in msgspec.structs.asdict(config).items():
        if value == "":
            continue  # nothing is said of it
        argv.append(f"{flag(name)}={joined(value) if isinstance(value, list) else value}")
    return argv


def switched_on(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """A switch in the environment, for code of ours inside a process that takes no flags of ours."""
    value = (os.environ if environ is None else environ).get(variable(name), "false")
    try:
        return msgspec.convert(value, bool, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(f"{variable(name)} is {value!r}: choose from true, false") from None


def flag(name: str) -> str:
    """`max_rows` -> `--max-rows`."""
    return "--" + name.replace("_", "-")


def _convert(kind: type[C], values: dict[str, Any], sources: dict[str, str]) -> C:
    """Every value in its type and within its bounds. Raises `ConfigError` naming whence a wrong one is."""
    hints = _hints(kind)
    for field in msgspec.structs.fields(kind):
        name = field.name
        if name not in values:
            if field.required:
                raise ConfigError(f"{flag(name)} is required")
            continue
        raw = values[name]
        try:
            if _plain(hints[name]) == list[str] and isinstance(raw, str):
                raw = listed(raw)
            values[name] = msgspec.convert(raw, field.type, strict=False)
            check_value(values[name])
        except (msgspec.ValidationError, ValueError) as error:
            choices = _choices(hints[name])
            problem = f"choose from {', '.join(choices)}" if choices else brief(str(error)).lower()
            raise ConfigError(f"{sources[name]} is {brief(repr(raw))}: {problem}") from None
        if values[name] == [] and field.required:
            raise ConfigError(f"{sources[name]} names nothing: give at least one")
    config = kind(**values)
    _check_together(config, sources)
    return config


def _check_together(config: _Process, sources: Mapping[str, str]) -> None:
    """Settings that are in bounds one by one and do not go together. Raises `ConfigError`."""

    def given(name: str) -> str:
        return f"{sources.get(name, flag(name))} is {getattr(config, name):g}"

    if 0 < config.stuck_timeout < LEAST_STUCK:
        raise ConfigError(
            f"{given('stuck_timeout')}, sooner than a turn ends: give {LEAST_STUCK:g} or more, or 0 for never"
        )
    if isinstance(config, _Model | RouterConfig) and config.silence <= config.heartbeat:
        raise ConfigError(
            f"{given('silence')} and {given('heartbeat')}: peers would count as lost between two heartbeats, "
            "raise the first"
        )
    if isinstance(config, DecodeConfig | ServeConfig) and 0 < config.max_rows < config.max_beam_width:
        raise ConfigError(
            f"{given('max_rows')} and {given('max_beam_width')}: the first must not be less, raise it"
        )


def _description(hint: object) -> str:
    metas = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Meta) and m.description]
    return metas[-1].description or "" if metas else ""


def _metavar(hint: object) -> str:
    if choices := _choices(hint):
        return "{" + ",".join(choices) + "}"
    hint = _plain(hint)
    return getattr(hint, "__name__", str(hint)).upper()


def _plain(hint: object) -> object:
    """The type inside of `Annotated`."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint


def _choices(hint: object) -> list[str]:
    """The values of a `Literal`, of a switch, or that the type names; empty for any other type."""
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.extra:
            return list(meta.extra["choices"])
    plain = _plain(hint)
    if plain is bool:
        return ["true", "false"]
    return [str(value) for value in get_args(plain)] if get_origin(plain) is Literal else []
