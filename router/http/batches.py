"""Several prompts in one body: each is a request of its own, and all are answered or none."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import asdict

from router.http.schema import GenerateRequest, Rid, SamplingParams, TokenId, Unread, null
from router.http.server.problems import Body, decode, decode_part
from xgr_runtime.errors import BadRequest

T = TypeVar("T")

MOST_PROMPTS = 64  # of one body
MOST_BODY = 1 << 20  # bytes of a body with several prompts: it is decoded at once
BATCHED = ("input_ids", "text", "rid", "sampling_params")  # fields that SGLang takes lists of

_TEXT = msgspec.json.Decoder(str | None)
_PARTS = msgspec.json.Decoder(list[msgspec.Raw])
_TEXTS = msgspec.json.Decoder(list[str])
_TOKENS = msgspec.json.Decoder(list[TokenId])
_TOKEN_LISTS = msgspec.json.Decoder(list[list[TokenId]])
_RIDS = msgspec.json.Decoder(list[Rid])
_SAMPLING = msgspec.json.Decoder(list[SamplingParams])
_ONE_SAMPLING = msgspec.json.Decoder(SamplingParams | None)


class BatchRequest(GenerateRequest, frozen=True, forbid_unknown_fields=True):
    """A request whose `input_ids` or `text` is a list of prompts; the fields of `BATCHED` are undecoded."""

    input_ids: Unread = msgspec.field(default_factory=null)  # type: ignore[assignment]
    text: Unread = msgspec.field(default_factory=null)  # type: ignore[assignment]
    rid: Unread = msgspec.field(default_factory=null)  # type: ignore[assignment]
    sampling_params: Unread = msgspec.field(default_factory=null)  # type: ignore[assignment]


_BATCH = msgspec.json.Decoder(BatchRequest)


def batch_in(body: Body, error: BadRequest) -> list[GenerateRequest]:
    """The requests of a body that `error` says is not one. Raises `BadRequest`."""
    field = (error.param or "").partition("[")[0]
    return batch_of(body) if field in BATCHED and len(body) <= MOST_BODY else []


def batch_of(body: Body) -> list[GenerateRequest]:
    """The requests of a body as SGLang takes batches; none where it has no list of prompts.

    Raises `BadRequest` naming the field.
    """
    given = decode(_BATCH, body)
    undecoded: dict[str, Any] = {name: getattr(given, name) for name in BATCHED}
    name = "text" if _is_list(undecoded["text"]) else "input_ids"
    prompts = prompts_of(undecoded[name], name)
    if not prompts or not isinstance(prompts[0], str if name == "text" else list):
        return []
    for other in ("text", "input_ids"):
        if other != name and bytes(undecoded[other]) != b"null":
            raise BadRequest(f"{name} and {other} are given: send one of them", other)
    if given.stream:
        raise BadRequest("stream is for one prompt: leave it out, or send one", "stream")
    rids, sampling = undecoded["rid"], undecoded["sampling_params"]
    if not _is_list(rids) and bytes(rids) != b"null":
        raise BadRequest("rid is one for several prompts: send a list, one for each", "rid")
    own: list[dict[str, Any]] = [{name: prompt} for prompt in prompts]
    if _is_list(rids):
        _give_each(own, "rid", rids, _RIDS)
    if _is_list(sampling):
        _give_each(own, "sampling_params", sampling, _SAMPLING)
    shared = asdict(given) | dict.fromkeys(BATCHED)
    if not _is_list(sampling):
        shared["sampling_params"] = decode_part(_ONE_SAMPLING, sampling, "sampling_params")
    return [GenerateRequest(**(shared | fields)) for fields in own]


def prompts_of(raw: msgspec.Raw, name: str) -> list[str] | list[list[int]]:
    """One prompt or several, text or token ids: only the kind that the field begins with is decoded.

    Null is none. Raises `BadRequest`.
    """
    begins = bytes(raw)[:1]
    if begins != b"[":
        text = decode_part(_TEXT, raw, name)
        return [] if text is None else [text]
    first = bytes(raw)[1:].lstrip()[:1]
    if first == b"]":
        raise BadRequest(f"{name} is an empty list: send text, token ids, or a list of either", name)
    if first not in (b'"', b"["):
        return [decode_part(_TOKENS, raw, name)]
    _count(raw, name)
    if first == b'"':
        return decode_part(_TEXTS, raw, name)
    return decode_part(_TOKEN_LISTS, raw, name)


def _is_list(raw: msgspec.Raw) -> bool:
    return bytes(raw)[:1] == b"["


def _give_each(
    own: list[dict[str, Any]], name: str, raw: msgspec.Raw, decoder: msgspec.json.Decoder[list[T]]
) -> None:
    """One entry of the field `name` to each of the prompts."""
    if (count := _count(raw, name)) != len(own):
        raise BadRequest(f"{name} has {count} entries for {len(own)} prompts: send one for each", name)
    entries: list[T] = decode_part(decoder, raw, name)
    for fields, entry in zip(own, entries, strict=True):
        fields[name] = entry


def _count(raw: msgspec.Raw, name: str) -> int:
    """Entries of a list, before anything is made of them."""
    count = len(decode_part(_PARTS, raw, name))
    if count > MOST_PROMPTS:
        raise BadRequest(
            f"{name} has {count} entries, the limit is {MOST_PROMPTS}: send several requests", name
        )
    return count


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all return; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
