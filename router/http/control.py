"""All routes but /generate: probes, facts about the deployment, aborting, metrics."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.http.generate import checked_rid
from router.http.intake import Intake, probe
from router.http.metrics import CONTENT_TYPE, RequestMetrics
from router.http.probe import Probe
from router.http.schema import AbortRequest, RequestsQuery, TraceQuery
from router.http.server.inbound import Bodies, while_connected
from router.http.server.problems import decode, from_query
from router.http.server.recent import Recent
from router.job import Dispatch, WorkerState
from router.query.binding import bind
from router.query.models import Model, Models
from router.query.prompts import UNLIMITED
from router.workers.returns import seconds_to_a_pair, seconds_to_start
from xgr_runtime.errors import Draining, NotFound, NoWorkers, Overloaded
from xgr_runtime.trace.chrome import chrome_trace
from xgr_runtime.wire.answers import (
    Aborted,
    EndedRequests,
    Flushed,
    ModelCard,
    ModelInfo,
    ModelList,
    ServerInfo,
    Status,
    WorkerFlush,
)

_ABORT = msgspec.json.Decoder(AbortRequest)


class Control:
    """One method per route."""

    def __init__(
        self,
        dispatch: Dispatch,
        models: Models,
        intake: Intake,
        metrics: RequestMetrics,
        bodies: Bodies,
        recent: Recent,
    ) -> None:
        self.dispatch = dispatch
        self.models = models
        self.intake = intake
        self.settings = intake.settings
        self.metrics = metrics
        self.bodies = bodies
        self.recent = recent
        self.probe = Probe(self._small_request)
        self.started = int(time.time())
        self._under_way: set[str] = set()

    async def liveness(self, request: Request) -> Response:
        return as_json(Status())

    async def health(self, request: Request) -> Response:
        self._require_pair()
        return as_json(Status())

    async def readiness(self, request: Request) -> Response:
        if self.dispatch.draining:
            after = seconds_to_start(self.dispatch.workers())
            raise Draining("the router is stopping and takes no new requests", retry_after=after)
        return await self.health(request)

    async def health_generate(self, request: Request) -> Response:
        """Whoever asks while a probe is under way gets its answer: anybody may ask."""
        self._require_pair()
        deadline = time.monotonic() + 2 * self.settings.health_timeout  # the small request keeps its own
        await while_connected(request, self.probe.check(), deadline)
        return as_json(Status())

    async def _small_request(self) -> None:
        seconds = self.settings.health_timeout
        rid, deadline = f"health-{uuid.uuid4().hex}", time.monotonic() + seconds
        model = self.models.default
        with model.catalogs.lease() as lease:
            query = probe(rid, deadline, lease.view)
            job = bind(query, model, lease.view, self.intake.max_prompt_tokens(model.limits()))
            async with asyncio.timeout(seconds):
                await self.dispatch.generate(job)

    async def model_info(self, request: Request) -> Response:
        model = self.models.default
        catalog = model.catalogs.newest.catalog
        info = ModelInfo(
            model_path=model.path,
            served_model_name=model.name,
            is_generation=True,
            vocab_size=model.vocab_size,
            depth=catalog.depth,
            catalog_version=catalog.version,
            catalog_items=catalog.items,
            catalog_leaves=catalog.leaves,
        )
        return as_json(info)

    async def server_info(self, request: Request) -> Response:
        settings, model = self.settings, self.models.default
        limits = model.limits()
        width = self.intake.max_beam_width(limits)
        info = ServerInfo(
            version=settings.version,
            served_model_name=model.name,
            max_beam_width=width,
            default_beam_width=min(settings.default_beam_width, width),
            max_prompt_tokens=self._max_prompt_tokens(model),
            max_body_bytes=settings.max_body_bytes,
            timeout_ms=settings.timeout_ms,
            ready=limits is not None and not self.dispatch.draining,
            draining=self.dispatch.draining,
            live_requests=self.dispatch.live,
        )
        return as_json(info)

    async def list_models(self, request: Request) -> Response:
        cards = [ModelCard(model.name, self.started, self._max_prompt_tokens(model)) for model in self.models]
        return as_json(ModelList(cards))

    async def flush_cache(self, request: Request) -> Response:
        with self._alone("flush"):
            flushed = await self.dispatch.flush()
        found = [WorkerFlush(f.address, f.pages, f.problem) for f in flushed]
        problems = [f"{worker.address}: {worker.problem}" for worker in found if worker.problem]
        message = "; ".join(problems) or f"the caches of {len(found)} workers are empty"
        pages = sum(worker.flushed_pages for worker in found)
        return as_json(Flushed(not problems, pages, message, found))

    async def abort_request(self, request: Request) -> Response:
        async with self.bodies.read(request) as given:
            body = decode(_ABORT, given)
        checked_rid(body.rid)
        if not self.dispatch.abort(body.rid):
            raise NotFound(f"no live request has the rid {body.rid}", "rid")
        return as_json(Aborted(body.rid))

    async def trace(self, request: Request) -> Response:
        query = from_query(TraceQuery, request.query_params)
        with self._alone("trace"):
            traced = await self.dispatch.trace(query.seconds)
            # It may be long.
            body = await asyncio.to_thread(lambda: msgspec.json.encode(chrome_trace(*traced)))
        return Response(body, media_type="application/json")

    async def requests(self, request: Request) -> Response:
        query = from_query(RequestsQuery, request.query_params)
        return as_json(EndedRequests(self.recent.last(query.last)))

    async def scrape(self, request: Request) -> Response:
        return Response(self.metrics.render(), headers={"content-type": CONTENT_TYPE})

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """For what costs all workers something: one at a time. Raises `Overloaded` for the second."""
        if name in self._under_way:
            raise Overloaded(f"another {name} is under way: ask again once it is done")
        self._under_way.add(name)
        try:
            yield
        finally:
            self._under_way.discard(name)

    def _max_prompt_tokens(self, model: Model) -> int | None:
        most = self.intake.max_prompt_tokens(model.limits())
        return None if most == UNLIMITED else most

    def _require_pair(self) -> None:
        if self.dispatch.limits() is None:
            states = self.dispatch.workers()
            raise NoWorkers(no_pair(states), retry_after=seconds_to_a_pair(states))


def no_pair(states: list[WorkerState]) -> str:
    """Why no request can be served: worker by worker, and what sets those apart that could."""
    problems = [f"{state.address}: {state.problem}" for state in states if not state.usable]
    usable = [state.hello for state in states if state.usable and state.hello]
    for one, other in itertools.product(usable, usable):
        if one.role == "prefill" and other.role == "decode" and (name := one.model.difference(other.model)):
            values = [f"{hello.worker} has {getattr(hello.model, name)}" for hello in (one, other)]
            problems.append(f"they differ in {name}: {', '.join(values)}")
        if one.role == "prefill" and other.role == "decode" and other.memory not in (0, one.memory):
            problems.append(f"{other.worker} reads the memory of another prefill worker than {one.worker}")
    reason = f" ({'; '.join(problems)})" if problems else ""
    return f"no compatible pair of prefill and decode workers is ready{reason}"


def as_json(value: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
