"""From OpenAI's bodies to those of /generate, one for each prompt."""

from msgspec.structs import replace

from router.http.batches import prompts_of
from router.http.openai.schema import ChatRequest, CompletionRequest, SamplingFields
from router.http.schema import ALL_TOKENS, GenerateRequest, SamplingParams, refuse_others
from xgr_runtime.errors import BadRequest

# Values that change nothing, besides null, of fields that /generate has not.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (0, False),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "store": (False,),
}
_PASSED = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "stop", "logit_bias")
_SCORES = ("length_penalty", "repetition_penalty", "ignore_eos")


def of_completion(given: CompletionRequest, width: int) -> list[GenerateRequest]:
    """One for each prompt; `width` where none is asked. Raises `BadRequest` naming the field."""
    plain = _plain(given, width)
    prompts = prompts_of(given.prompt, "prompt")
    if not prompts:
        return [_with_history(plain, "prompt")]
    _refuse_two(plain, "prompt")
    return [
        replace(plain, text=prompt) if isinstance(prompt, str) else replace(plain, input_ids=prompt)
        for prompt in prompts
    ]


def of_chat(given: ChatRequest, width: int) -> list[GenerateRequest]:
    """The only one; `width` where none is asked. Raises `BadRequest` naming the field."""
    plain = _plain(given, width)
    if given.messages is None:
        return [_with_history(plain, "messages")]
    _refuse_two(plain, "messages")
    arguments = given.chat_template_kwargs or plain.chat_template_kwargs
    return [replace(plain, messages=given.messages, chat_template_kwargs=arguments)]


def _plain(given: SamplingFields, width: int) -> GenerateRequest:
    """All but the prompt."""
    refuse_others(given, {name: _NEUTRAL[name] for name in given.__struct_fields__ if name in _NEUTRAL})
    own = given.xgr or GenerateRequest()
    if own.stream:
        raise BadRequest("xgr.stream: send stream beside xgr instead", "xgr.stream")
    if own.model is not None and given.model is not None and own.model != given.model:
        raise BadRequest("model and xgr.model differ: send one of them", "xgr.model")
    return replace(own, model=given.model or own.model, sampling_params=_sampling(given, own, width))


def _sampling(given: SamplingFields, own: GenerateRequest, width: int) -> SamplingParams:
    params = own.sampling_params or SamplingParams()
    said = {name: getattr(given, name) for name in (*_PASSED, *_SCORES) if getattr(given, name) is not None}
    if given.top_k is not None:
        said["top_k"] = ALL_TOKENS if given.top_k in (0, -1) else given.top_k
    for name in said:
        if getattr(params, name) is not None:
            raise BadRequest(f"{name} is also in xgr.sampling_params: send it once", name)
    if given.n is not None and params.n is not None:
        raise BadRequest("n is also in xgr.sampling_params: send it once", "n")
    results = given.n or params.n or 1
    beams = params.beam_width
    if beams is None and (given.use_beam_search or results > width):
        beams = results
    return replace(params, **said, n=results, beam_width=beams)


def _refuse_two(plain: GenerateRequest, name: str) -> None:
    for other in ("history", "text", "messages", "input_ids"):
        if getattr(plain, other) is not None:
            raise BadRequest(f"{name} and xgr.{other} are given: send one of them", f"xgr.{other}")


def _with_history(plain: GenerateRequest, name: str) -> GenerateRequest:
    if plain.history is None:
        raise BadRequest(f"{name} is missing: send it, or a history in xgr", name)
    return plain
