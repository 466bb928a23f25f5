"""What HTTP answers look like: written by the router, read by the client. Fields may be added."""

from typing import Any, Literal

import msgspec

from xgr_runtime.wire.messages import Limits, Load, ModelIdentity, Role, Timing


class BeamMeta(msgspec.Struct, frozen=True, gc=False):
    """`sequence_score` is `cumulative_logprob / depth`; natural logarithms in float32."""

    sequence_score: float
    cumulative_logprob: float


class ItemInfo(msgspec.Struct, frozen=True, gc=False):
    """What was asked of an item with `return`; what was not is absent. No part of a cycle either.

    `title` is None where it has none, and so is the value of an attribute.
    """

    title: str | msgspec.UnsetType | None = msgspec.UNSET
    attributes: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class BeamResult(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One SID and the items on it that are listed. Cannot be part of a cycle, hence untracked.

    `item_info` has an entry for each of `items`, and is there if the request has `return`.
    """

    output_ids: list[int]
    items: list[str]
    meta_info: BeamMeta
    item_info: list[ItemInfo] | None = None


class FinishReason(msgspec.Struct, frozen=True):
    """Decoding has a fixed depth, so `length` is the only reason there is."""

    type: Literal["length"]
    length: int


class UnknownItems(msgspec.Struct, frozen=True):
    """Entries of the filters, and items of a history that were left out, that the catalog does not hold."""

    allow: int
    deny: int
    history: int


class DiversityFacts(msgspec.Struct, frozen=True):
    """How the results of a request with `diversity` were found.

    `beams` were looked at: all that the search found. `wider_changes`: whether a wider search could have
    another answer; `no` is certain, but for scores that rounding moves past each other.
    """

    beams: int
    wider_changes: Literal["no", "unknown"]


class MetaInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything about an answer but its best SID. Times are in seconds.

    The scores are those of the best SID, None without one. `completion_tokens` counts the best SID alone.
    """

    id: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int  # of the prompt, whose KV the prefill worker had already
    completion_tokens: int
    e2e_latency: float
    sequence_score: float | None
    cumulative_logprob: float | None
    catalog_version: str
    attempts: int
    timing: Timing
    dropped_items: int
    unknown_items: UnknownItems
    beam_results: list[BeamResult]
    diversity: DiversityFacts | None = None


class Answer(msgspec.Struct, frozen=True):
    """The answer of /generate: the best SID on top, all of them in `meta_info.beam_results`, best first."""

    rid: str
    text: str
    output_ids: list[int]
    items: list[str]
    meta_info: MetaInfo


NoScore = Literal["unknown", "hidden", "filtered"]
"""Why a candidate has no score: the catalog does not hold it, its items are hidden, filters leave it out."""


class CandidateScore(msgspec.Struct, frozen=True, gc=False):
    """Of one candidate; without a score `why` says the reason, and what would come of the score is None.

    `rank`: 1 for the SID that scores highest among the candidates; those of one score have one rank.
    """

    output_ids: list[int]  # the SID; empty if it is unknown
    cumulative_logprob: float | None
    sequence_score: float | None
    rank: int | None
    why: NoScore | None = None


class ScoreMeta(msgspec.Struct, frozen=True):
    """Everything about the scores but themselves. Times are in seconds; counts as in `MetaInfo`."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    scored_sids: int  # distinct ones
    e2e_latency: float
    catalog_version: str
    attempts: int
    timing: Timing
    dropped_items: int
    unknown_items: UnknownItems


class ScoreAnswer(msgspec.Struct, frozen=True):
    """The answer of /score: an entry for each candidate, in the order in which they were asked."""

    rid: str
    candidates: list[CandidateScore]
    meta_info: ScoreMeta


class ErrorDetail(msgspec.Struct, frozen=True):
    """`param` is the path of the field at fault, such as `sampling_params.beam_width`."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error."""

    error: ErrorDetail
    request_id: str
    retryable: bool


class Status(msgspec.Struct, frozen=True):
    """The answer of a probe that succeeded; one that fails gets an `ErrorBody` that says why."""

    status: Literal["ok"] = "ok"


class WorkerStatus(msgspec.Struct, frozen=True):
    """One worker of the router. What it says of itself, but for its role, is None until it first answered.

    `load.pages_used` counts pages in use by requests, `load.pages_cached` those that only a cache holds.
    """

    address: str
    alive: bool
    usable: bool
    problem: str  # why it is not usable, else empty
    in_flight: int  # attempts of the router that answers
    role: Role  # as configured, or of one that can take either, as it said last
    leaving: bool = False  # it was removed, and finishes what it has
    flexible: bool = False  # it can take either role
    changing: bool = False  # it finishes what it has, and takes the other role then
    worker: str | None = None
    incarnation: str | None = None  # hexadecimal: JSON numbers do not hold 64 bits everywhere
    model: ModelIdentity | None = None
    catalogs: list[str] = []
    limits: Limits | None = None
    load: Load | None = None


class WorkerList(msgspec.Struct, frozen=True):
    """All workers, prefill first. `problem`: why the file of workers counts as it was before, else empty."""

    workers: list[WorkerStatus]
    problem: str = ""


class Aborted(msgspec.Struct, frozen=True):
    """A live request was cancelled everywhere."""

    rid: str
    aborted: bool = True


class WorkerFlush(msgspec.Struct, frozen=True):
    """What became of one worker's prompt cache."""

    address: str
    flushed_pages: int
    problem: str  # why it was not flushed, else empty


class Flushed(msgspec.Struct, frozen=True):
    """What a flush of the prompt caches freed; a success if every worker has done it."""

    success: bool
    flushed_pages: int
    message: str
    workers: list[WorkerFlush]


class ModelCard(msgspec.Struct, frozen=True):
    """An entry of /v1/models."""

    id: str
    created: int  # Unix time in seconds: start of the router
    max_model_len: int | None
    object: Literal["model"] = "model"
    owned_by: str = "xgr-runtime"


class ModelList(msgspec.Struct, frozen=True):
    """The answer of /v1/models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class ModelInfo(msgspec.Struct, frozen=True):
    """The answer of /model_info: the checkpoint and its catalog."""

    model_path: str
    served_model_name: str
    is_generation: bool
    vocab_size: int
    depth: int
    catalog_version: str
    catalog_items: int
    catalog_leaves: int


class ServerInfo(msgspec.Struct, frozen=True):
    """The answer of /server_info: limits in force (None: no limit) and the state of the router."""

    version: str
    served_model_name: str
    max_beam_width: int
    default_beam_width: int
    max_prompt_tokens: int | None
    max_body_bytes: int
    timeout_ms: int
    ready: bool
    draining: bool
    live_requests: int


class FoundItem(msgspec.Struct, frozen=True):
    """An item that a search for titles found. `title` is None where it has none."""

    item: str
    title: str | None
    sid: list[int]


class ItemList(msgspec.Struct, frozen=True):
    """The answer of GET /items, the most popular first. Not `whole`: there may be more of them."""

    items: list[FoundItem]
    whole: bool
    catalog_version: str


class EndedRequest(msgspec.Struct, frozen=True):
    """A request to /generate that is over. `timing` is None where it got no answer, as `status` says why.

    `ended` is Unix time. `seconds` are from its arrival to its end.
    """

    rid: str
    ended: float
    seconds: float
    status: int
    prompt_tokens: int
    beam_width: int
    results: int
    attempts: int = 0
    cached_tokens: int = 0
    timing: Timing | None = None


class EndedRequests(msgspec.Struct, frozen=True):
    """The answer of GET /requests, the last to end first."""

    requests: list[EndedRequest]


class CatalogVersion(msgspec.Struct, frozen=True):
    """A version that the router or a worker holds. `items`: zero where only workers hold it."""

    version: str
    newest: bool  # requests that come now use it
    leases: int  # requests of this router that read it
    workers: list[str]  # names of the decode workers that hold it
    items: int  # that it holds, hidden ones too


class ChangeUnderWay(msgspec.Struct, frozen=True):
    """A change that is kept and not in use yet. `waits_for`: decode workers, and the part that each has."""

    version: str
    kind: str
    seconds: float
    waits_for: dict[str, float]


class CatalogInfo(msgspec.Struct, frozen=True):
    """The answer of GET /catalog: who holds which version, and what is on its way."""

    changes: bool  # whether the deployment has a store
    current: str  # what a start would serve now
    newest: str  # what requests that come now use
    versions: list[CatalogVersion]  # oldest first
    under_way: ChangeUnderWay | None
    behind: dict[str, str]  # decode workers, by address, that get no requests for their catalog, and why


class CatalogChange(msgspec.Struct, frozen=True):
    """A change that is kept for good. After `wait`, requests that come from now on use that version."""

    version: str
    visible_ms: float  # from the call until it was in use; without `wait`, until it was kept
    workers: int  # decode workers that hold it
    unknown: list[str]  # ids that the catalog does not hold
    changed: bool = True  # false: it was so already, and nothing became of the call


class HistoryEntry(msgspec.Struct, frozen=True):
    """A version became current."""

    number: int
    at: float  # Unix time in seconds
    kind: str  # edit, push or rollback
    version: str
    note: str  # the pushed file, or what an edit did
    kept: bool  # whether a rollback can go there


class CatalogHistory(msgspec.Struct, frozen=True):
    """The answer of GET /catalog/history, newest first."""

    entries: list[HistoryEntry]


class NamedFilter(msgspec.Struct, frozen=True):
    """A condition that requests name in `filters.named`."""

    name: str
    where: str
    changed: float  # Unix time in seconds


class NamedFilterList(msgspec.Struct, frozen=True):
    """All named filters, by name."""

    filters: list[NamedFilter]
