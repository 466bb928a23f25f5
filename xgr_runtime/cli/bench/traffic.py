"""What is asked: an endless, replayable stream of requests, made from a catalog and a seed."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_runtime.catalog.template import PromptTemplate
from xgr_runtime.cli.bench.sessions import Sessions
from xgr_runtime.errors import BadRequest, CatalogError, ConfigError
from xgr_runtime.prompts import Prompts
from xgr_runtime.prompts.windows import newest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.bench.settings import TrafficSettings

ENCODE = msgspec.json.Encoder().encode
UNLIMITED = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Call:
    """One request, ready to be sent: `body` is JSON."""

    prompt: list[int]
    width: int
    n: int
    body: bytes


def calls(
    catalog: Catalog,
    settings: TrafficSettings,
    most_tokens: int = UNLIMITED,
    prompts: Prompts | None = None,
) -> Iterator[Call]:
    """Requests without end. `most_tokens` is the longest prompt that the deployment takes.

    prompts: of the checkpoint, for histories by templates of text. Raises ConfigError at once for settings
    that fit neither the catalog nor the deployment.
    """
    if settings.kind == "histories":
        return _ask(_histories(catalog, settings, most_tokens, prompts), settings)
    made = {"random": _random, "sessions": _sessions}[settings.kind]
    return _ask(made(catalog, settings, most_tokens), settings)


def _around(catalog: Catalog) -> PromptTemplate:
    """What is put around made-up items: nothing where the catalog's template is of text."""
    default = catalog.templates.default
    return default if isinstance(default, PromptTemplate) else PromptTemplate()


def _ask(prompts: Iterator[list[int]], settings: TrafficSettings) -> Iterator[Call]:
    draw = np.random.default_rng([settings.seed, 2])
    mix = settings.widths
    for prompt in prompts:
        width = int(draw.choice(mix.widths, p=mix.shares))
        n = settings.n or width
        yield Call(prompt, width, n, ENCODE(_body(prompt, width, n, settings)))


def _body(prompt: list[int], width: int, n: int, settings: TrafficSettings) -> dict[str, Any]:
    body: dict[str, Any] = {"input_ids": prompt, "sampling_params": {"beam_width": width, "n": n}}
    if settings.timeout_ms is not None:
        body["timeout_ms"] = settings.timeout_ms
    if settings.priority is not None:
        body["priority"] = settings.priority
    return body


def _random(catalog: Catalog, settings: TrafficSettings, most_tokens: int) -> Iterator[list[int]]:
    """Random items between the template's prefix and suffix, cut to exactly as many tokens as asked for."""
    _check_length(settings.prompt_tokens, most_tokens)
    template = _around(catalog)
    suffix = list(template.suffix)
    fixed = len(template.prefix) + len(suffix)
    room = settings.prompt_tokens - fixed
    if room < 1:
        raise ConfigError(f"--prompt-tokens must be above {fixed}, which the catalog's template takes")
    draw = np.random.default_rng([settings.seed, 0])
    return (
        template.render(catalog.sids[draw.integers(0, catalog.leaves, room // catalog.depth + 1)])[
            : settings.prompt_tokens - len(suffix)
        ]
        + suffix
        for _ in itertools.count()
    )


def _sessions(catalog: Catalog, settings: TrafficSettings, most_tokens: int) -> Iterator[list[int]]:
    _check_length(settings.prompt_tokens, most_tokens)
    template, depth = _around(catalog), catalog.depth
    fixed, separator = len(template.prefix) + len(template.suffix), len(template.separator)
    items = (settings.prompt_tokens - fixed + separator) // (depth + separator)
    if items <= settings.new_items:
        raise ConfigError(f"--prompt-tokens {settings.prompt_tokens} holds {items} items: raise it")
    step = settings.window_step or 1
    shown = (newest(visit.history, items, step) for visit in Sessions(settings, catalog.leaves, items))
    return (template.render(catalog.sids[leaves]) for leaves in shown)


def _histories(
    catalog: Catalog, settings: TrafficSettings, most_tokens: int, prompts: Prompts | None
) -> Iterator[list[int]]:
    """Real histories in an order that the seed draws, again and again."""
    if settings.histories is None:
        raise ConfigError("--traffic histories needs --histories FILE")
    histories = _read_histories(settings.histories)
    order = np.random.default_rng([settings.seed, 0]).permutation(len(histories))
    return (
        prompt_of(catalog, histories[i], most_tokens, settings.histories, prompts)
        for i in itertools.cycle(order.tolist())
    )


def prompt_of(
    catalog: Catalog, history: list[Any], most_tokens: int, source: Path, prompts: Prompts | None = None
) -> list[int]:
    """The prompt of item ids, as the deployment would make it. Raises ConfigError for an unknown item."""
    leaves = catalog.leaves_of_items([str(item) for item in history])
    if (leaves < 0).any():
        unknown = history[int(np.flatnonzero(leaves < 0)[0])]
        raise ConfigError(f"{source}: item {unknown!r} is not in the catalog: give the one it belongs to")
    try:
        prompts = prompts or Prompts.read(None, None)
        tokens: list[int] = prompts.of_history(catalog, None, {"": leaves}, {}, most_tokens).tokens.tolist()
        return tokens
    except (BadRequest, CatalogError) as error:
        raise ConfigError(str(error)) from None


def _read_histories(path: Path) -> list[list[Any]]:
    try:
        rows = [json.loads(line)["history"] for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"--histories {path} is not JSON lines with a `history` of item ids: {error}"
        ) from None
    if not rows or not all(isinstance(row, list) and row for row in rows):
        raise ConfigError(f"--histories {path} has lines without items, or none at all")
    return rows


def _check_length(tokens: int, most: int) -> None:
    if tokens > most:
        raise ConfigError(f"--prompt-tokens is {tokens}, the deployment takes at most {most}: lower it")
