"""Request bodies, and the values at which SGLang's other fields mean nothing to an exact search.

A field that would change the answer of a sampling server is accepted where it says "off", else refused
by name.
"""

from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.query.query import MOST_PRIORITY
from xgr_kernels.trie import ScoreMode
from xgr_runtime.catalog.where import MAX_CHARACTERS
from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.messages import Role

ALL_TOKENS = 1 << 30  # SGLang's way to say "no top_k"
INT64_MAX = (1 << 63) - 1
MOST_NAME = 1024  # characters
NEUTRAL_BYTES = 16  # that a neutral value takes at most
MOST_HISTORY = 1 << 16  # items, of which a prompt holds the newest
MOST_NAMED = 64  # lists of a history, variables, arguments of a chat template
MOST_MESSAGES = 1024
MOST_ATTRIBUTE = 256  # characters of its name
MOST_FILTERED = 1 << 19  # items of one list: to look them up takes a fraction of a second
MOST_CONDITION = MAX_CHARACTERS  # characters

TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
ItemId = int | str  # numbers of 64 bits, with or without a sign: `intake.item_ids` looks
Unread = msgspec.Raw  # could hold anything, of which nothing is ever needed: it stays bytes
Whole = Annotated[int, Meta(ge=-INT64_MAX, le=INT64_MAX)]  # refused before its digits are repeated
Count = Annotated[int, Meta(ge=1, le=INT64_MAX)]
ModelName = Annotated[str, Meta(max_length=MOST_NAME)]
Items = Annotated[list[ItemId], Meta(max_length=MOST_HISTORY)]
AttributeName = Annotated[str, Meta(max_length=MOST_ATTRIBUTE)]
Histories = Annotated[dict[str, Items], Meta(max_length=MOST_NAMED)]
Variables = Annotated[dict[str, str], Meta(max_length=MOST_NAMED)]
Message = dict[str, str | list[dict[str, str]] | None]  # what of it has to be there: `intake.chat`
Messages = Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
FilterNames = Annotated[list[Annotated[str, Meta(max_length=MOST_NAME)]], Meta(max_length=MOST_NAMED)]
Timeout = Annotated[int, Meta(ge=1, le=3_600_000)]  # milliseconds
Rid = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        description="Printable ASCII without spaces; generated if absent.",
        extra_json_schema={"pattern": "^[!-~]+$"},
    ),
]


_NULL = msgspec.Raw(b"null")


def null() -> msgspec.Raw:
    return _NULL


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`n` defaults to `beam_width`; fields after `length_penalty` are SGLang's, taken at neutral values."""

    beam_width: Annotated[Count | None, Meta(description="Beams kept per level.")] = None
    n: Annotated[Count | None, Meta(description="Results wanted, at most beam_width.")] = None
    score_mode: Annotated[
        ScoreMode | None,
        Meta(description="Log-probabilities are over the vocabulary, what is legal, or a level's tokens."),
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=10)] | None,
        Meta(description="Multiplies log-probabilities of tokens that prompt or beam holds."),
    ] = None
    length_penalty: Annotated[
        Annotated[float, Meta(ge=-10, le=10)] | None,
        Meta(description="sequence_score = cumulative_logprob / emitted tokens ** length_penalty."),
    ] = None
    max_new_tokens: Annotated[
        Whole | None, Meta(description="The catalog's depth, or what its scoring emits; or absent.")
    ] = None
    min_new_tokens: Annotated[Whole | None, Meta(description="At most what a search emits.")] = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    logit_bias: dict[str, float] | None = None
    custom_params: Unread = msgspec.field(default_factory=null)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    stream_interval: int | None = None
    sampling_seed: int | None = None


class Filters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which items may be in the answer. `allow: []` allows none; unknown ids are ignored and counted."""

    allow: Annotated[list[ItemId], Meta(max_length=MOST_FILTERED)] | None = None
    deny: Annotated[list[ItemId], Meta(max_length=MOST_FILTERED)] | None = None
    exclude_history: bool = False
    where: Annotated[
        Annotated[str, Meta(max_length=MOST_CONDITION)] | None,
        Meta(
            description="A condition over the items' attributes, as SQL writes it behind WHERE: "
            "`in_stock AND brand IN ('a', 'b') AND price < 50`."
        ),
    ] = None
    named: Annotated[
        FilterNames, Meta(description="Names of `/filters`, all of which have to hold, too.")
    ] = []


class SampleItems(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Items of a SID in an order that the seed draws, anew for each prompt."""

    sample: Annotated[int, Meta(ge=0, le=INT64_MAX, description="The seed.")]


