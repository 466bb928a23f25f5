"""A small catalog, its tokenizer, a dispatcher that answers from memory, and the server on top."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
import pytest
from made_catalogs import build_from_arrays
from made_templates import make_templates, with_templates
from starlette.applications import Starlette
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from router.http import HttpSettings, make_app
from router.job import Flush, Job, Outcome, Traced, WorkerState
from router.query.models import Model, Models
from xgr_runtime.catalog import Catalog, Catalogs, CatalogView
from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.errors import BadRequest, Cancelled, DuplicateRequest, NotFound
from xgr_runtime.prompts import Prompts
from xgr_runtime.trace.chrome import ProcessSpans
from xgr_runtime.trace.timeline import Timeline
from xgr_runtime.wire.messages import Limits, Load, ModelIdentity, Role, Timing, WorkerHello

CODES, DEPTH, ITEMS = 8, 3, 40
VOCAB = 3 + DEPTH * CODES
TIMING = Timing(queue=0.001, prefill=0.002, transfer=0.003, decode=0.004, forward=0.0025)
MODEL = ModelIdentity("00ff", "float32", 2, 1, 8, 16, VOCAB, 1)


def make_tokenizer() -> Tokenizer:
    names = ["<pad>", "<bos>", "<eos>"] + [f"<{level}_{code}>" for level in "abc" for code in range(CODES)]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split(Regex("<[^<>]+>"), "isolated")
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return tokenizer


def make_catalog() -> Catalog:
    """Items "0" to "39"; 38 and 39 share the SIDs of 0 and 1."""
    rng = np.random.default_rng(7)
    flat = rng.choice(CODES**DEPTH, ITEMS - 2, replace=False)
    codes = np.stack([flat // CODES**2, flat // CODES % CODES, flat % CODES], axis=1)
    sids = codes + 3 + np.arange(DEPTH) * CODES
    sids = np.concatenate([sids, sids[:2]])
    made = build_from_arrays([str(i) for i in range(ITEMS)], sids, vocab_size=VOCAB)
    return with_templates(made, make_templates())


def worker(role: Role, *, counters: dict[str, float] | None = None) -> WorkerState:
    load = Load(1, 12, 5, 100, 3, 1, 64, counters or {"tokens": 7.0})
    limits = Limits(64, 32 if role == "decode" else 0)
    hello = WorkerHello(1, role, f"{role}-0", 5, MODEL, "", ["v"], limits, load)
    return WorkerState(f"ipc:///{role}", role, True, True, "", hello, 1)


@dataclass
class FakeDispatch:
    """Scores leaf i with -(i + 1) / 8; raises or hangs where a test asks for it."""

    catalog: Catalog
    error: BaseException | None = None
    pair: Limits | None = field(default_factory=lambda: Limits(64, 32))
    states: list[WorkerState] = field(default_factory=lambda: [worker("prefill"), worker("decode")])
    fresh: list[WorkerState] = field(default_factory=list)  # what a refresh finds
    discovery_problem: str = ""
    draining: bool = False
    hang: bool = False
    ceiling: float | None = None  # that searches tell
    jobs: list[Job] = field(default_factory=list)
    flushes: list[Flush] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    tasks: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)

    async def generate(self, job: Job) -> Outcome:
        if job.rid in self.tasks:
            raise DuplicateRequest(f"rid {job.rid} is live", "rid")
        self.jobs.append(job)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if self.hang:
            await self._hang(job.rid)
        return self.outcome(job)

    async def _hang(self, rid: str) -> None:
        self.tasks[rid] = asyncio.get_running_loop().create_future()
        try:
            await self.tasks[rid]
        except asyncio.CancelledError:
            self.cancelled.append(rid)
            raise
        finally:
            del self.tasks[rid]

    def outcome(self, job: Job) -> Outcome:
        live = np.arange(self.catalog.leaves, dtype=np.int32) if job.allow is None else job.allow
        if job.where and job.filter.live is not None:
            live = live[job.filter.live.leaves.holds(live)]
        leaves = live[~np.isin(live, job.deny)][: job.beams].astype(np.int32)
        if job.candidates is not None:
            leaves = job.candidates.leaves
        scores = (-(leaves + 1) / 8).astype(np.float32)
        return Outcome(leaves, scores, TIMING, 1, len(job.tokens) - 1, self.ceiling)

    async def flush(self) -> list[Flush]:
        await asyncio.sleep(0)
        return self.flushes

    def abort(self, rid: str) -> bool:
        task = self.tasks.get(rid)
        if task is not None:
            task.set_exception(Cancelled("aborted"))
        return task is not None

    async def refresh(self) -> None:
        await asyncio.sleep(0)
        self.states = self.fresh or self.states

    def workers(self) -> list[WorkerState]:
        return self.states

    def add_worker(self, named: WorkerAddress) -> WorkerState:
        if named.address == "refused":
            raise BadRequest("refused: an address starts with ipc:// or tcp://", "address")
        self.states.append(WorkerState(named.address, named.role, False, False, "not yet", None, 0))
        return self.states[-1]

    def remove_worker(self, name: str) -> WorkerState:
        for state in self.states:
            if name in (state.address, state.hello and state.hello.worker):
                return replace(state, leaving=True)
        raise NotFound(f"no worker is {name}", "name")

    def limits(self) -> Limits | None:
        return self.pair

    @property
    def live(self) -> int:
        return len(self.tasks)

    async def trace(self, seconds: float) -> Traced:
        spans = self.timeline.since(time.monotonic() - seconds)
        return Traced([ProcessSpans("router", "router", spans)], {"ipc:///x": "it is gone"}, 0.0)


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return make_catalog()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture
def dispatch(catalog: Catalog) -> FakeDispatch:
    return FakeDispatch(catalog)


@pytest.fixture
def settings() -> HttpSettings:
    return HttpSettings(
        version="0.1.0",
        max_prompt_tokens=30,
        max_beam_width=20,
        default_beam_width=10,
        max_body_bytes=4096,
    )


class Server:
    """The application under test, and requests to it without sockets."""

    def __init__(
        self, dispatch: FakeDispatch, catalog: Catalog, tokenizer: Tokenizer, settings: HttpSettings
    ) -> None:
        self.dispatch, self.catalog, self.tokenizer, self.settings = dispatch, catalog, tokenizer, settings
        self.prompts = Prompts.read(tokenizer, None)
        self.app = self.made()

    def made(self) -> Starlette:
        self.catalogs = Catalogs(CatalogView(self.catalog))
        return make_app(self.dispatch, Models([self.model()]), self.settings)

    def model(self, name: str = "tiny", catalogs: Catalogs | None = None) -> Model:
        size, limits = self.catalog.vocab_size, self.dispatch.limits
        return Model(name, name, self.tokenizer, self.prompts, size, catalogs or self.catalogs, limits)

    def serve(self, *models: Model) -> None:
        """Starts over with other models."""
        self.app = make_app(self.dispatch, Models(models), self.settings)

    def set(self, **changes: Any) -> None:
        """Starts over with other settings."""
        self.settings = replace(self.settings, **changes)
        self.app = self.made()

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def exchange() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://xgr") as client:
                return await client.request(method, path, **request)

        return asyncio.run(exchange())

    def get(self, path: str, **request: Any) -> httpx.Response:
        return self.send("GET", path, **request)

    def generate(self, **body: object) -> httpx.Response:
        return self.send("POST", "/generate", json=body)

    def scope(self, path: str = "/generate") -> dict[str, Any]:
        """Of a POST, for tests that speak ASGI themselves."""
        return {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "scheme": "http",
            "server": ("xgr", 80),
        }


@pytest.fixture
def server(dispatch: FakeDispatch, catalog: Catalog, tokenizer: Tokenizer, settings: HttpSettings) -> Server:
    return Server(dispatch, catalog, tokenizer, settings)
