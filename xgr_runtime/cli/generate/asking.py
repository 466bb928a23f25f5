"""Asks so many lines at a time, each until it has an answer or an error that another try would not mend."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from xgr_runtime.cli.deployment import DeploymentError
from xgr_runtime.cli.generate.journal import LineAnswer
from xgr_runtime.client import failure, headers, may_use_proxy
from xgr_runtime.errors import MissingKey, NotFound, WrongKey, XgrError
from xgr_runtime.wire.answers import Answer, ErrorBody

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from xgr_runtime.cli.generate.journal import Journal
    from xgr_runtime.cli.generate.lines import Line, Lines
    from xgr_runtime.cli.generate.progress import LineProgress

TIMEOUT_MS = 3_600_000  # the longest deadline that a request may have
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # seconds between two tries at a line

_answers = msgspec.json.Decoder(Answer)
_errors = msgspec.json.Decoder(ErrorBody)


class Asker:
    """A run of requests over one connection pool."""

    def __init__(self, args: argparse.Namespace, journal: Journal, progress: LineProgress) -> None:
        self._args = args
        self._journal = journal
        self._progress = progress
        self._heard = time.monotonic()  # the last answer of any kind

    async def run(self, lines: Lines) -> None:
        """Ask whatever has no row yet. Raises DeploymentError once nothing has been answered for too long."""
        todo = lines.without(dict(self._journal.done))
        limits = httpx.Limits(max_connections=self._args.in_flight)
        async with httpx.AsyncClient(
            base_url=self._args.url,
            headers=headers(self._args.api_key, self._args.url),
            timeout=TIMEOUT_MS / 1000 + 60,
            limits=limits,
            trust_env=may_use_proxy(self._args.url),
        ) as http:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._args.in_flight):
                        group.create_task(self._work(http, todo))
            except* XgrError as several:
                raise several.exceptions[0] from None

    async def _work(self, http: httpx.AsyncClient, todo: Iterator[Line]) -> None:
        for line in todo:
            row = await self._row(http, line)
            self._journal.add(row)
            self._progress.one(bool(row.error))

    async def _row(self, http: httpx.AsyncClient, line: Line) -> LineAnswer:
        content, pause = self._content(line.body), FIRST_PAUSE
        while True:
            try:
                response = await http.post("/generate", content=content)
            except httpx.TransportError as error:
                problem, after = f"{type(error).__name__}: nothing answers at {self._args.url}", 0.0
            else:
                if response.is_success:
                    self._heard = time.monotonic()
                    return row_of(line, _answers.decode(response.content))
                refused = failure(response)
                problem = str(refused)
                if isinstance(refused, MissingKey | WrongKey | NotFound):  # no line is to blame
                    raise DeploymentError(f"{self._args.url} refused: {problem}")
                if not _retryable(response):
                    self._heard = time.monotonic()
                    return LineAnswer(line.number, line.kept, [], [], [], "", problem)
                after = _seconds(response.headers.get("retry-after", ""))
            self._check_patience(problem)
            self._progress.waits(problem)
            await asyncio.sleep(min(max(pause, after), LONGEST_PAUSE))
            pause *= 2

    def _content(self, body: Mapping[str, msgspec.Raw]) -> bytes:
        """The line's own fields before those of the command."""
        params: dict[str, Any] = {"beam_width": self._args.beam_width, "n": self._args.n}
        given = {name: value for name, value in params.items() if value is not None}
        own: dict[str, Any] = dict(body)
        if given:
            theirs = msgspec.json.decode(own.get("sampling_params", b"null")) or {}
            own["sampling_params"] = {**given, **theirs} if isinstance(theirs, dict) else theirs
        if not self._args.online:
            own = {"priority_class": "batch", **own}
        return msgspec.json.encode({"timeout_ms": TIMEOUT_MS, **own})

    def _check_patience(self, problem: str) -> None:
        if time.monotonic() - self._heard > self._args.patience:
            raise DeploymentError(
                f"nothing was answered for {self._args.patience} s ({problem}): see to the deployment, then "
                "run the same command again"
            )


def row_of(line: Line, answer: Answer) -> LineAnswer:
    """Items of all results in their order, each with what its SID scored."""
    items, scores, sids = [], [], []
    for result in answer.meta_info.beam_results:
        items += result.items
        scores += [result.meta_info.sequence_score] * len(result.items)
        sids += [result.output_ids] * len(result.items)
    return LineAnswer(line.number, line.kept, items, scores, sids, answer.meta_info.catalog_version)


def _retryable(response: httpx.Response) -> bool:
    """What a proxy says where the router is away is an error without our body."""
    try:
        return _errors.decode(response.content).retryable
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return response.status_code in (429, 502, 503, 504)


def _seconds(header: str) -> float:
    return float(header) if header.isdecimal() and len(header) < 6 else 0.0
