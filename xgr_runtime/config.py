"""Configuration: one frozen struct per process, parsed once at the door.

Every field is a flag (`--max-rows`), an environment variable (`XGR_MAX_ROWS`) and a key of the file that
`--config` names. Precedence: flag, environment, file, default. No setting is read anywhere else.
"""

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from xgr_runtime.errors import ConfigError
from xgr_runtime.setting_types import (
    Beat,
    Bytes,
    Count,
    Credits,
    Milliseconds,
    Name,
    PageSize,
    Port,
    Rows,
    Seconds,
    SecondsOrNone,
    Text,
    Threads,
    Tokens,
    Width,
    Window,
    Workers,
)
from xgr_runtime.setting_values import MOST_TEXT, brief, check_value, joined, listed, read_file
from xgr_runtime.variables import check_variables, variable

Backend = Literal["auto", "sglang", "transformers"]
Dtype = Literal["auto", "float32", "bfloat16"]
Layout = Literal["auto", "split", "colocated"]
KvTransfer = Literal["auto", "frames"]
Sharing = Literal["turns", "mps", "none"]
Device = Annotated[
    str, Meta(pattern=r"^(cpu|cuda(:[0-9]{1,4})?)\Z", extra={"choices": ["cpu", "cuda", "cuda:N"]})
]


def about(text: str) -> Meta:
    """The line that `--help` shows for a field."""
    return Meta(description=text)


SECRETS = ("api_key", "admin_api_key", "sglang_api_key")
"""Settings that are never shown, and travel between processes in the environment alone."""
HIDDEN = "***"

CacheFolder = Annotated[
    str,
    about(
        "where compiled kernels and what launches cost are kept for the next start; none: nowhere; empty: "
        "xgr-runtime in $XDG_CACHE_HOME or ~/.cache, or a private folder in the temporary one"
    ),
]
LEAST_STUCK = 0.1  # seconds

# Settings that the launcher hands down to the router as they are.
AdminApiKey = Annotated[str, about("key for routes that change or show the deployment; empty: --api-key")]
MaxBodyBytes = Annotated[Annotated[int, Meta(ge=1, le=1 << 30)], about("largest body of a request")]
MaxConnections = Annotated[Count, about("HTTP connections; more get 503 and are closed")]
AllowedHosts = Annotated[
    list[str],
    about(
        "names, besides loopback's, by which a server without key on loopback may be asked, comma-separated"
    ),
]
HedgeAfter = Annotated[
    Annotated[float, Meta(ge=0, le=1e6)],
    about("times the forecast after which another pair is tried beside the first; 0: never"),
]
BreakerFailures = Annotated[
    Count, about("failures in a row after which a worker gets no requests for a while")
]
CrashBudget = Annotated[Count, about("workers that one request may cost before it is given up")]


