"""From a decoded request to a job: prompts, widths and filters, checked against catalog and limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from router.http.schema import MOST_PRIORITY, Filters, GenerateRequest, SamplingParams, refuse_sampling
from router.http.settings import HttpSettings
from router.job import Job
from xgr_runtime.catalog import Catalog, FilterSpec, resolve_items
from xgr_runtime.errors import BadRequest, CatalogError
from xgr_runtime.messages import Limits

UNLIMITED = (1 << 31) - 1
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
        self.tokenizer = tokenizer
        self.settings = settings
        self.vocab_size = settings.vocab_size or tokenizer.get_vocab_size()
        self.unknown_token = unknown_token(tokenizer)

    def ticket(self, body: GenerateRequest, rid: str, arrival: float, limits: Limits | None) -> Ticket:
        """The job of `body`, which arrived at `arrival` (monotonic). Raises `BadRequest` naming the field."""
        refuse_sampling(body, self.catalog.depth)
        params = body.sampling_params or SamplingParams()
        width, results = self.widths(params, limits)
        prompt = self.prompt(body, limits)
        wanted = self.filter(body)
        timeout = (body.timeout_ms or self.settings.timeout_ms) / 1000
        job = Job(
            rid=rid,
            tokens=prompt.tokens,
            width=width,
            results=results,
            score_mode=params.score_mode,
            catalog=self.catalog.version,
            allow=wanted.allow_leaves,
            deny=wanted.deny_leaves,
            deadline=arrival + timeout,
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
            prompt = _Prompt(np.array(self._encode(body.text, most), np.int32))
        else:
            ids = cast("list[int]", body.input_ids)
            self._check_length(len(ids), given[0], most)
            return _Prompt(self._checked(ids))
        self._check_length(len(prompt.tokens), given[0], most)
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

    def _encode(self, text: str, most: int) -> list[int]:
        """Token ids of `text`, as the tokenizer makes them; checked before they become Python's."""
        if not text:
            raise BadRequest("text is empty: send at least one token", "text")
        (encoding,) = self.tokenizer.encode_batch([text])  # unlike `encode` it lets other threads run
        self._check_length(len(encoding), "text", most)
        if self.unknown_token is not None and self.unknown_token[0] in encoding.ids:
            self._refuse_unknown(text, encoding.ids, encoding.offsets, *self.unknown_token)
        return list(encoding.ids)

    def _refuse_unknown(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], unknown: int, spelling: str
    ) -> None:
        for token, (first, last) in zip(ids, offsets, strict=True):
            if token == unknown and text[first:last] != spelling:
                raise BadRequest(
                    f"text holds {shorten(text[first:last])} at character {first}, "
                    "which the tokenizer does not know: correct it",
                    "text",
                )

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

    def _check_length(self, count: int, name: str, most: int) -> None:
        if not count:
            raise BadRequest(f"{name} gives an empty prompt: it needs at least one token", name)
        if count > most:
            raise BadRequest(
                f"{name} gives a prompt of {count} tokens, the limit is {most}: shorten it (the limit "
                "comes from the model's positions, --kv-bytes and --max-prompt-tokens)",
                name,
            )


def item_ids(items: Sequence[int | str]) -> list[str]:
    """Item ids as text, the form in which the catalog knows them."""
    return [item if type(item) is str else str(item) for item in items]


def shorten(text: str) -> str:
    """`text` quoted, at most about 80 characters of it."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def unknown_token(tokenizer: Tokenizer) -> tuple[int, str] | None:
    """Id and spelling of the token that stands for whatever the tokenizer does not know."""
    spelling = getattr(tokenizer.model, "unk_token", None)
    token = tokenizer.token_to_id(spelling) if spelling else None
    return None if token is None or spelling is None else (token, spelling)
