"""Every message that crosses a process boundary: frozen, tagged structs, one union per link and direction.

Encoded as msgpack with unknown fields refused, and so is whatever is out of the bounds named here: numbers
fit where they go, floats are finite, lists and texts end. Bulk bytes (KV, hidden states) travel as raw frames
behind their header message. Token ids, leaves and scores are little-endian arrays in `bytes` fields.

    router  --ToPrefill-->  prefill worker  --ToDecodeData-->   decode worker
    router  --ToDecode--->  decode worker   --ToPrefillData-->  prefill worker
    router  <--ToRouter--   both workers

A stock SGLang server in a prefill worker's place speaks the same to decode workers. With routers it speaks
HTTP: `WorkerHello` is part of its `/server_info`, and a `SglangTicket` says what a `PrefillRequest` would.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from xgr_kernels.trie import ScoreMode

PROTOCOL = 11

MOST_CREDITS = 4096
"""KV chunks of one hand-over that may be under way."""

MOST_CANDIDATES = 10_000
"""Items of one request to be scored."""

MOST_VERSIONS = 1024
"""Of a catalog, that one process names to another."""

PART_BYTES = 1 << 20
"""Of a catalog's file or a long batch: what travels at once."""

MOST_INLINE = 4 << 20
"""Bytes of batches that an offer may carry; longer ones are asked for."""

START_SECONDS = "start_seconds"
"""The counter of a worker's load that says how long its start took."""
LAUNCHES = "launches_learned_from"
"""The counter that says of how many launches its cost knows, besides those that were tried at the start."""
STOPPING = "stopping"
"""The counter that is 1 once a worker was told to stop, and only finishes what it has."""
WAITING_TOKENS = "waiting_tokens"
"""The counter of a prefill worker that says how many tokens of its prompts are not computed now."""
ROWS_TOTAL = "rows_total"
"""The counter of a decode worker that says how many beams its steps can hold."""
WAITING_SECONDS = "waiting_seconds"
"""The counter of a decode worker that says for how long the oldest request has waited for pages or rows."""

MOST_TEXT = 8192
"""Characters of a reason or an error's message; `brief` cuts longer ones."""

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""An incarnation, a request's number, a size in bytes."""

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""Tokens, layers, pages, chunks, beams."""

PromptTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Digest = Annotated[int, Meta(ge=0)]
"""xxh3_64: 64 bits, which is all that msgpack can say."""

Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e18)]
Finite = Annotated[float, Meta(ge=-1e30, le=1e30)]
Penalty = Annotated[float, Meta(ge=0, le=10)]
"""What log-probabilities of repeated tokens are multiplied by; 1: nothing."""
Text = Annotated[str, Meta(max_length=MOST_TEXT)]
Name = Annotated[str, Meta(max_length=1024)]
"""A worker, a version, an address, a path."""

TokenArray = Annotated[bytes, Meta(max_length=16 << 20)]
"""int32 [L]: some four million tokens."""

Candidates = Annotated[bytes, Meta(max_length=4 * MOST_CANDIDATES)]
"""int32 [n] leaves."""

PageArray = Annotated[bytes, Meta(max_length=1 << 20)]
"""int32 or uint32 [pages], of one prompt."""

Versions = Annotated[list[Name], Meta(max_length=MOST_VERSIONS)]
"""Of a catalog, the newest last."""

Role = Literal["prefill", "decode"]
RoleChange = Literal["no", "can", "under way"]
"""Whether a worker can take the other role, and whether it does so now: it finishes what it has before."""
Way = Literal["frames", "pull", "in place"]
"""How prompt KV gets to a decode worker: as frames of the link; copied by the decode worker out of the
prefill worker's memory; or not at all, because beams attend to it where it is."""

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all messages."""


def brief(text: str) -> str:
    """As much of a text as a message may carry."""
    return text[:MOST_TEXT]


class AttemptId(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Names one try at a request on one pair; whatever carries another id than the current one is dropped."""

    router: Number  # incarnation
    request: Number  # numbered by that router
    attempt: Number  # 1, 2, ...
    prefill: Number  # incarnation
    decode: Number  # incarnation


class ModelIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What two workers must have in common before KV of one means anything to the other."""

    weights_hash: Name
    dtype: Name
    layers: Count
    kv_heads: Count
    head_dim: Count
    hidden: Count
    vocab: Count
    tp_size: Count

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
    """The largest request a worker can ever serve; zero where the limit is not this worker's.

    `plain_scores`: no score mode `level` and no repetition penalty.
    """

    max_prompt_tokens: Count
    max_beam_width: Count = 0
    plain_scores: bool = False


class StepCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker's launches cost now, in seconds: a forward of prompts, or a step of searches.

    A launch costs `fixed`, and more for every token it computes (a beam is one) and for every pair of such a
    token and a key that it attends to. This was learned from launches of at most so many tokens and pairs.
    """

    fixed: Seconds
    per_token: Seconds
    per_pair: Seconds
    most_tokens: Annotated[float, Meta(ge=0, le=1e18)] = 1e18
    most_pairs: Annotated[float, Meta(ge=0, le=1e18)] = 1e18


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker holds now. Pages in use by requests are apart from pages held by caches.

    `credits_out` counts KV chunks that may still leave (prefill) or come (decode), `leases` hand-overs that
    are open, `rows_used` beams that take part in steps (decode). `cost` is None as long as the worker does
    not know it.
    """

    requests: Count
    pages_used: Count
    pages_cached: Count  # by the cache alone
    pages_total: Count
    credits_out: Count
    leases: Count
    rows_used: Count
    counters: Annotated[dict[Name, Finite], Meta(max_length=1024)]  # totals since start, by name
    cost: StepCost | None = None


# --- control links -------------------------------------------------------------------------------------


class OtherProtocol(Message, frozen=True):
    """What a receiver makes of a greeting in another protocol: the rest cannot be read. Never sent."""

    protocol: Number

    def problem_with(self, this: str) -> str:
        """Why the two cannot work together; `this` is the process that was greeted."""
        return f"it speaks protocol {self.protocol}, this {this} {PROTOCOL}"


class Hello(Message, frozen=True, tag="hello"):
    """Router to worker, at every heartbeat. The worker answers with `WorkerHello`.

    A new incarnation of a `name` takes the place of the one before it, whose requests end.
    """

    protocol: Number
    router: Number  # incarnation
    name: Name
    number: Number = 0  # of a router that waits for this answer; zero: of a heartbeat
    catalogs: Versions = []  # decode workers: that this router may still use, all others it never will


class WorkerHello(Message, frozen=True, tag="worker_hello"):
    """Worker to router, in answer to `Hello`: who it is, what it can serve, what it holds."""

    protocol: Number
    role: Role
    worker: Name
    incarnation: Number
    model: ModelIdentity
    data_address: Name  # decode workers: where prefill workers connect; else empty
    catalogs: Versions  # decode workers: versions held
    limits: Limits
    load: Load
    turns: Name = ""  # workers that name the same take turns on one device: only one of them runs at a time
    memory: Number = 0  # prefill: where prompts lie; decode: what it reads in place, and no other; 0: none
    number: Number = 0  # of the `Hello` that it answers
    change: RoleChange = "no"


class PrefillRequest(Message, frozen=True, tag="prefill"):
    """Run this prompt and hand its KV to the decode worker at `data_address`."""

    id: AttemptId
    data_address: Name
    tokens: TokenArray
    timeout: Seconds  # left
    priority: Priority = 0  # higher first
    after: Seconds = 0.0  # that the request is expected to need once its prompt is computed


class DecodeRequest(Message, frozen=True, tag="decode"):
    """Expect this prompt's KV, then search `width` beams and answer the best `results` leaves.

    With `candidates` all of these are answered, best first, and `width` and `results` say how many they are.
    """

    id: AttemptId
    tokens: TokenArray  # the prompt, of which this worker may hold the beginning
    width: Count
    results: Count
    score_mode: ScoreMode
    catalog: Name  # version
    allow: bytes | None  # int32 leaves that live; None: all. The frame's size bounds both
    deny: bytes  # int32 leaves that do not
    timeout: Seconds  # left
    priority: Priority = 0  # higher first
    repetition_penalty: Penalty = 1.0
    where: Text = ""  # in whose leaves `deny` is; with `allow` it is in that already; empty: none
    candidates: Candidates | None = None  # live leaves, ascending


class Cancel(Message, frozen=True, tag="cancel"):
    """Forget this attempt and free what it holds. Idempotent, in every direction."""

    id: AttemptId
    reason: Text


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

    queue: Seconds
    prefill: Seconds
    transfer: Seconds
    decode: Seconds
    forward: Seconds
    wait: Seconds = 0.0


class Result(Message, frozen=True, tag="result"):
    """Decode worker to router: the best leaves, best first.

    `ceiling`: no leaf that is not among the search's beams, of which these are the best, has a score above
    it; -1e30 if every live leaf is. None: not known.
    """

    id: AttemptId
    leaves: bytes  # int32 [n]
    scores: bytes  # float32 [n], natural log
    timing: Timing  # but for `transfer`: only the router sees the whole of an attempt
    cached_tokens: Count = 0  # of the prompt, which prefill did not compute
    ceiling: Finite | None = None


class Failed(Message, frozen=True, tag="failed"):
    """Worker to router: this attempt is over without a result.

    What `code` names also says whether another pair may succeed: see `RequestError.elsewhere`.
    """

    id: AttemptId
    stage: Role
    code: Name  # of errors.BY_CODE
    message: Text


class FlushCache(Message, frozen=True, tag="flush_cache"):
    """Router to worker: drop the KV that only the cache holds. Answered by `CacheFlushed`."""

    router: Number  # incarnation
    number: Number  # of this call, by that router


class CacheFlushed(Message, frozen=True, tag="cache_flushed"):
    """Worker to router: it is done."""

    number: Number
    pages: Count  # that came free


class TraceAsk(Message, frozen=True, tag="trace"):
    """Router to worker: what happened in the last `seconds`? Answered by `Spans`."""

    number: Number  # of the question
    seconds: Seconds


class Span(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """Something that took time. Moments are the sender's CLOCK_MONOTONIC, in seconds."""

    track: Name  # what does it, within its process; `request`: the life of one
    name: Name
    start: Finite
    seconds: Finite
    id: AttemptId | None = None
    rid: Text = ""  # the client's name of the request; routers know it
    numbers: Annotated[dict[Name, Whole | Finite], Meta(max_length=64)] = {}