class _Process(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every process has."""

    stuck_timeout: Annotated[
        SecondsOrNone,
        about("seconds without a turn of its loop after which a process is ended and replaced; 0: never"),
    ] = 60.0
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], about("least severe line that is logged")
    ] = "INFO"
    ready_fd: Annotated[
        Annotated[int, Meta(ge=-1, le=1 << 30)],
        about("descriptor that gets one line when the process is ready; -1: none"),
    ] = -1

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Name and value of every setting, without the secrets."""
        settings = msgspec.structs.asdict(self).items()
        return [(name, HIDDEN if value and name in SECRETS else value) for name, value in settings]

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({settings})"


class _Model(_Process, frozen=True, kw_only=True):
    """What both workers and the launcher know of the model."""

    model_path: Annotated[Text, about("checkpoint folder in Hugging Face form (safetensors)")]
    model_backend: Annotated[
        Backend, about("library whose layers run the checkpoint; auto: sglang where it is installed")
    ] = "auto"
    sglang_any_version: Annotated[bool, about("run SGLang releases that were not tested")] = False
    device: Annotated[Device, about("where the model runs")] = "cpu"
    dtype: Annotated[Dtype, about("weights and KV; auto takes the checkpoint's")] = "auto"
    threads: Annotated[Threads, about("threads per worker; 0: cores / workers")] = 0
    kv_bytes: Annotated[
        Bytes,
        about("bytes of prompt KV each worker may hold; 0: 1 GiB on a CPU, 0.6 of a GPU's free memory"),
    ] = 0
    page_size: Annotated[PageSize, about("tokens per KV page")] = 16
    cache_bytes: Annotated[
        Annotated[int, Meta(ge=-1, le=1 << 50)],
        about(
            "bytes of prompt KV each worker keeps for prompts that begin alike; -1: all free ones; 0: none"
        ),
    ] = -1
    kv_transfer: Annotated[
        KvTransfer, about("how prompt KV gets to decode workers; auto: out of memory, where they can map it")
    ] = "auto"
    max_prompt_tokens: Annotated[Tokens, about("longest prompt; 0: what the model allows")] = 0
    cache_folder: CacheFolder = ""
    heartbeat: Annotated[Beat, about("seconds between heartbeats")] = 0.5
    silence: Annotated[Seconds, about("seconds without a heartbeat after which a peer counts as lost")] = 10.0
    lease: Annotated[Seconds, about("seconds that prefill holds KV without a renewal")] = 15.0


class PrefillConfig(_Model, frozen=True, kw_only=True):
    """One prefill worker."""

    name: Annotated[Name, about("this worker's name in logs and metrics")] = "prefill-0"
    curve_key: Annotated[str, about("file of this process's secret CURVE key (`xgr keys`)")] = ""
    curve_allow: Annotated[str, about("file of the public keys that it talks to")] = ""
    control_address: Annotated[Text, about("where routers connect (ipc:// or tcp://)")]
    batch_tokens: Annotated[Count, about("most prompt tokens of one forward")] = 4096
    batch_window_ms: Annotated[Window, about("longest wait for prompts that fill a forward")] = 2.0
    host_cache_bytes: Annotated[
        Bytes, about("bytes of main memory for prompt KV that a GPU has no room for")
    ] = 0
    chunk_bytes: Annotated[
        Annotated[int, Meta(ge=4096, le=4 << 20)], about("largest KV chunk on the wire")
    ] = 1 << 20
    publish_memory: Annotated[str, about("file that tells a decode worker where prompt KV lies")] = ""
    turns_file: Annotated[str, about("file by which the processes of a GPU take turns; empty: none")] = ""


class DecodeConfig(_Model, frozen=True, kw_only=True):
    """One decode worker."""

    name: Annotated[Name, about("this worker's name in logs and metrics")] = "decode-0"
    curve_key: Annotated[str, about("file of this process's secret CURVE key (`xgr keys`)")] = ""
    curve_allow: Annotated[str, about("file of the public keys that it talks to")] = ""
    control_address: Annotated[Text, about("where routers connect (ipc:// or tcp://)")]
    data_address: Annotated[Text, about("where this worker takes KV")]
    advertise_data_address: Annotated[str, about("address given to prefill workers, if another")] = ""
    catalog: Annotated[Text, about("catalog file or source")]
    max_beam_width: Annotated[Width, about("widest beam of a request")] = 1024
    max_rows: Annotated[Rows, about("beams that one forward may hold; 0: twice --max-beam-width")] = 0
    max_queued: Annotated[Count, about("requests held before more are refused")] = 512
    chunk_credits: Annotated[Credits, about("KV chunks of a request under way")] = 8
    memory_of: Annotated[
        str, about("file of the one prefill worker whose KV is read where it lies; empty: KV is taken in")
    ] = ""
    turns_file: Annotated[str, about("file by which the processes of a GPU take turns; empty: none")] = ""


class KernelsConfig(_Process, frozen=True, kw_only=True):
    """What compiles kernels before workers start."""

    cache_folder: CacheFolder = ""
    dtype: Annotated[Literal["float32", "bfloat16"], about("weights and KV of the model")] = "float32"


class RouterConfig(_Process, frozen=True, kw_only=True):
    """The router."""

    name: Annotated[Name, about("what this router and the one before it have in common")] = "router-0"
    curve_key: Annotated[str, about("file of this process's secret CURVE key (`xgr keys`)")] = ""
    curve_allow: Annotated[str, about("file of the public keys that it talks to")] = ""
    model_path: Annotated[Text, about("checkpoint folder (tokenizer and config only)")]
    catalog: Annotated[Text, about("catalog file or source")]
    prefill: Annotated[
        list[str], about("control addresses of prefill workers, or URLs of SGLang servers, comma-separated")
    ]
    decode: Annotated[list[str], about("control addresses of the decode workers, comma-separated")]
    host: Annotated[Text, about("interface of the HTTP server")] = "127.0.0.1"
    port: Annotated[Port, about("port of the HTTP server; 0: any free one")] = 30000
    api_key: Annotated[str, about("key that clients must send; empty: none")] = ""
    admin_api_key: AdminApiKey = ""
    sglang_api_key: Annotated[str, about("key that the SGLang prefill servers want; empty: none")] = ""
    served_model_name: Annotated[str, about("name in /v1/models; empty: the folder's")] = ""
    timeout_ms: Annotated[Milliseconds, about("deadline of a request that names none")] = 30000
    max_beam_width: Annotated[Width, about("widest beam of a request")] = 1024
    max_live: Annotated[Count, about("requests held before more get 503")] = 512
    max_attempts: Annotated[Count, about("tries at a request on different pairs")] = 3
    max_body_bytes: MaxBodyBytes = 8 << 20
    max_connections: MaxConnections = 1024
    allowed_hosts: AllowedHosts = []
    hedge_after: HedgeAfter = 3.0
    breaker_failures: BreakerFailures = 3
    crash_budget: CrashBudget = 2
    drain_timeout: Annotated[Seconds, about("seconds that live requests get after SIGTERM")] = 30.0
    heartbeat: Annotated[Beat, about("seconds between heartbeats")] = 0.5
    silence: Annotated[Seconds, about("seconds without a heartbeat after which a worker counts as lost")] = (
        10.0
    )


class ServeConfig(_Model, frozen=True, kw_only=True):
    """The launcher: one router and the workers behind it."""

    catalog: Annotated[Text, about("catalog file, or index.json, .jsonl, .parquet")]
    host: Annotated[Text, about("interface of the HTTP server")] = "127.0.0.1"
    port: Annotated[Port, about("port of the HTTP server; 0: any free one")] = 30000
    prefill_workers: Annotated[Workers, about("prefill processes")] = 1
    sglang_prefill: Annotated[
        list[str],
        about("URLs of SGLang servers that take prompts beside or instead of them, comma-separated"),
    ] = []
    decode_workers: Annotated[Annotated[int, Meta(ge=1, le=256)], about("decode processes")] = 1
    layout: Annotated[
        Layout,
        about("colocated: a decode worker reads the KV of its prefill worker in place; auto: so on one GPU"),
    ] = "auto"
    sharing: Annotated[
        Sharing,
        about(
            "how one prefill and one decode worker share a GPU or the cores: turns, each with all of it; "
            "mps: you run NVIDIA's MPS; none: at once, each with its part of the cores"
        ),
    ] = "turns"
    api_key: Annotated[str, about("key that clients must send; empty: none")] = ""
    admin_api_key: AdminApiKey = ""
    sglang_api_key: Annotated[str, about("key that the SGLang prefill servers want; empty: none")] = ""
    served_model_name: Annotated[str, about("name in /v1/models; empty: the folder's")] = ""
    timeout_ms: Annotated[Milliseconds, about("deadline of a request that names none")] = 30000
    max_beam_width: Annotated[Width, about("widest beam of a request")] = 1024
    max_rows: Annotated[Rows, about("beams that one forward may hold; 0: twice --max-beam-width")] = 0
    max_live: Annotated[Count, about("requests held before more get 503")] = 512
    max_attempts: Annotated[Count, about("tries at a request on different pairs")] = 3
    max_body_bytes: MaxBodyBytes = 8 << 20
    max_connections: MaxConnections = 1024
    allowed_hosts: AllowedHosts = []
    hedge_after: HedgeAfter = 3.0
    breaker_failures: BreakerFailures = 3
    crash_budget: CrashBudget = 2
    batch_tokens: Annotated[Count, about("most prompt tokens of one prefill forward")] = 4096
    batch_window_ms: Annotated[Window, about("longest wait for prompts that fill a prefill forward")] = 2.0
    host_cache_bytes: Annotated[
        Bytes,
        about("bytes of main memory, per prefill worker, for prompt KV that a GPU has no room for"),
    ] = 0
    chunk_bytes: Annotated[
        Annotated[int, Meta(ge=4096, le=4 << 20)], about("largest KV chunk on the wire")
    ] = 1 << 20
    chunk_credits: Annotated[Credits, about("KV chunks of a request under way")] = 8
    start_timeout: Annotated[
        SecondsOrNone,
        about("seconds until all processes are ready; 0: 180, on a GPU 900, where kernels compile first"),
    ] = 0.0
    drain_timeout: Annotated[Seconds, about("seconds that live requests get after SIGTERM")] = 30.0


C = TypeVar("C", bound=_Process)


def parse(
    kind: type[C], argv: Sequence[str], environ: Mapping[str, str] | None = None, program: str = ""
) -> C:
    """The process's configuration. Raises `ConfigError` naming the flag, variable or key to change."""
    about = (kind.__doc__ or "").strip()
    parser = argparse.ArgumentParser(program or None, description=about, allow_abbrev=False)
    add_flags(parser, kind)
    return from_args(kind, parser.parse_args(argv), environ)


def add_flags(parser: argparse.ArgumentParser, kind: type[_Process]) -> None:
    """One flag per field; values are checked later, all in one place."""
    parser.add_argument("--config", metavar="FILE", help="TOML file with any of these settings")
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if field.name == "ready_fd":  # between launcher and child, nobody else's business
            parser.add_argument(flag(field.name), help=argparse.SUPPRESS)
            continue
        text = _description(hints[field.name])
        default = "required" if field.required else f"default: {_shown_default(field)}"
        # A switch is given bare, or with the value that `to_argv` writes.
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if _plain(hints[field.name]) is bool else {}
        metavar = _metavar(hints[field.name])
        parser.add_argument(flag(field.name), metavar=metavar, help=f"{text} ({default})", **switch)


def _shown_default(field: Any) -> object:
    """An empty list is made by a factory, which msgspec keeps apart from plain defaults."""
    return "none" if field.default in (msgspec.NODEFAULT, "") else field.default


def from_args(kind: type[C], args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> C:
    """Merge flags over environment over file over defaults, and check everything."""
    environ = os.environ if environ is None else environ
    check_environ(environ)
    file = read_file(args.config or environ.get("XGR_CONFIG"))
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
    kinds = (PrefillConfig, DecodeConfig, RouterConfig, ServeConfig)
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
    hints = get_type_hints(kind, include_extras=True)
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
