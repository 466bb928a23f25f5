"""Chat templates in Jinja's immutable sandbox, set up as `transformers` sets it up."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from xgr_runtime.errors import CatalogError, XgrError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import nodes
    from jinja2.parser import Parser

MOST_SOURCE = 256 * 1024  # bytes of a template


class TemplateFailure(XgrError):
    """A chat template ends in an error, by itself or at a bound of ours."""


class ChatTemplate:
    """One that is compiled."""

    def __init__(self, template: jinja2.Template) -> None:
        self._template = template

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises TemplateFailure."""
        try:
            return self._template.render(values)
        except Exception as error:
            raise TemplateFailure(f"the chat template fails: {error!s:.300}") from error


@lru_cache(64)
def compiled(source: str) -> ChatTemplate:
    """Raises CatalogError for one that is too large or no template."""
    if len(source.encode(errors="replace")) > MOST_SOURCE:
        raise CatalogError(f"the chat template has more than {MOST_SOURCE} bytes: shorten it")
    try:
        return ChatTemplate(_environment().from_string(source))
    except Exception as error:
        raise CatalogError(f"the chat template does not compile ({error!s:.300}): correct it") from error


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it is what stands in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(1)
def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return made


def _raise(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
