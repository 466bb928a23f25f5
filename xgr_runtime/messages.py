"""Every message that crosses a process boundary: frozen, tagged structs, one union per link and direction.

Encoded as msgpack with unknown fields refused. Bulk bytes (KV, hidden states) travel as raw frames behind
their header message. Token ids, leaves and scores are little-endian arrays in `bytes` fields.

    router  --ToPrefill-->  prefill worker  --ToDecodeData-->   decode worker
    router  --ToDecode--->  decode worker   --ToPrefillData-->  prefill worker
    router  <--ToRouter--   both workers

A stock SGLang server in a prefill worker's place speaks the same to decode workers. With routers it speaks
HTTP: `WorkerHello` is part of its `/server_info`, and a `Ticket` says what a `PrefillRequest` would.
"""

from typing import Literal

import msgspec

PROTOCOL = 4

ScoreMode = Literal["vocab", "legal"]
Role = Literal["prefill", "decode"]
Way = Literal["frames", "pull", "in place"]
"""How prompt KV gets to a decode worker: as frames of the link; copied by the decode worker out of the
prefill worker's memory; or not at all, because beams attend to it where it is."""

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all messages."""


class AttemptId(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Names one try at a request on one pair; whatever carries another id than the current one is dropped."""

    router: int  # incarnation
    request: int  # numbered by that router
    attempt: int  # 1, 2, ...
    prefill: int  # incarnation
    decode: int  # incarnation


class ModelIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What two workers must have in common before KV of one means anything to the other."""

    weights_hash: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    tp_size: int

    def difference(self, other: "ModelIdentity") -> str:
        """The first field in which they differ; empty when KV of one means the same to the other."""
        fields = self.__struct_fields__
        return next((name for name in fields if getattr(self, name) != getattr(other, name)), "")

    @property
    def layer_token_bytes(self) -> int:
        """Bytes of keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * _ITEM_BYTES[self.dtype]

    @property
    def token_bytes(self) -> int:
        """The same in all layers."""
        return self.layers * self.layer_token_bytes


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest request a worker can ever serve; zero where the limit is not this worker's."""

    max_prompt_tokens: int
    max_beam_width: int = 0


class StepCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker's launches cost now, in seconds: a forward of prompts, or a step of searches.

    A launch costs `fixed`, and more for every token it computes (a beam is one) and for every pair of such a
    token and a key that it attends to. This was learned from launches of at most so many tokens and pairs.
    """

    fixed: float
    per_token: float
    per_pair: float
    most_tokens: float = 1e18
    most_pairs: float = 1e18


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker holds now. Pages in use by requests are apart from pages held by caches.

    `credits_out` counts KV chunks that may still leave (prefill) or come (decode), `leases` hand-overs that
    are open, `rows_used` beams that take part in steps (decode). `cost` is None as long as the worker does
    not know it.
    """

    requests: int
    pages_used: int
    pages_cached: int  # by the cache alone
    pages_total: int
    credits_out: int
    leases: int
    rows_used: int
    counters: dict[str, float]  # totals since start, by name
    cost: StepCost | None = None


# --- control links -------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """Router to worker, at every heartbeat. The worker answers with `WorkerHello`."""

    protocol: int
    router: int  # incarnation


class WorkerHello(Message, frozen=True, tag="worker_hello"):
    """Worker to router, in answer to `Hello`: who it is, what it can serve, what it holds."""

    protocol: int
    role: Role
    worker: str
    incarnation: int
    model: ModelIdentity
    data_address: str  # decode workers: where prefill workers connect; else empty
    catalogs: list[str]  # decode workers: versions held
    limits: Limits
    load: Load
    turns: str = ""  # workers that name the same take turns on one device: only one of them runs at a time


class PrefillRequest(Message, frozen=True, tag="prefill"):
    """Run this prompt and hand its KV to the decode worker at `data_address`."""

    id: AttemptId
    data_address: str
    tokens: bytes  # int32 [L]
    timeout: float  # seconds left
    priority: int = 0  # higher first
    after: float = 0.0  # seconds that the request is expected to need once its prompt is computed


