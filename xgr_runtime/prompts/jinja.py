"""Chat templates in Jinja's immutable sandbox, set up as `transformers` sets it up, and within bounds.

Jinja tells a sandbox of calls and operators. Turns of loops, joined texts and lists are told to it by what is
put into a template once it is parsed; filters and tests are wrapped.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from xgr_runtime.errors import CatalogError, XgrError
from xgr_runtime.prompts.bounds import (
    Budget,
    TooMuch,
    check_filter,
    check_format,
    check_method,
    check_operator,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jinja2.parser import Parser
    from jinja2.runtime import Context

MOST_SOURCE = 256 * 1024  # bytes of a template
MOST_WORDS = 6_000  # of its statements and expressions; those of real ones have one or two thousand
MOST_IN_ONE = 500  # words of one statement or expression
MOST_NESTED = 30  # brackets in brackets, or statements in statements
# Filters that no chat template needs and that take long, or give another text each time.
_LEFT_OUT = ("pprint", "urlize", "random", "wordwrap", "striptags", "xmlattr", "filesizeformat")
# Filters that no template can name, put into it.
_JOINED, _MADE, _COUNTED = "(joined)", "(made)", "(counted)"
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_BEGIN = frozenset(("if", "for", "macro", "call", "filter", "block", "generation"))
_BEGINNINGS = frozenset(("block_begin", "variable_begin"))


class TemplateFailure(XgrError):
    """A chat template ends in an error, by itself or at a bound of ours."""


class ChatTemplate:
    """One that is compiled."""

    def __init__(self, template: jinja2.Template, budget: Budget) -> None:
        self._template = template
        self._budget = budget

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises TemplateFailure."""
        self._budget.start()
        try:
            # Not `render`, which would rewrite the stack of an error, however deep it is.
            return self._budget.joined(self._parts(values))
        except Exception as error:
            said = str(error) or type(error).__name__
            raise TemplateFailure(f"the chat template fails: {said:.300}") from error

    def _parts(self, values: Mapping[str, Any]) -> Iterable[str]:
        context = self._template.new_context(dict(values))
        for part in self._template.root_render_func(context):
            self._budget.step()
            yield self._budget.made(part)


@lru_cache(64)
def compiled(source: str) -> ChatTemplate:
    """Raises CatalogError for one that is too large or no template."""
    if len(source.encode(errors="replace")) > MOST_SOURCE:
        raise CatalogError(f"the chat template has more than {MOST_SOURCE} bytes: shorten it")
    environment = _environment()
    environment.budget.start()
    try:
        _check_words(environment, source)
        return ChatTemplate(environment.from_string(source), environment.budget)
    except Exception as error:
        said = str(error) or type(error).__name__
        raise CatalogError(f"the chat template does not compile ({said:.300}): correct it") from error


def _check_words(environment: _Bounded, source: str) -> None:
    """So many words at most, and nothing nested deeper than Python takes. Raises TooMuch."""
    words = here = brackets = statements = 0
    before = ""
    for _, kind, text in environment.lex(source):
        if kind in ("whitespace", "data"):
            continue
        words, here = words + 1, 0 if kind in _BEGINNINGS else here + 1
        brackets += (text in _OPEN) - (text in _CLOSE)
        if before == "block_begin":
            statements += (text in _BEGIN) - (text.startswith("end") and text != "endset")
        before = kind
        if words > MOST_WORDS or here > MOST_IN_ONE:
            refuse(f"it has more than {MOST_WORDS} words, or {MOST_IN_ONE} in one statement")
        if max(brackets, statements) > MOST_NESTED:
            refuse(f"it nests brackets or statements more than {MOST_NESTED} deep")


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it is what stands in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(
            line
        )


class _Bounded(ImmutableSandboxedEnvironment):
    """A sandbox that counts, and where a walk over attributes ends at its first step."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        self.budget = Budget()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # it would compute again and again what a deep expression holds
            extensions=[_Generation, loopcontrols],
            finalize=self.budget.made,
        )
        self.filters["tojson"] = _to_json
        for name in _LEFT_OUT:
            del self.filters[name]
        self.filters = {name: self._filter(name, one) for name, one in self.filters.items()}
        self.filters |= {_JOINED: self._joined, _MADE: self.budget.made, _COUNTED: self._counted}
        self.tests = {name: self._test(one) for name, one in self.tests.items()}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": _now,
            "dict": _Dictionaries(),
            "namespace": _Names,
        }

    @property
    def turn(self) -> None:
        """Asked for in each turn of a loop."""
        self.budget.step()

    def _counted(self, value: Any) -> Any:
        """Of the condition of a loop."""
        self.budget.step()
        return value

    def _joined(self, *parts: Any) -> str:
        """In the place of `~`."""
        return self.budget.joined(parts)

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """The text of a macro or a block."""
        return self.budget.joined(parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template."""
        __self.budget.enter()
        try:
            check_method(__obj, args)
            return __self.budget.made(super().call(__context, __obj, *args, **kwargs))
        finally:
            __self.budget.leave()

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Every operator."""
        self.budget.step()
        check_operator(operator, left, right)
        return self.budget.made(super().call_binop(context, operator, left, right))

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:  # type: ignore[override]
        """An attribute that no template may see."""
        raise SecurityError(f"access to attribute {attribute!r:.40} of {type(obj).__name__!r} is unsafe")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, within bounds."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form = str(value.__self__)

        def bounded(*args: Any, **kwargs: Any) -> str:
            check_format(form)
            return wrapped(*args, **kwargs)

        return bounded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Watched().visit(super()._parse(source, name, filename))
        return tree

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            check_filter(name, args[skipped:], kwargs)
            return self.budget.made(function(*args, **kwargs))

        return bounded

    def _test(self, function: Any) -> Callable[..., Any]:
        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            return function(*args, **kwargs)

        return bounded


class _Watched(NodeTransformer):
    """Puts calls that count into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        turn = nodes.ExprStmt(nodes.EnvironmentAttribute("turn"))
        node.body.insert(0, turn.set_lineno(node.lineno))
        if node.test is not None:
            node.test = _filtered(_COUNTED, node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(_JOINED, *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(_MADE, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(_MADE, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(_MADE, node) if node.ctx == "load" else node


def _filtered(name: str, value: Any, *others: Any) -> nodes.Filter:
    made = nodes.Filter(value, name, [*others], [], None, None)
    made.set_lineno(value.lineno)
    return made


class _Dictionaries:
    """`dict` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Names(Namespace):
    """`namespace` that takes no names of the language's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace takes no attribute {name!r:.40}")
        super().__setitem__(name, value)


@lru_cache(1)
def _environment() -> _Bounded:
    return _Bounded()


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int) and indent > 16:
        raise TooMuch("tojson indents by more than 16 blanks: use less")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
