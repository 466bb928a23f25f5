"""From a decoded request to a job: prompts, widths and filters, checked against catalog and limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from router.http.prompts import UNLIMITED, TextPrompts, check_length, shorten
from router.http.schema import (
    MOST_PRIORITY,
    Filters,
    GenerateRequest,
    SamplingParams,
    refuse_sampling,
)
from router.http.settings import HttpSettings
from router.job import Job
from xgr_runtime.catalog import Catalog, FilterSpec, resolve_items
from xgr_runtime.errors import BadRequest, CatalogError
from xgr_runtime.wire.messages import Limits

_ONE_OF = "send exactly one of input_ids, history and text"


@dataclass(frozen=True)
class Ticket:
    """A job, and what its answer has to say about how it came to be."""

    job: Job
    filter: FilterSpec
    dropped_items: int
    stream: bool


@dataclass(frozen=True)
class _Prompt:
    tokens: NDArray[np.int32]  # [L]
    dropped_items: int = 0


class Intake:
    """Validates against one catalog, one tokenizer and one deployment's settings."""

    def __init__(self, catalog: Catalog, tokenizer: Tokenizer, settings: HttpSettings) -> None:
        self.catalog = catalog
        self.texts = TextPrompts(tokenizer)
        self.settings = settings
        self.vocab_size = settings.vocab_size or tokenizer.get_vocab_size()

    def ticket(self, body: GenerateRequest, rid: str, arrival: float, limits: Limits | None) -> Ticket:
        """The job of `body`, which arrived at `arrival` (monotonic). Raises `BadRequest` naming the field."""
        refuse_sampling(body, self.catalog.depth)
        params = body.sampling_params or SamplingParams()
        width, results = self.widths(params, limits)
        prompt = self.prompt(body, limits)
        wanted = self.filter(body)
        job = Job(
            rid=rid,
            tokens=prompt.tokens,
            width=width,
            results=results,
            score_mode=params.score_mode,
            catalog=self.catalog.version,
            allow=wanted.allow_leaves,
            deny=wanted.deny_leaves,
            deadline=arrival + self.seconds(body.timeout_ms),
            priority=body.priority or 0,
        )
        return Ticket(job, wanted, prompt.dropped_items, body.stream)

    def probe(self, rid: str, deadline: float, limits: Limits | None) -> Job:
        """The smallest real request there is: one item of history, one beam. Load is no illness."""
        tokens, _ = self.catalog.prompt_tokens([0], self.max_prompt_tokens(limits))
        none = np.empty(0, np.int32)
        prompt = np.array(tokens, np.int32)
        version = self.catalog.version
        return Job(rid, prompt, 1, 1, "vocab", version, None, none, deadline, MOST_PRIORITY, probe=True)

    def seconds(self, timeout_ms: int | None) -> float:
        """That a request has."""
        return (timeout_ms or self.settings.timeout_ms) / 1000

    def max_beam_width(self, limits: Limits | None) -> int:
        """What the deployment allows and its workers can do."""
        theirs = limits.max_beam_width if limits else 0
        return min(self.settings.max_beam_width, theirs or UNLIMITED)

    def max_prompt_tokens(self, limits: Limits | None) -> int:
        """What the deployment allows and its workers can do."""
        theirs = limits.max_prompt_tokens if limits else 0
        return min(self.settings.max_prompt_tokens or UNLIMITED, theirs or UNLIMITED)

    def widths(self, params: SamplingParams, limits: Limits | None) -> tuple[int, int]:
        """Beam width and number of results."""
        most = self.max_beam_width(limits)
        width = (
            min(self.settings.default_beam_width, most) if params.beam_width is None else params.beam_width
        )
        if width > most:
            raise BadRequest(
                f"beam_width is {width}, the limit is {most}: lower it or restart with "
                f"--max-beam-width {width}",
                "sampling_params.beam_width",
            )
        results = width if params.n is None else params.n
        if results > width:
            raise BadRequest(
                f"n is {results}, beam_width is {width}: lower n or raise beam_width", "sampling_params.n"
            )
        return width, results

    def prompt(self, body: GenerateRequest, limits: Limits | None) -> _Prompt:
        """Token ids of whichever of the three forms the request has."""
        given = [name for name in ("input_ids", "history", "text") if getattr(body, name) is not None]
        if len(given) != 1:
            names = f"{' and '.join(given)} are" if given else "no prompt is"
            raise BadRequest(f"{names} given: {_ONE_OF}", given[-1] if given else "input_ids")
        most = self.max_prompt_tokens(limits)
        if body.history is not None:
            prompt = self._from_history(item_ids(body.history), most)
        elif body.text is not None:
            return _Prompt(self.texts.tokens(body.text, most))
        else:
            ids = cast("list[int]", body.input_ids)
            check_length(len(ids), given[0], most)
            return _Prompt(self._checked(ids))
        check_length(len(prompt.tokens), given[0], most)
        return prompt

    def filter(self, body: GenerateRequest) -> FilterSpec:
        """The item filter; the history's items are denied where the request wants that."""
        filters = body.filters or Filters()
        deny = item_ids(filters.deny or [])
        allow = None if filters.allow is None else item_ids(filters.allow)
        if filters.exclude_history:
            if body.history is None:
                raise BadRequest(
                    "exclude_history needs history: send it, or name the items in filters.deny",
                    "filters.exclude_history",
                )
            deny += item_ids(body.history)
        return resolve_items(self.catalog, allow, deny)

    def _from_history(self, history: list[str], most: int) -> _Prompt:
        leaves = self.catalog.leaves_of_items(history)
        unknown = np.flatnonzero(leaves < 0)
        if unknown.size:
            first = int(unknown[0])
            raise BadRequest(
                f"history[{first}] is {shorten(history[first])}, which this catalog does not hold "
                f"({unknown.size} unknown in all): leave it out",
                "history",
            )
        try:
            tokens, dropped = self.catalog.prompt_tokens(leaves.tolist(), most)
        except CatalogError as error:
            raise BadRequest(str(error), "history") from None
        return _Prompt(np.array(tokens, np.int32), dropped)

    def _checked(self, ids: list[int]) -> NDArray[np.int32]:
        tokens = np.array(ids, np.int32)
        wrong = np.flatnonzero(tokens >= self.vocab_size)
        if wrong.size:
            first = int(wrong[0])
            raise BadRequest(
                f"input_ids[{first}] is {ids[first]}, the vocabulary ends at {self.vocab_size - 1}: "
                "correct it",
                "input_ids",
            )
        return tokens


def item_ids(items: Sequence[int | str]) -> list[str]:
    """Item ids as text, the form in which the catalog knows them."""
    return [item if type(item) is str else str(item) for item in items]