class DecodeRequest(Message, frozen=True, tag="decode"):
    """Expect this prompt's KV, then search `width` beams and answer the best `results` leaves."""

    id: AttemptId
    tokens: bytes  # int32 [L]: the prompt, of which this worker may hold the beginning
    width: int
    results: int
    score_mode: ScoreMode
    catalog: str  # version
    allow: bytes | None  # int32 leaves that live; None: all
    deny: bytes  # int32 leaves that do not
    timeout: float  # seconds left
    priority: int = 0  # higher first


class Cancel(Message, frozen=True, tag="cancel"):
    """Forget this attempt and free what it holds. Idempotent, in every direction."""

    id: AttemptId
    reason: str


class Committed(Message, frozen=True, tag="committed"):
    """Decode worker to router: the prompt's KV is here and verified; the prefill worker is needed no more."""

    id: AttemptId


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the time of the attempt that answered went, in seconds.

    `queue`: until prefill had pages for the prompt. `prefill`: inside the model. `decode`: from the last of
    the KV until the answer. `transfer`: the rest between the router's request and the answer, that is KV that
    prefill did not hide, messages, waits until a busy worker looked at them, and pauses between the forwards
    of a long prompt. These four add up; the router's own part, and attempts that failed, are the rest of
    `e2e_latency`. Parts of `decode` are `wait`, until there were rows for the beams, and `forward`, inside
    the model in steps that may have been shared.
    """

    queue: float
    prefill: float
    transfer: float
    decode: float
    forward: float
    wait: float = 0.0


class Result(Message, frozen=True, tag="result"):
    """Decode worker to router: the best leaves, best first."""

    id: AttemptId
    leaves: bytes  # int32 [n]
    scores: bytes  # float32 [n], natural log
    timing: Timing  # but for `transfer`: only the router sees the whole of an attempt
    cached_tokens: int = 0  # of the prompt, which prefill did not compute


class Failed(Message, frozen=True, tag="failed"):
    """Worker to router: this attempt is over without a result."""

    id: AttemptId
    stage: Role
    code: str  # of errors.BY_CODE
    message: str
    retry: bool  # another pair may succeed


class FlushCache(Message, frozen=True, tag="flush_cache"):
    """Router to worker: drop the KV that only the cache holds. Answered by `CacheFlushed`."""

    router: int  # incarnation
    number: int  # of this call, by that router


class CacheFlushed(Message, frozen=True, tag="cache_flushed"):
    """Worker to router: it is done."""

    number: int
    pages: int  # that came free


class TraceAsk(Message, frozen=True, tag="trace"):
    """Router to worker: what happened in the last `seconds`? Answered by `Spans`."""

    number: int  # of the question
    seconds: float


class Span(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Something that took time. Moments are the sender's CLOCK_MONOTONIC, in seconds."""

    track: str  # what does it, within its process; `request`: the life of one
    name: str
    start: float
    seconds: float
    id: AttemptId | None = None
    rid: str = ""  # the client's name of the request; routers know it
    numbers: dict[str, int | float] = {}


class Spans(Message, frozen=True, tag="spans"):
    """Worker to router, in answer to `TraceAsk`: what has ended since then, oldest first."""

    number: int  # of the question
    worker: str
    whole_since: float  # the moment from which on nothing was forgotten
    spans: list[Span]


ToPrefill = Hello | PrefillRequest | Cancel | FlushCache | TraceAsk
ToDecode = Hello | DecodeRequest | Cancel | FlushCache | TraceAsk
ToRouter = WorkerHello | Committed | Result | Failed | CacheFlushed | Spans

# --- memory that another process of this machine may read ------------------------------------------------


