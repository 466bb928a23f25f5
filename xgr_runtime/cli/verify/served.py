"""The deployment that is verified: one of our own on a free loopback port, or one that runs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import msgspec

from xgr_runtime.cli.verify.prompts import without
from xgr_runtime.client import XgrClient, read
from xgr_runtime.errors import ConfigError
from xgr_runtime.wire.answers import ModelInfo, ServerInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.verify.cases import Case
    from xgr_runtime.config import ServeConfig
    from xgr_runtime.wire.answers import Answer

T = TypeVar("T")
LOOPBACK = "127.0.0.1"
DEADLINE = 600_000  # milliseconds of a request: nobody waits for it but us
PATIENCE = 10.0  # seconds beyond that


@contextmanager
def started(config: ServeConfig, log_level: str) -> Iterator[XgrClient]:
    """A client of the deployment of `config`, on a free port of loopback; all of it is gone afterwards.

    Raises `StartupError` as `xgr serve` does.
    """
    from xgr_runtime.launcher.deployment import Deployment

    own = msgspec.structs.replace(config, host=LOOPBACK, port=0, log_level=log_level)
    with Deployment(own) as deployment, client(deployment.url, config.api_key or None) as ours:
        yield ours


def client(url: str, key: str | None) -> XgrClient:
    """For requests that may take as long as `DEADLINE`."""
    return XgrClient(url, key, timeout=DEADLINE / 1e3 + PATIENCE)


class Served:
    """A deployment that answers. Raises ConfigError where it serves something else than `catalog`."""

    def __init__(self, ours: XgrClient, catalog: Catalog, drop_unknown: bool) -> None:
        self._client, self._drop_unknown = ours, drop_unknown
        self._head = catalog.scoring.prompt_head
        self.url = str(ours.http.base_url)
        self.info = self._get("/server_info", ServerInfo)
        model = self._get("/model_info", ModelInfo)
        if model.catalog_version != catalog.version:
            raise ConfigError(
                f"{self.url} serves catalog {model.catalog_version}, the files here give {catalog.version}: "
                "name the files that it was started with, or restart it"
            )

    def dtype(self, admin_key: str | None) -> str:
        """That the model runs in, as the workers say, who may want a key of their own to be asked."""
        with client(self.url, admin_key) as asking:
            found = [worker.model.dtype for worker in asking.workers() if worker.model]
        return found[0] if found else ""

    def check_widths(self, cases: Sequence[Case]) -> None:
        """Raises ConfigError naming the case that is too wide for the deployment."""
        widest = max(cases, key=lambda case: case.width)
        if widest.width > self.info.max_beam_width:
            raise ConfigError(
                f"{widest.name} has {widest.width} beams, the deployment searches at most "
                f"{self.info.max_beam_width}: raise max_beam_width in serve.toml"
            )

    def ask(self, case: Case) -> Answer:
        """The case as a client would ask it. Raises the `RequestError` that the deployment names."""
        said = case.said
        named = {"template": said.template, "variables": said.variables}
        if case.source == "messages":
            kwargs = said.chat_template_kwargs
            return self._ask(case, messages=said.messages, chat_template_kwargs=kwargs, **named)
        if case.source == "history":
            unknown = "drop" if self._drop_unknown else None
            return self._ask(case, history=said.history, unknown_history=unknown, **named)
        if case.source == "prompt_text":
            return self._ask(case, text=said.prompt_text)
        return self.ask_ids(case)

    def ask_ids(self, case: Case) -> Answer:
        """The case by the token ids of its prompt, whose head the deployment adds: the search alone."""
        return self._ask(case, input_ids=without(case.said.prompt_ids or [], self._head))

    def _ask(self, case: Case, **request: Any) -> Answer:
        try:
            return self._client.generate(beam_width=case.width, timeout_ms=DEADLINE, **request)
        except httpx.TransportError as error:
            raise ConfigError(f"{self.url} does not answer any more ({error}): see its log") from None

    def _get(self, path: str, kind: type[T]) -> T:
        try:
            return read(self._client.http.get(path), kind)
        except (httpx.TransportError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"{self.url} does not answer as a deployment does ({error!s:.200}): "
                "start `xgr serve`, or correct --url"
            ) from None