class Spans(Message, frozen=True, tag="spans"):
    """Worker to router, in answer to `TraceAsk`: what has ended since then, oldest first."""

    number: Number  # of the question
    worker: Name
    whole_since: Finite  # the moment from which on nothing was forgotten
    spans: Annotated[list[Span], Meta(max_length=1 << 16)]


# --- memory that another process of this machine may read ------------------------------------------------


class ProcessId(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One process of this machine, apart from a later one with its number."""

    pid: Number
    started: Number  # clock ticks after boot: field 22 of /proc/PID/stat


class HostRegion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="memfd"):
    """Main memory behind a descriptor of its owner, which readers open as /proc/PID/fd/FD."""

    owner: ProcessId
    fd: Count
    size: Number  # bytes


class DeviceRegion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cuda_ipc"):
    """Memory of a GPU behind a CUDA IPC handle."""

    owner: ProcessId
    device: Name  # the GPU's UUID: its number is each process's own
    handle: Annotated[bytes, Meta(max_length=64)]  # CUipcMemHandle
    size: Number  # bytes


Region = HostRegion | DeviceRegion


class SharedKv(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prefill worker's pool as others may map it; its sizes are those of the model."""

    id: Number  # random; also in the first eight bytes of `generations`, to prove that they are right
    pages: Count  # that prompts may lie in
    page_size: Count  # tokens
    kv: Region  # [2, layers, pages + 1, page_size, kv_heads, head_dim]: keys, then values
    generations: HostRegion  # `id`, then uint32 [pages]: raised whenever a page is given back


# --- catalogs that change, over control links ------------------------------------------------------------


class CatalogStep(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One version of a chain: a batch that leads to it from the one before, or a whole built file.

    Who offers it sends `data`, or nothing: then it is asked for part by part.
    """

    version: Name
    whole: bool  # a built file, before which nothing is needed
    size: Number  # bytes of the file, or of the batch
    digest: Digest  # xxh3_64 of these
    data: Annotated[bytes, Meta(max_length=MOST_INLINE)] = b""
    memory: HostRegion | None = None  # of a whole file: sealed memory of the router, for its own machine


class CatalogOffer(Message, frozen=True, tag="catalog_offer"):
    """Router to decode worker: hold the version to which these steps lead. Answered by `CatalogHeld`.

    Without steps it is `parent` itself. `filters`: conditions that are evaluated on it before the answer.
    """

    router: Number  # incarnation
    number: Number  # of this offer, by that router
    parent: Name  # behind which the steps begin; empty: with a whole file
    steps: Annotated[list[CatalogStep], Meta(max_length=1 << 16)]
    keeps: Versions  # as `Hello.catalogs`
    filters: Annotated[list[Text], Meta(max_length=4096)] = []

    @property
    def version(self) -> str:
        """The version that shall be held."""
        return self.steps[-1].version if self.steps else self.parent


class CatalogAsk(Message, frozen=True, tag="catalog_ask"):
    """Decode worker to router: send what makes this version, from this byte on. Answered by `CatalogPart`."""

    version: Name
    offset: Number


class CatalogPart(Message, frozen=True, tag="catalog_part"):
    """Router to decode worker: bytes of a built file or a batch; none where the router no longer has it."""

    router: Number  # incarnation
    version: Name
    offset: Number
    data: Annotated[bytes, Meta(max_length=PART_BYTES)]
    checksum: Digest


class CatalogHeld(Message, frozen=True, tag="catalog_held"):
    """Decode worker to all its routers: it holds this version from now on, or why it does not."""

    version: Name
    number: Number  # of the offer; to other routers than the one that made it, zero
    problem: Text = ""
    broken: bool = False  # the steps led elsewhere, or begin with what it does not hold


class TakeRole(Message, frozen=True, tag="take_role"):
    """Router to a worker that can: finish what is here, then be a worker of this role, as another run."""

    router: Number  # incarnation
    worker: Number  # incarnation
    role: Role


ToPrefill = Hello | PrefillRequest | Cancel | FlushCache | TraceAsk | TakeRole
ToDecode = Hello | DecodeRequest | Cancel | FlushCache | TraceAsk | CatalogOffer | CatalogPart | TakeRole
ToRouter = WorkerHello | Committed | Result | Failed | CacheFlushed | Spans | CatalogAsk | CatalogHeld


# --- data link: one per prefill-decode pair --------------------------------------------------------------


class LinkHello(Message, frozen=True, tag="link_hello"):
    """Prefill to decode: first on the link, and again after a refusal."""

    protocol: Number
    worker: Name
    incarnation: Number
    model: ModelIdentity
    memory: SharedKv | None = None  # where prompts lie, if others may map it


class LinkWelcome(Message, frozen=True, tag="link_welcome"):
    """Decode to prefill: the pair is compatible."""

    incarnation: Number


class LinkRefused(Message, frozen=True, tag="link_refused"):
    """Decode to prefill: nothing is taken on this link, and why: the models differ, or no greeting came."""

    incarnation: Number
    reason: Text


class Open(Message, frozen=True, tag="open"):
    """Prefill holds pages for this prompt and begins to compute it. Answered by `Grant`."""

    id: AttemptId
    prompt_tokens: PromptTokens
    queue: Seconds  # the request waited for this moment
    pages: PageArray = b""  # int32 [n]: the prompt's pages, where the link's greeting offered memory
    generations: PageArray = b""  # uint32 [n], of these pages


class Grant(Message, frozen=True, tag="grant"):
    """Decode is ready for the prompt, which shall come by this `way`.

    `credits` chunks may be under way, the first `held_tokens` need not be sent. `reader` is the process that
    reads in place.
    """

    id: AttemptId
    credits: Count  # MOST_CREDITS at most
    lease: Seconds
    held_tokens: Count
    way: Way = "frames"
    reader: ProcessId | None = None


class Credit(Message, frozen=True, tag="credit"):
    """Decode has copied `chunks` further chunks out of its queue."""

    id: AttemptId
    chunks: Count


class Renew(Message, frozen=True, tag="renew"):
    """Decode still wants this prompt: hold its KV for `lease` more seconds."""

    id: AttemptId
    lease: Seconds


class KvChunk(Message, frozen=True, tag="kv"):
    """KV of layers [first_layer, last_layer) for tokens [start, start + count), and `heads` KV heads.

    Two frames follow: the keys and the values, each [layers, count, heads, head_dim]. Within a layer, tokens
    come in ascending order. A chunk has all heads of the model: the first is 0.
    """

    id: AttemptId
    sequence: Count  # 0, 1, 2, ... within the attempt
    first_layer: Count
    last_layer: Count
    start: Count
    count: Count
    first_head: Count
    heads: Count
    checksum: Digest  # of both frames


class KvReady(Message, frozen=True, tag="kv_ready"):
    """`KvChunk` where decode pulls: what it names can be read in the prompt's pages."""

    id: AttemptId
    sequence: Count  # 0, 1, 2, ... within the attempt
    first_layer: Count
    last_layer: Count
    start: Count
    count: Count
    first_head: Count
    heads: Count


class Commit(Message, frozen=True, tag="commit"):
    """All chunks are sent. One frame follows: the last hidden state after the final norm, float32.

    With `checksum` None no frame follows: decode runs the prompt's last token over the KV before it. It comes
    again where a reader in place has not been heard for long: whoever does not hold the prompt says NACK.
    """

    id: AttemptId
    chunks: Count  # messages; none where the prompt is read in place
    digest: Digest  # of all chunk checksums in sequence
    checksum: Digest | None  # of the hidden state
    prefill: Seconds  # inside the model
    cached_tokens: Count = 0  # whose KV was there before the request


class Ack(Message, frozen=True, tag="ack"):
    """Decode has verified the COMMIT, and reads the prompt's pages no more: prefill may free them."""

    id: AttemptId


class Nack(Message, frozen=True, tag="nack"):
    """Decode gives this attempt up, and why; it reads nothing any more, and prefill frees its pages."""

    id: AttemptId
    reason: Text


ToDecodeData = LinkHello | Open | KvChunk | KvReady | Commit | Cancel
ToPrefillData = LinkWelcome | LinkRefused | Grant | Credit | Renew | Ack | Nack