class ProcessId(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One process of this machine, apart from a later one with its number."""

    pid: int
    started: int  # clock ticks after boot: field 22 of /proc/PID/stat


class HostRegion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="memfd"):
    """Main memory behind a descriptor of its owner, which readers open as /proc/PID/fd/FD."""

    owner: ProcessId
    fd: int
    size: int  # bytes


class DeviceRegion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cuda_ipc"):
    """Memory of a GPU behind a CUDA IPC handle."""

    owner: ProcessId
    device: str  # the GPU's UUID: its number is each process's own
    handle: bytes  # CUipcMemHandle
    size: int  # bytes


Region = HostRegion | DeviceRegion


class SharedKv(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prefill worker's pool as others may map it; its geometry is that of the model."""

    id: int  # random; also in the first eight bytes of `generations`, to prove that they are the right ones
    pages: int  # that prompts may lie in
    page_size: int  # tokens
    kv: Region  # [2, layers, pages + 1, page_size, kv_heads, head_dim]: keys, then values
    generations: HostRegion  # `id`, then uint32 [pages]: raised whenever a page is given back


# --- data link: one per prefill-decode pair --------------------------------------------------------------


class LinkHello(Message, frozen=True, tag="link_hello"):
    """Prefill to decode: first on the link, and again after a refusal."""

    protocol: int
    worker: str
    incarnation: int
    model: ModelIdentity
    memory: SharedKv | None = None  # where prompts lie, if others may map it


class LinkWelcome(Message, frozen=True, tag="link_welcome"):
    """Decode to prefill: the pair is compatible."""

    incarnation: int


class LinkRefused(Message, frozen=True, tag="link_refused"):
    """Decode to prefill: nothing is taken on this link, and why: the models differ, or no greeting came."""

    incarnation: int
    reason: str


class Open(Message, frozen=True, tag="open"):
    """Prefill holds pages for this prompt and begins to compute it. Answered by `Grant`."""

    id: AttemptId
    prompt_tokens: int
    queue: float  # seconds the request waited for this moment
    pages: bytes = b""  # int32 [n]: the prompt's pages, where the link's greeting offered memory
    generations: bytes = b""  # uint32 [n], of these pages


class Grant(Message, frozen=True, tag="grant"):
    """Decode is ready for the prompt, which shall come by this `way`.

    `credits` chunks may be under way, the first `held_tokens` need not be sent. `reader` is the process that
    reads in place.
    """

    id: AttemptId
    credits: int
    lease: float  # seconds
    held_tokens: int
    way: Way = "frames"
    reader: ProcessId | None = None


class Credit(Message, frozen=True, tag="credit"):
    """Decode has copied `chunks` further chunks out of its queue."""

    id: AttemptId
    chunks: int


class Renew(Message, frozen=True, tag="renew"):
    """Decode still wants this prompt: hold its KV for `lease` more seconds."""

    id: AttemptId
    lease: float


class KvChunk(Message, frozen=True, tag="kv"):
    """KV of layers [first_layer, last_layer) for tokens [start, start + count), all KV heads.

    Two frames follow: the keys and the values, each [layers, count, kv_heads, head_dim]. Within a layer,
    tokens come in ascending order.
    """

    id: AttemptId
    sequence: int  # 0, 1, 2, ... within the attempt
    first_layer: int
    last_layer: int
    start: int
    count: int
    checksum: int  # xxh3_64 of both frames


class KvReady(Message, frozen=True, tag="kv_ready"):
    """`KvChunk` where decode pulls: these tokens of these layers can be read in the prompt's pages."""

    id: AttemptId
    sequence: int  # 0, 1, 2, ... within the attempt
    first_layer: int
    last_layer: int
    start: int
    count: int


class Commit(Message, frozen=True, tag="commit"):
    """All chunks are sent. One frame follows: the last hidden state after the final norm, float32.

    With `checksum` None no frame follows: decode runs the prompt's last token over the KV before it. It comes
    again where a reader in place has not been heard for long: whoever does not hold the prompt says NACK.
    """

    id: AttemptId
    chunks: int  # messages; none where the prompt is read in place
    digest: int  # xxh3_64 of all chunk checksums in sequence
    checksum: int | None  # xxh3_64 of the hidden state
    prefill: float  # seconds inside the model
    cached_tokens: int = 0  # whose KV was there before the request


class Ack(Message, frozen=True, tag="ack"):
    """Decode has verified the COMMIT, and reads the prompt's pages no more: prefill may free them."""

    id: AttemptId


class Nack(Message, frozen=True, tag="nack"):
    """Decode gives this attempt up, and why; it reads nothing any more, and prefill frees its pages."""

    id: AttemptId
    reason: str


ToDecodeData = LinkHello | Open | KvChunk | KvReady | Commit | Cancel
ToPrefillData = LinkWelcome | LinkRefused | Grant | Credit | Renew | Ack | Nack
