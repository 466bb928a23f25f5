"""What HTTP answers look like: written by the router, read by the client. Fields may be added."""

from typing import Literal

import msgspec

from xgr_runtime.messages import Timing


class BeamMeta(msgspec.Struct, frozen=True):
    """`sequence_score` is `cumulative_logprob / depth`; natural logarithms in float32."""

    sequence_score: float
    cumulative_logprob: float


class BeamResult(msgspec.Struct, frozen=True):
    """One SID and the items on it that the filters leave."""

    output_ids: list[int]
    items: list[str]
    meta_info: BeamMeta


class FinishReason(msgspec.Struct, frozen=True):
    """Decoding has a fixed depth, so `length` is the only reason there is."""

    type: Literal["length"]
    length: int


class UnknownItems(msgspec.Struct, frozen=True):
    """Entries of the filters that the catalog does not hold."""

    allow: int
    deny: int


class MetaInfo(msgspec.Struct, frozen=True):
    """Everything about an answer but its best SID. Times are in seconds.

    The scores are those of the best SID, None without one. `completion_tokens` counts the best SID alone.
    """

    id: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
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


class Answer(msgspec.Struct, frozen=True):
    """The answer of /generate: the best SID on top, all of them in `meta_info.beam_results`, best first."""

    rid: str
    text: str
    output_ids: list[int]
    items: list[str]
    meta_info: MetaInfo


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
