"""Bodies and answers of OpenAI's two routes. What only this server knows stands in `xgr`, both ways.

Fields that would change the answer of a sampling server are taken at the values that change nothing.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from router.http.batches import MOST_PROMPTS
from router.http.schema import (
    Count,
    GenerateRequest,
    Messages,
    ModelName,
    Unread,
    Whole,
    null,
)
from xgr_runtime.wire.answers import BeamResult, MetaInfo

Extension = Annotated[
    GenerateRequest | None,
    Meta(description="Fields of /generate, such as `history`, `filters` and `sampling_params.beam_width`."),
]
Width = Annotated[
    bool | None, Meta(description="As in vLLM, `n` is the width then, unless `xgr` has a beam_width.")
]
Tokens = Annotated[Whole | None, Meta(description="At least what a SID has; answers end by themselves.")]


_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
Prompts = Annotated[  # undecoded, as a million empty lists would hold up everybody
    msgspec.Raw,
    Meta(
        description=f"Text, token ids, or up to {MOST_PROMPTS} of either in a list, each answered by itself.",
        extra_json_schema={
            "anyOf": [
                {"type": ["string", "null"]},
                _TOKENS,
                {"type": "array", "items": {"type": "string"}, "maxItems": MOST_PROMPTS},
                {"type": "array", "items": _TOKENS, "maxItems": MOST_PROMPTS},
            ]
        },
    ),
]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream tells besides choices."""

    include_usage: bool = False
    include_obfuscation: bool | None = None  # there is nothing whose length could tell something


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both routes have. Fields after `stream_options` are taken at neutral values."""

    model: ModelName | None = None
    n: Annotated[Count | None, Meta(description="Choices for each prompt, best first; 1 if absent.")] = None
    use_beam_search: Width = None
    max_tokens: Tokens = None
    xgr: Extension = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    length_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    user: str | None = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, or several; or none, where `xgr` has a history."""

    prompt: Prompts = msgspec.field(default_factory=null)
    best_of: Whole | None = None
    echo: bool | None = None
    logprobs: Whole | None = None
    suffix: str | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages for the chat template, in which SIDs are text; or none, where `xgr` has a history."""

    messages: Messages | None = None
    max_completion_tokens: Tokens = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    response_format: Unread = msgspec.field(default_factory=null)
    tools: Unread = msgspec.field(default_factory=null)
    tool_choice: Unread = msgspec.field(default_factory=null)
    metadata: Unread = msgspec.field(default_factory=null)
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None


FinishReason = Literal["stop"]  # a SID is whole, and nothing was cut


class Choice(msgspec.Struct, frozen=True, omit_defaults=False):
    """One SID as text, and its items in `xgr`."""

    index: int
    text: str
    xgr: BeamResult
    finish_reason: FinishReason = "stop"
    logprobs: None = None


class SaidMessage(msgspec.Struct, frozen=True):
    """What the assistant says: one SID."""

    content: str
    role: Literal["assistant"] = "assistant"


class ChatChoice(msgspec.Struct, frozen=True):
    """One SID as a message, or as the only piece of a stream."""

    index: int
    xgr: BeamResult
    message: SaidMessage | msgspec.UnsetType = UNSET
    delta: SaidMessage | msgspec.UnsetType = UNSET
    finish_reason: FinishReason = "stop"
    logprobs: None = None


class PromptDetails(msgspec.Struct, frozen=True):
    """Of the tokens of prompts."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of all prompts and choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /v1/completions. `xgr`: what /generate says of each prompt, without its results."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None
    xgr: list[MetaInfo]


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of /v1/chat/completions, or a piece of it."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    xgr: list[MetaInfo]
