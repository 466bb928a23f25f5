"""Bodies of POST /score, and what each is as a body of /generate."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.http.schema import (
    MOST_NAMED,
    Filters,
    GenerateRequest,
    Histories,
    ItemId,
    Items,
    Messages,
    ModelName,
    Rid,
    SamplingParams,
    Timeout,
    TokenId,
    Variables,
)
from router.query.query import MOST_PRIORITY
from xgr_kernels.trie import ScoreMode
from xgr_runtime.wire.messages import MOST_CANDIDATES

Sid = Annotated[list[TokenId], Meta(max_length=64)]


class ScoreParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What scores are: as in /generate."""

    score_mode: ScoreMode | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None


class ScoreRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of `items` and `sids`, and one form of prompt; all else means what it does in /generate."""

    items: Annotated[
        Annotated[list[ItemId], Meta(min_length=1, max_length=MOST_CANDIDATES)] | None,
        Meta(description="Ids of the items to score, in any order; one may come twice."),
    ] = None
    sids: Annotated[
        Annotated[list[Sid], Meta(min_length=1, max_length=MOST_CANDIDATES)] | None,
        Meta(description="SIDs to score instead, each a list of its tokens."),
    ] = None
    input_ids: list[TokenId] | None = None
    history: Items | Histories | None = None
    variables: Variables | None = None
    messages: Messages | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=MOST_NAMED)] | None = None
    template: ModelName | None = None
    unknown_history: Literal["refuse", "drop"] = "drop"
    text: str | None = None
    model: ModelName | None = None
    rid: Rid | None = None
    timeout_ms: Timeout | None = None
    sampling_params: ScoreParams | None = None
    filters: Filters | None = None
    priority: Annotated[int, Meta(ge=-MOST_PRIORITY, le=MOST_PRIORITY)] | None = None
    priority_class: Literal["online", "batch"] = "online"


def as_generate(given: ScoreRequest) -> GenerateRequest:
    """All but the candidates."""
    names = set(given.__struct_fields__) - {"items", "sids", "sampling_params"}
    params = given.sampling_params or ScoreParams()
    sampling = SamplingParams(**msgspec.structs.asdict(params))
    return GenerateRequest(**{name: getattr(given, name) for name in names}, sampling_params=sampling)
