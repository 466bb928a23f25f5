"""From answers of /generate to those of OpenAI's two routes."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import UNSET
from msgspec.structs import replace

from router.http.answers import sid_text
from router.http.openai.schema import (
    ChatChoice,
    ChatCompletion,
    ChatRequest,
    Choice,
    Completion,
    CompletionRequest,
    PromptDetails,
    SaidMessage,
    SamplingFields,
    StreamOptions,
    Usage,
)
from router.query.models import Model
from xgr_runtime.wire.answers import Answer, BeamResult, MetaInfo


class Answered(NamedTuple):
    """What one prompt led to."""

    answer: Answer
    model: Model


def completion_reply(answered: Sequence[Answered], given: CompletionRequest) -> list[Completion]:
    """The only one, or the pieces of a stream."""
    choices = [Choice(at, text, result) for at, (text, result) in enumerate(_results(answered))]
    first = answered[0]
    whole = Completion(
        id=f"cmpl-{first.answer.rid}",
        created=int(time.time()),
        model=first.model.name,
        choices=choices,
        usage=usage(answered) if tells_usage(given) else None,
        xgr=_facts(answered),
    )
    if not given.stream or whole.usage is None:
        return [whole]
    return [replace(whole, usage=None), replace(whole, choices=[])]


def chat_reply(answered: Sequence[Answered], given: ChatRequest) -> list[ChatCompletion]:
    """The only one, or the pieces of a stream."""
    messages = [(SaidMessage(text), result) for text, result in _results(answered)]
    streamed = bool(given.stream)
    choices = [
        ChatChoice(at, result, UNSET if streamed else said, said if streamed else UNSET)
        for at, (said, result) in enumerate(messages)
    ]
    first = answered[0]
    whole = ChatCompletion(
        id=f"chatcmpl-{first.answer.rid}",
        object="chat.completion.chunk" if streamed else "chat.completion",
        created=int(time.time()),
        model=first.model.name,
        choices=choices,
        usage=usage(answered) if tells_usage(given) else None,
        xgr=_facts(answered),
    )
    if not streamed or whole.usage is None:
        return [whole]
    return [replace(whole, usage=None), replace(whole, choices=[])]


def tells_usage(given: SamplingFields) -> bool:
    """A stream tells it where that is asked."""
    return not given.stream or (given.stream_options or StreamOptions()).include_usage


def usage(answered: Sequence[Answered]) -> Usage:
    """Tokens of all prompts and choices together."""
    metas = [one.answer.meta_info for one in answered]
    prompts = sum(meta.prompt_tokens for meta in metas)
    chosen = sum(len(result.output_ids) for meta in metas for result in meta.beam_results)
    cached = PromptDetails(sum(meta.cached_tokens for meta in metas))
    return Usage(prompts, chosen, prompts + chosen, cached)


def _results(answered: Sequence[Answered]) -> Iterator[tuple[str, BeamResult]]:
    """Text and result of each choice, prompt after prompt."""
    for one in answered:
        for result in one.answer.meta_info.beam_results:
            yield sid_text(one.model.tokenizer, result.output_ids), result


def _facts(answered: Sequence[Answered]) -> list[MetaInfo]:
    return [replace(one.answer.meta_info, beam_results=[]) for one in answered]
