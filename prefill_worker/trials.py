"""Forwards that are tried at the start, so that the first requests already find out what theirs will take."""

import time
from collections.abc import Callable

import numpy as np

from prefill_worker.engines.base import Part, PrefillEngine
from xgr_runtime.scheduling.cost_model import Tried, prompt_work

SIZES = (32, 256, 1024, 2048)  # tokens of a prompt
SECONDS = 1.0  # after which nothing more is tried: a large model gets through a few of them
_LONGEST = 1.0  # seconds that a trial may be expected to take
_MANY = 256  # tokens from which on each takes as long as others, as far as attention is not most of it
_SHORT = 0.1  # seconds; what is as short is tried twice, as the first run pays for what is made once


def try_forwards(
    engine: PrefillEngine, most_tokens: int, clock: Callable[[], float] = time.monotonic
) -> list[Tried]:
    """Prompts of up to `most_tokens`, alone, the small ones first. Their KV goes to pages that nobody has.

    What there was no time to try is expected to take as long per token, where the last one had `_MANY`.
    """
    most_tokens = min(most_tokens, engine.pool.pages * engine.pool.page_size, SIZES[-1])
    until, tried = clock() + SECONDS, list[Tried]()
    for tokens in [size for size in SIZES if size <= most_tokens]:
        work = prompt_work(0, tokens)
        if tried and (clock() > until or _expected(tried[-1], tokens) > _LONGEST):
            break
        seconds = _seconds(engine, tokens, clock)
        if seconds < _SHORT or not tried:
            seconds = min(seconds, _seconds(engine, tokens, clock))
        tried.append(Tried(work, seconds))
    longest = prompt_work(0, most_tokens)
    if tried and _MANY <= (last := tried[-1]).work.tokens < longest.tokens:
        tried.append(Tried(longest, last.seconds * longest.tokens / last.work.tokens))
    return tried


def _expected(before: Tried, tokens: int) -> float:
    """Seconds of more tokens, of which each takes less: few of them wait for the weights."""
    return before.seconds * tokens / before.work.tokens / 4


def _seconds(engine: PrefillEngine, tokens: int, clock: Callable[[], float]) -> float:
    """Of one forward; its tokens differ, as those of a model with experts should."""
    pages = np.arange(-(-tokens // engine.pool.page_size), dtype=np.int32)
    prompt = (np.arange(tokens) * 7919 + 3) % engine.model.identity.vocab
    started = clock()
    engine.run([Part(prompt.astype(np.int32), pages)], lambda layer: None)
    return clock() - started
