"""From a router's request to a prompt that waits."""

from prefill_worker.scheduler import Prompt
from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.arrays import int32s
from xgr_runtime.wire.messages import PrefillRequest


def prompt_of(request: PrefillRequest, now: float, most_tokens: int, vocab: int) -> Prompt:
    """The prompt, checked. Raises BadRequest."""
    whole = len(request.tokens) // 4 * 4
    tokens = int32s(request.tokens[:whole])
    if not 0 < len(tokens) <= most_tokens:
        raise BadRequest(f"the prompt has {len(tokens)} tokens, the limit is {most_tokens}")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise BadRequest(f"a prompt token is outside of the vocabulary of {vocab}")
    return Prompt(
        request.id,
        tokens,
        request.data_address,
        now,
        now + request.timeout,
        request.priority,
        request.after,
    )
