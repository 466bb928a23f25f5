"""The deployment under load, over HTTP: what it says of itself, and one request.

aiohttp, because the client shares the machine with what it measures: a request and its answer take 0.2 ms of
processor time, where httpx needs 2; parsing by hand would save 0.1 more.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from xgr_runtime.errors import ConfigError
from xgr_runtime.wire.answers import ErrorBody, ModelInfo, ServerInfo, WorkerList, WorkerStatus

if TYPE_CHECKING:
    import aiohttp

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.bench.traffic import Call

T = TypeVar("T")
SERVER_TIMEOUT = 30.0  # seconds; the default deadline of a deployment
PATIENCE = 10.0  # seconds beyond a request's deadline before the client gives up


def need_extra(package: str) -> Any:
    """A package of the extra `bench`. Raises ConfigError with the command that installs it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{error}: `xgr bench` needs pip install 'xgr-runtime[bench]'") from None


class Target:
    """An HTTP session; use it in an `async with` block."""

    def __init__(self, url: str, api_key: str | None, timeout_ms: int | None) -> None:
        self.url = url.rstrip("/")
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._aiohttp = need_extra("aiohttp")
        deadline = timeout_ms / 1e3 if timeout_ms else SERVER_TIMEOUT
        self._options: dict[str, Any] = {
            "headers": headers,
            "timeout": self._aiohttp.ClientTimeout(total=deadline + PATIENCE),
        }
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        # No bound on connections: a client that queues would hide what it is there to see.
        connector = self._aiohttp.TCPConnector(limit=0)
        self._http = self._aiohttp.ClientSession(connector=connector, **self._options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def send(self, call: Call) -> tuple[str, bytes]:
        """The status as text, or what happened instead; and the body of the answer."""
        try:
            async with self._http.post(f"{self.url}/generate", data=call.body) as response:
                return str(response.status), await response.read()
        except TimeoutError:
            return "timeout", b""
        except (self._aiohttp.ClientError, OSError):
            return "connection", b""

    async def info(self) -> ServerInfo:
        """Limits and state. Raises ConfigError where no deployment answers."""
        return await self._get("/server_info", ServerInfo)

    async def workers(self) -> list[WorkerStatus]:
        """As they say that they are now. Raises ConfigError."""
        return (await self._get("/workers?fresh=true", WorkerList)).workers

    async def check_catalog(self, catalog: Catalog) -> ModelInfo:
        """Raises ConfigError when the deployment serves another catalog: every answer would look wrong."""
        info = await self._get("/model_info", ModelInfo)
        if info.catalog_version != catalog.version:
            raise ConfigError(
                f"{self.url} serves catalog {info.catalog_version}, --catalog is {catalog.version}: "
                "give the catalog and the --model-path that it was started with"
            )
        return info

    async def drain(self) -> None:
        """Wait, for a while, until the deployment holds no request: the next point starts at rest."""
        for _ in range(int(SERVER_TIMEOUT / 0.1)):
            if (await self.info()).live_requests == 0:
                return
            await asyncio.sleep(0.1)

    async def _get(self, path: str, kind: type[T]) -> T:
        try:
            async with self._http.get(self.url + path) as response:
                status, body = response.status, await response.read()
        except (self._aiohttp.ClientError, OSError, ValueError):
            raise ConfigError(
                f"nothing answers at {self.url}: start `xgr serve`, or give its --url"
            ) from None
        if status in (401, 403):
            raise ConfigError(f"{self.url} wants {'its' if status == 403 else 'a'} key: set XGR_API_KEY")
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise ConfigError(
                f"{self.url}{path} answered {status}, not as `xgr serve` does: give the --url of a deployment"
            ) from None


def said(body: bytes) -> str:
    """The message of an error body; the beginning of anything else."""
    try:
        return msgspec.json.decode(body, type=ErrorBody).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return repr(body[:200])
