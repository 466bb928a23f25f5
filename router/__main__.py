"""`python -m router`: open the HTTP port, connect the workers, serve until told to stop, then drain."""

import asyncio
import contextlib
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import uvicorn
import uvloop
from tokenizers import Tokenizer

from router.catalogs.begin import Beginning, begun
from router.dispatch.dispatcher import Dispatcher
from router.http import ConnectionLimits, HttpSettings, make_app, server_config
from router.http.memory import keep_large_apart
from router.query.models import Model, Models
from router.workers.following import check_named
from xgr_runtime.catalog import Catalogs
from xgr_runtime.checkpoint import described, not_applied, passed_over
from xgr_runtime.config import RouterConfig
from xgr_runtime.errors import ConfigError, ModelError
from xgr_runtime.process.lifecycle import Lifecycle, main
from xgr_runtime.prompts import Prompts
from xgr_runtime.tokenizer import read_tokenizer
from xgr_runtime.transport.addresses import check_host_names, is_loopback

log = logging.getLogger(__name__)

QUEUED = 1024  # connections that wait to be accepted
TURN_EVERY = 0.2  # seconds
SWITCH_EVERY = 0.0005  # seconds that a thread keeps the interpreter while another waits for it
FIRST_HELLOS = 1.0  # seconds, at most, that requests wait for at a start


def body(config: RouterConfig, lifecycle: Lifecycle) -> None:
    check_named(config)
    share_the_interpreter()
    with described(Path(config.model_path), config.base_model_path) as files:
        beginning = begun(config, files)
        _tell(files)
        tokenizer = _tokenizer(files, beginning.catalogs.newest.catalog.vocab_size)
        prompts = Prompts.read(tokenizer, files)
    prompts.check(beginning.catalogs.newest.catalog)
    beginning.hold_to(tokenizer, prompts)
    with (
        _listen(config.host, config.port) as http,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(config, lifecycle, beginning, prompts, tokenizer, http))


def _tell(folder: Path) -> None:
    """What the checkpoint's folder says or holds, and is no part of what is served. Raises `ModelError`."""
    if fields := not_applied(folder):
        log.warning("an exact search applies nothing of generation_config.json's %s", ", ".join(fields))
    for line in passed_over(folder):
        log.warning("%s", line)


def share_the_interpreter() -> None:
    """Let the event loop have its turn soon while threads work out long bodies."""
    keep_large_apart()
    sys.setswitchinterval(SWITCH_EVERY)
    # Its threads would be shared, and a short text wait for a long one.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


async def _serve(
    config: RouterConfig,
    lifecycle: Lifecycle,
    beginning: Beginning,
    prompts: Prompts,
    tokenizer: Tokenizer,
    http: socket.socket,
) -> None:
    catalogs = beginning.catalogs
    dispatcher = Dispatcher(config, catalogs)
    publisher = beginning.publisher(config, dispatcher)
    dispatcher.start()
    if publisher is not None:
        publisher.start()
    models = Models([_model(config, catalogs, prompts, tokenizer, dispatcher)])
    app = make_app(
        dispatcher,
        models,
        _settings(config, http.getsockname()[0]),
        publisher,
        beginning.store,
        publisher.figures if publisher is not None else None,
    )
    idle = math.ceil(config.keep_alive_timeout)
    server = _Server(
        server_config(app, ConnectionLimits(connections=config.max_connections, idle_seconds=idle))
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wake() -> None:
        loop.call_soon_threadsafe(stop.set)

    lifecycle.on_stop(wake)
    turning = asyncio.create_task(_take_turns(lifecycle))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_pair_or_stop(dispatcher, stop), FIRST_HELLOS)
    serving = asyncio.create_task(server.serve(sockets=[http]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    http.listen(QUEUED)  # asyncio listens for as many as it accepts at once
    lifecycle.ready({"port": http.getsockname()[1]})
    await stop.wait()
    if publisher is not None:
        publisher.drain()
    await dispatcher.drain()
    server.should_exit = True
    await serving
    if publisher is not None:
        await publisher.stop()
    await dispatcher.stop()
    turning.cancel()


async def _pair_or_stop(dispatcher: Dispatcher, stop: asyncio.Event) -> None:
    """Until a pair of workers is known: who asks before would be told that there is none, though all live."""
    while dispatcher.limits() is None and not stop.is_set():
        await asyncio.sleep(0.005)


async def _take_turns(lifecycle: Lifecycle) -> None:
    """Show that the loop is not stuck."""
    while True:
        lifecycle.turn()
        await asyncio.sleep(TURN_EVERY)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: SIGTERM means drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    """The HTTP port. Raises `ConfigError` naming what to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=QUEUED)
        # Connections inherit it; without it an answer waits 40 ms for the client's delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, UnicodeError) as error:  # the latter of a name with labels that none may have
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise ConfigError(
            f"cannot listen on {host}:{port} ({reason}): choose another --port or --host"
        ) from None


def _tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise ModelError(
            f"{folder} has no tokenizer: save the checkpoint's beside it, such as tokenizer.json"
        )
    beyond = tokenizer.get_vocab_size(with_added_tokens=True) - vocab_size
    if beyond > 0:
        log.warning(
            "the tokenizer has %d tokens more than the model's vocabulary of %d: texts with one are refused",
            beyond,
            vocab_size,
        )
    elif beyond < 0:
        log.info("the model's vocabulary of %d has %d tokens that the tokenizer lacks", vocab_size, -beyond)
    return tokenizer


def _model(
    config: RouterConfig,
    catalogs: Catalogs,
    prompts: Prompts,
    tokenizer: Tokenizer,
    dispatcher: Dispatcher,
) -> Model:
    name = config.served_model_name or Path(config.model_path).resolve().name
    vocab_size = catalogs.newest.catalog.vocab_size
    return Model(name, config.model_path, tokenizer, prompts, vocab_size, catalogs, dispatcher.limits)


def _settings(config: RouterConfig, address: str) -> HttpSettings:
    check_host_names(config.allowed_hosts)
    return HttpSettings(
        version=version("xgr-runtime"),
        api_key=config.api_key or None,
        admin_api_key=config.admin_api_key or None,
        guarded=is_loopback(address) and not config.api_key,
        allowed_hosts=config.allowed_hosts,
        timeout_ms=config.timeout_ms,
        max_body_bytes=config.max_body_bytes,
        max_beam_width=config.max_beam_width,
    )


if __name__ == "__main__":
    sys.exit(main(RouterConfig, body, "router"))
