"""Configuration: one frozen struct per process.

Every field is a flag (`--max-rows`), an environment variable (`XGR_MAX_ROWS`) and a key of the file that
`--config` names. No setting is read anywhere else.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from xgr_runtime.config.types import (
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

Role = Literal["prefill", "decode"]
Backend = Literal["auto", "sglang", "transformers", "simulated"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Layout = Literal["auto", "split", "colocated"]
KvTransfer = Literal["auto", "frames"]
Sharing = Literal["turns", "mps", "none"]
StartMethod = Literal["auto", "fork", "spawn"]
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
        "where compiled kernels, merged adapters and what launches cost are kept for the next start; none: "
        "nowhere; empty: xgr-runtime in $XDG_CACHE_HOME or ~/.cache, or a private folder in the temporary one"
    ),
]

BaseModelPath = Annotated[
    str, about("checkpoint folder that an adapter in --model-path was trained on; empty: the one it names")
]

# Settings that the launcher hands down to the router as they are.
AdminApiKey = Annotated[str, about("key for routes that change or show the deployment; empty: --api-key")]
FilterBytes = Annotated[Bytes, about("memory for the conditions of filters.where, in each process")]
CatalogStore = Annotated[
    str,
    about("folder of a catalog that changes while it is served, with its versions; empty: none does"),
]
CatalogPatience = Annotated[
    Seconds,
    about("seconds without a sign of progress after which a new version is used without a decode worker"),
]
CatalogKeep = Annotated[Count, about("built files that --catalog-store keeps, to be returned to")]
MaxBodyBytes = Annotated[Annotated[int, Meta(ge=1, le=1 << 30)], about("largest body of a request")]
MaxConnections = Annotated[Count, about("HTTP connections; more get 503 and are closed")]
KeepAliveTimeout = Annotated[
    Seconds, about("seconds that a connection may be idle; longer than a load balancer keeps it, often 60")
]
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
WorkersFile = Annotated[
    str, about("JSON file that names more workers, watched for changes: {prefill: [...], decode: [...]}")
]
ProbeAddress = Annotated[
    str, about("HOST:PORT where /liveness and /readiness answer over HTTP, without a key; empty: nowhere")
]
LeaveTimeout = Annotated[
    SecondsOrNone,
    about(
        "seconds that a worker gets after SIGTERM for what it has, if nobody drained it; 0: it ends at once"
    ),
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

    model_path: Annotated[Text, about("checkpoint folder in Hugging Face form (safetensors), or an adapter")]
    base_model_path: BaseModelPath = ""
    model_backend: Annotated[
        Backend,
        about(
            "library whose layers run the checkpoint; auto: sglang where it is, on a GPU ours first; "
            "simulated: none, for tests of scaling"
        ),
    ] = "auto"
    sglang_any_version: Annotated[bool, about("run SGLang releases that were not tested")] = False
    device: Annotated[Device, about("where the model runs")] = "cpu"
    dtype: Annotated[Dtype, about("weights and KV; auto takes the checkpoint's; float16 on a GPU")] = "auto"
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
    probe_address: ProbeAddress = ""
    leave_timeout: LeaveTimeout = 0.0
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
    probe_address: ProbeAddress = ""
    leave_timeout: LeaveTimeout = 0.0
    data_address: Annotated[Text, about("where this worker takes KV")]
    advertise_data_address: Annotated[str, about("address given to prefill workers, if another")] = ""
    catalog: Annotated[Text, about("catalog file or source")]
    max_beam_width: Annotated[Width, about("widest beam of a request")] = 1024
    max_rows: Annotated[Rows, about("beams that one forward may hold; 0: twice --max-beam-width")] = 0
    filter_bytes: FilterBytes = 64 << 20
    max_queued: Annotated[Count, about("requests held before more are refused")] = 512
    chunk_credits: Annotated[Credits, about("KV chunks of a request under way")] = 8
    memory_of: Annotated[
        str, about("file of the one prefill worker whose KV is read where it lies; empty: KV is taken in")
    ] = ""
    turns_file: Annotated[str, about("file by which the processes of a GPU take turns; empty: none")] = ""


class AnyConfig(DecodeConfig, frozen=True, kw_only=True):
    """A worker that can take prompts or beams, as a router says, or waits for the place of another."""

    name: Annotated[Name, about("this worker's name in logs and metrics")] = "any-0"
    control_address: Annotated[str, about("where routers connect (ipc:// or tcp://)")] = ""
    data_address: Annotated[str, about("where this worker takes KV while it takes beams")] = ""
    role: Annotated[
        Literal["any", "prefill", "decode"],
        about("what it is warmed for; any: for both, over one memory, to change as a router says"),
    ] = "any"
    first_role: Annotated[Role, about("which role it takes first")] = "prefill"
    orders_fd: Annotated[
        Annotated[int, Meta(ge=-1, le=1 << 30)], about("descriptor that says which place to take; -1: none")
    ] = -1
    batch_tokens: Annotated[Count, about("most prompt tokens of one forward")] = 4096
    batch_window_ms: Annotated[Window, about("longest wait for prompts that fill a forward")] = 2.0
    host_cache_bytes: Annotated[
        Bytes, about("bytes of main memory for prompt KV that a GPU has no room for")
    ] = 0
    chunk_bytes: Annotated[
        Annotated[int, Meta(ge=4096, le=4 << 20)], about("largest KV chunk on the wire")
    ] = 1 << 20
    publish_memory: Annotated[str, about("file that tells a decode worker where prompt KV lies")] = ""


class KernelsConfig(_Process, frozen=True, kw_only=True):
    """What compiles kernels before workers start."""

    cache_folder: CacheFolder = ""
    dtype: Annotated[Literal["float32", "bfloat16"], about("weights and KV of the model")] = "float32"


class ImportsConfig(_Model, frozen=True, kw_only=True):
    """What imports depend on that a template does for workers."""

    shared_weights: Annotated[bool, about("workers map one copy of the weights, which takes the library")] = (
        False
    )


class TemplateConfig(_Process, frozen=True, kw_only=True):
    """What imports once for all workers that are forked from it."""

    link_fd: Annotated[Annotated[int, Meta(ge=0, le=1 << 30)], about("socket to the launcher")]
    room: Annotated[str, about("as long as the arguments that forked processes show")] = ""


class RouterConfig(_Process, frozen=True, kw_only=True):
    """The router."""

    name: Annotated[Name, about("what this router and the one before it have in common")] = "router-0"
    curve_key: Annotated[str, about("file of this process's secret CURVE key (`xgr keys`)")] = ""
    curve_allow: Annotated[str, about("file of the public keys that it talks to")] = ""
    model_path: Annotated[Text, about("checkpoint folder (tokenizer and config only)")]
    base_model_path: BaseModelPath = ""
    catalog: Annotated[str, about("catalog file or source; empty: what --catalog-store has")] = ""
    catalog_store: CatalogStore = ""
    catalog_keep: CatalogKeep = 16
    catalog_patience: CatalogPatience = 10.0
    prefill: Annotated[
        list[str], about("control addresses of prefill workers, or URLs of SGLang servers, comma-separated")
    ] = []
    decode: Annotated[list[str], about("control addresses of the decode workers, comma-separated")] = []
    workers_file: WorkersFile = ""
    kubernetes_selector: Annotated[
        str,
        about(
            "labels of the pods that are workers, as kubectl's -l takes them; empty: no pods are asked for"
        ),
    ] = ""
    kubernetes_namespace: Annotated[str, about("whose pods; empty: that of the router's own pod")] = ""
    kubernetes_api: Annotated[Text, about("address of the cluster's API")] = "https://kubernetes.default.svc"
    kubernetes_account: Annotated[
        Text,
        about(
            "folder with the service account's token, ca.crt and namespace, read anew as they are replaced"
        ),
    ] = "/var/run/secrets/kubernetes.io/serviceaccount"
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
    filter_bytes: FilterBytes = 64 << 20
    max_body_bytes: MaxBodyBytes = 8 << 20
    max_connections: MaxConnections = 1024
    keep_alive_timeout: KeepAliveTimeout = 75.0
    allowed_hosts: AllowedHosts = []
    hedge_after: HedgeAfter = 3.0
    breaker_failures: BreakerFailures = 3
    crash_budget: CrashBudget = 2
    plan_roles: Annotated[
        bool, about("tell workers that can take either role which to take; in one router of a fleet alone")
    ] = False
    drain_timeout: Annotated[Seconds, about("seconds that live requests get after SIGTERM")] = 30.0
    heartbeat: Annotated[Beat, about("seconds between heartbeats")] = 0.5
    silence: Annotated[Seconds, about("seconds without a heartbeat after which a worker counts as lost")] = (
        10.0
    )


class ServeConfig(_Model, frozen=True, kw_only=True):
    """The launcher: one router and the workers behind it."""

    catalog: Annotated[
        str,
        about("catalog file, or index.json, .jsonl, .parquet; of an empty --catalog-store the first version"),
    ] = ""
    catalog_store: CatalogStore = ""
    catalog_keep: CatalogKeep = 16
    catalog_patience: CatalogPatience = 10.0
    host: Annotated[Text, about("interface of the HTTP server")] = "127.0.0.1"
    port: Annotated[Port, about("port of the HTTP server; 0: any free one")] = 30000
    prefill_workers: Annotated[Workers, about("prefill processes")] = 1
    sglang_prefill: Annotated[
        list[str],
        about("URLs of SGLang servers that take prompts beside or instead of them, comma-separated"),
    ] = []
    decode_workers: Annotated[Annotated[int, Meta(ge=1, le=256)], about("decode processes")] = 1
    any_workers: Annotated[
        Workers, about("processes that take prompts or beams as load asks, beside those that do not change")
    ] = 0
    standby: Annotated[
        Workers,
        about(
            "warmed processes that wait, each to take over from a worker that is lost; with --layout "
            "colocated pairs of them"
        ),
    ] = 0
    workers_file: WorkersFile = ""
    layout: Annotated[
        Layout,
        about("colocated: a decode worker reads the KV of its prefill worker in place; auto: so on one GPU"),
    ] = "auto"
    sharing: Annotated[
        Sharing,
        about(
            "how one prefill and one decode worker share a GPU or the cores: turns, each with all of it; "
            "mps: NVIDIA's MPS, started where none runs; none: at once, each with its part of the cores"
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
    filter_bytes: FilterBytes = 64 << 20
    max_body_bytes: MaxBodyBytes = 8 << 20
    max_connections: MaxConnections = 1024
    keep_alive_timeout: KeepAliveTimeout = 75.0
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
    start_method: Annotated[
        StartMethod,
        about(
            "fork: processes begin as copies of one that has imported all they need; spawn: each imports for "
            "itself; auto: fork where that is safe"
        ),
    ] = "auto"
    start_timeout: Annotated[
        SecondsOrNone,
        about("seconds until all processes are ready; 0: 180, on a GPU 900, where kernels compile first"),
    ] = 0.0
    drain_timeout: Annotated[Seconds, about("seconds that live requests get after SIGTERM")] = 30.0