class DiverseItems(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many items of an answer may share a value; those without the attribute are not limited."""

    attribute: AttributeName
    at_most: Annotated[Count, Meta(description="Items of one value.")]


class ReturnFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an answer says of each item, in `item_info` beside `items`."""

    title: bool = False
    attributes: Annotated[list[AttributeName], Meta(max_length=MOST_NAMED)] = []


class GenerateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of `input_ids`, `history`, `text` and `messages`; fields after `priority` are SGLang's."""

    input_ids: list[TokenId] | None = None
    history: Annotated[
        Items | Histories | None,
        Meta(description="Item ids, oldest first; lists by name where the template has several."),
    ] = None
    variables: Annotated[
        Variables | None, Meta(description="Text for the other names in the template of a history.")
    ] = None
    messages: Annotated[
        Messages | None,
        Meta(
            description="For the chat template: maps with `role` and `content`, which is text or a list of "
            '`{"type": "text", "text": ...}`. SIDs are text in them.'
        ),
    ] = None
    chat_template_kwargs: Annotated[
        Annotated[dict[str, Any], Meta(max_length=MOST_NAMED)] | None,
        Meta(description="Of `messages`: what the chat template is given besides them."),
    ] = None
    template: Annotated[
        ModelName | None,
        Meta(description="Of `history` and `messages`: its name in the catalog; else the catalog's default."),
    ] = None
    unknown_history: Annotated[
        Literal["refuse", "drop"],
        Meta(
            description="Of history items that the catalog does not hold: `refuse` the request, or `drop` "
            "and count them, as long as one is known."
        ),
    ] = "drop"
    text: str | None = None
    model: Annotated[
        ModelName | None,
        Meta(description="Its name in `/v1/models`; may be absent where one model is served."),
    ] = None
    rid: Rid | None = None
    timeout_ms: Timeout | None = None
    sampling_params: SamplingParams | None = None
    filters: Filters | None = None
    returned: Annotated[
        ReturnFields | None, Meta(description="What the answer says of items besides their ids.")
    ] = msgspec.field(default=None, name="return")
    items_per_sid: Annotated[
        Literal["all", "best"] | SampleItems | None,
        Meta(
            description="Which items of a SID are listed: `all`, the most popular ones first (default); "
            "`best`, the first of these; or a sample."
        ),
    ] = None
    max_items_per_sid: Annotated[
        Count | None, Meta(description="1 if absent, for `best` and samples; no limit for `all`.")
    ] = None
    max_items: Annotated[
        Count | None, Meta(description="Of the whole answer, which ends with the result that reaches it.")
    ] = None
    diversity: Annotated[
        DiverseItems | None,
        Meta(
            description="Results come from all beams, best first, without items of a value that is used up."
        ),
    ] = None
    stream: Annotated[bool, Meta(description="The answer as one server-sent event.")] = False
    priority: Annotated[
        Annotated[int, Meta(ge=-MOST_PRIORITY, le=MOST_PRIORITY)] | None,
        Meta(description="Higher goes first, whatever the deadlines; 0 if absent."),
    ] = None
    priority_class: Annotated[
        Literal["online", "batch"],
        Meta(description="batch: fills what online requests leave, and makes room for them."),
    ] = "online"
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    token_ids_logprob: list[int] | None = None
    return_text_in_logprobs: bool | None = None
    return_hidden_states: bool | None = None
    return_routed_experts: bool | None = None
    return_entropy: bool | None = None
    return_bytes: bool | None = None
    log_metrics: bool | None = None
    no_logs: bool | None = None
    background: bool | None = None
    require_reasoning: bool | None = None
    input_embeds: Unread = msgspec.field(default_factory=null)
    image_data: Unread = msgspec.field(default_factory=null)
    video_data: Unread = msgspec.field(default_factory=null)
    audio_data: Unread = msgspec.field(default_factory=null)
    modalities: list[str] | None = None
    session_params: Unread = msgspec.field(default_factory=null)
    lora_path: str | None = None
    lora_id: str | None = None
    custom_logit_processor: str | None = None
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None
    bootstrap_room: int | None = None
    routed_dp_rank: int | None = None
    data_parallel_rank: int | None = None
    conversation_id: str | None = None
    extra_key: str | None = None
    custom_labels: dict[str, str] | None = None


class AbortRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cancel one live request everywhere."""

    rid: Rid


class AddWorker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take one more worker in."""

    address: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=1024,
            description="Of its control socket, ipc:// or tcp://, or the URL of an SGLang server.",
        ),
    ]
    role: Role


class WorkersQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How old the answer may be."""

    fresh: Annotated[
        bool, Meta(description="Ask the workers now, instead of saying what their last heartbeats said.")
    ] = False


class TraceQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of the past a trace shows."""

    seconds: Annotated[
        float, Meta(gt=0, le=600, description="How far back; a busy process may have forgotten sooner.")
    ] = 10.0


class ItemsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which items are looked for."""

    title: Annotated[
        str, Meta(min_length=1, max_length=200, description="Words that titles hold, whatever their case.")
    ]
    limit: Annotated[int, Meta(ge=1, le=100, description="Items at most.")] = 20


class RequestsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many of the requests that ended are told."""

    last: Annotated[
        int, Meta(ge=1, le=200, description="Requests at most; none older than that is kept.")
    ] = 50


# Value that changes nothing, besides null. Fields that are in neither table may hold anything: they only
# concern sampled text, of which there is none.
NEUTRAL_SAMPLING: dict[str, tuple[object, ...]] = {
    "temperature": (0.0, 1.0),
    "top_p": (1.0,),
    "top_k": (-1, ALL_TOKENS),
    "min_p": (0.0,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "stop": ("", []),
    "stop_token_ids": ([],),
    "stop_regex": ("", []),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "structural_tag": (),
    "logit_bias": ({},),
    "custom_params": ({},),
}
NEUTRAL_REQUEST: dict[str, tuple[object, ...]] = {
    "return_logprob": (False,),
    "logprob_start_len": (-1,),
    "top_logprobs_num": (0,),
    "token_ids_logprob": ([],),
    "return_hidden_states": (False,),
    "return_routed_experts": (False,),
    "return_entropy": (False,),
    "no_logs": (False,),
    "background": (False,),
    "require_reasoning": (False,),
    "input_embeds": (),
    "image_data": ([],),
    "video_data": ([],),
    "audio_data": ([],),
    "modalities": ([],),
    "session_params": ({},),
    "lora_path": (),
    "lora_id": (),
    "custom_logit_processor": (),
    "bootstrap_host": (),
    "bootstrap_port": (),
    "bootstrap_room": (),
    "routed_dp_rank": (),
    "data_parallel_rank": (),
    "extra_key": (),
    "custom_labels": ({},),
}


def refuse_sampling(body: GenerateRequest, depth: int, emitted: int) -> None:
    """Raises `BadRequest` naming the first field that asks for something other than an exact search.

    `emitted`: tokens of a search, which has forced ones besides a SID's.
    """
    refuse_others(body, NEUTRAL_REQUEST)
    params = body.sampling_params
    if params is None:
        return
    refuse_others(params, NEUTRAL_SAMPLING, "sampling_params.")
    if params.max_new_tokens not in (None, depth, emitted):
        raise BadRequest(
            f"max_new_tokens is {params.max_new_tokens}, every item of this catalog has {depth} tokens: "
            f"leave it out or send {depth}",
            "sampling_params.max_new_tokens",
        )
    if params.min_new_tokens is not None and not 0 <= params.min_new_tokens <= emitted:
        raise BadRequest(
            f"min_new_tokens is {params.min_new_tokens}, every item of this catalog has {depth} tokens: "
            "leave it out",
            "sampling_params.min_new_tokens",
        )


def refuse_others(struct: msgspec.Struct, neutral: dict[str, tuple[object, ...]], prefix: str = "") -> None:
    """Raises `BadRequest` naming the first field with another value than null and what `neutral` has."""
    for name, accepted in neutral.items():
        value = getattr(struct, name)
        if value is None or value is _NULL:  # most are absent
            continue
        value = _read(value)
        if value is not None and value not in accepted:
            choices = "".join(f" or send {msgspec.json.encode(choice).decode()}" for choice in accepted)
            raise BadRequest(
                f"{name} is not supported by an exact search: leave it out{choices}", f"{prefix}{name}"
            )


def _read(value: object) -> object:
    """What a short field that nobody read holds; itself if it is longer, or holds what no field could."""
    if isinstance(value, msgspec.Raw) and len(memoryview(value)) <= NEUTRAL_BYTES:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.decode(value)
    return value
