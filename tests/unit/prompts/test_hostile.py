"""Chat templates that would take all time or memory end in an error, soon; harmless ones render."""
# ruff: noqa: E501  a template is on one line

from __future__ import annotations

import time
from typing import Any

import pytest

from xgr_runtime.errors import CatalogError
from xgr_runtime.prompts.jinja import TemplateFailure, compiled

MESSAGES = [{"role": "user", "content": "hello world " * 10}]
SECONDS = 0.25  # of this thread; alone on a machine each needs less than 0.1

NESTED = "{% for a in range(100000) %}" * 3 + "x" + "{% endfor %}" * 3
GROWING = (
    "{%% set ns = namespace(s=%s) %%}{%% for i in range(60) %%}{%% set ns.s = %s %%}{%% endfor %%}{{ ns.s }}"
)
HOSTILE = {
    "nested-loops": NESTED,
    "loops-in-a-call": "{% macro w() %}{{ caller() }}{% endmacro %}{% call w() %}" + NESTED + "{% endcall %}",
    "loop-conditions": "{% for a in range(100000) %}{% for b in range(100000) if b < 0 %}{% endfor %}{% endfor %}",
    "macro-recursion": "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
    "loop-recursion": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "block-recursion": "{% block a %}{{ self.a() }}{% endblock %}",
    "times": "{{ 'a' * 10**9 }}",
    "times-list": "{{ [1] * 10**9 }}",
    "plus-doubles": GROWING % ("'aaaaaaaa'", "ns.s + ns.s"),
    "tilde-doubles": GROWING % ("'aaaaaaaa'", "ns.s ~ ns.s"),
    "lists-double": GROWING % ("[1]", "ns.s + ns.s"),
    "numbers-square": GROWING % ("10", "ns.s * ns.s"),
    "blocks-double": "{% set x = 'a' * 1000 %}"
    + "{% set x %}{{ x }}{{ x }}{{ x }}{{ x }}{% endset %}" * 20
    + "{{ x }}",
    "output": "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
    "output-of-a-macro": "{% macro m(x) %}"
    + "{% for i in range(100000) %}{{ x }}{% endfor %}{% endmacro %}{{ m('a' * 1000000) }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ '1'.zfill(1000000000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent-star": "{{ '%*d' % (1000000000, 1) }}",
    "percent-filter": "{{ '%1000000000d'|format(1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format-nested": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "join": "{{ ('b' * 100000).join('a' * 100000) }}",
    "join-filter": "{{ ('a' * 60000)|list|join('b' * 100000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace-nothing": "{{ ('a' * 1000000).replace('', 'bbbbbb') }}",
    "replace-filter": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "indent": "{{ ('\\n' * 60000)|indent(100000) }}",
    "expandtabs": "{{ ('\\t' * 100000).expandtabs(100000) }}",
    "translate": "{{ 'aaaa'.translate({97: 'b' * 1000000}) }}",
    "split": "{{ ('a ' * 500000).split() }}",
    "range": "{{ range(10**9)|list }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "slice": "{{ [1]|slice(1000000000)|list }}",
    "sum-of-lists": "{{ ([[1] * 1000] * 15)|sum(start=[])|length }}",
    "laughs": "{% set a = ['ha'] %}" + "{% set a = [a, a, a, a] %}" * 40 + "{{ a }}",
    "laughs-json": "{% set a = ['ha'] %}" + "{% set a = [a, a, a, a] %}" * 40 + "{{ a|tojson }}",
    "laughs-compared": "{% set a = {} %}" + "{% set a = {'a': a, 'b': a} %}" * 40 + "{{ a == 1 }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "statements": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "nots": "{{ " + "not " * 9000 + "1 }}",
    "filters": "{{ 1" + "|string" * 4900 + " }}",
    "megabytes": "x" * (3 << 20),
    "words": "{{ a }}" * 30000,
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class-by-key": "{{ ''['__class__'] }}",
    "class-by-filter": "{{ ''|attr('__class__') }}",
    "class-by-map": "{{ [messages]|map(attribute='__class__')|list }}",
    "class-by-format": "{{ '{0.__class__}'.format('') }}",
    "globals": "{{ cycler.__init__.__globals__.os }}",
    "mutation": "{{ messages.append(1) }}",
    "names": "{% set ns = namespace() %}{% set ns.__class__ = 2 %}",
    "include": "{% include 'x' %}",
    "import": "{% import 'os' as os %}",
    "by-itself": "{{ raise_exception('no system message, please') }}",
    "undefined": "{{ a.b.c }}",
    "division": "{{ 1 / 0 }}",
    "unclosed": "{% if messages %}",
    "left-out": "{{ 'a'|urlize }}",
}


@pytest.mark.parametrize(
    "source",
    [
        HOSTILE["macro-recursion"],
        "{% macro a() %}{{ caller() }}{% call a() %}x{% endcall %}{% endmacro %}{% call a() %}y{% endcall %}",
        "{% macro a(f) %}{{ f(f) }}{% endmacro %}{{ a(a) }}",
        "{% macro a() %}{{ [1]|map('string')|list }}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        HOSTILE["loop-recursion"],
        "{% for a in [1] recursive %}{% for b in [1] recursive %}{{ loop([1]) }}{% endfor %}{% endfor %}",
        HOSTILE["block-recursion"],
    ],
)
def test_what_calls_itself_ends_before_python_does(source: str) -> None:
    """There a finalizer that Python happens to run ends the process: it has no room for it."""
    with pytest.raises(TemplateFailure, match="40 deep"):
        compiled(source).render({})
    assert compiled("{% macro a(n) %}{{ n }}{{ a(n - 1) if n }}{% endmacro %}{{ a(9) }}").render({}) == (
        "9876543210"
    )


def test_lists_hold_each_other_so_deep_only() -> None:
    source = "{%% set ns = namespace(a=[]) %%}{%% for i in range(%d) %%}{%% set ns.a = [ns.a] %%}{%% endfor %%}{{ ns.a }}"
    assert compiled(source % 50).render({}) == "[" * 51 + "]" * 51
    with pytest.raises(TemplateFailure, match="100 deep"):
        compiled(source % 2000).render({})


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_ends_in_an_error_soon(source: str) -> None:
    compiled("warm")
    before = time.thread_time()
    with pytest.raises((CatalogError, TemplateFailure)) as raised:
        compiled(source).render({"messages": MESSAGES})
    assert time.thread_time() - before < SECONDS
    assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{% for m in messages %}\n  {%- if loop.first %}A{% endif %}{{ m.content|trim }}{% endfor %}",
            "A" + MESSAGES[0]["content"].strip(),
        ),
        ("{% generation %}a{% set b = 1 %}{% endgeneration %}{{ b }}", "a"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
        ),
        ("{{ {'ü': [1, '<']}|tojson }}", '{"ü": [1, "<"]}'),
        ("{{ {'b': 1, 'a': 2}|tojson(indent=1, sort_keys=True) }}", '{\n "a": 2,\n "b": 1\n}'),
        (
            "{{ 'a' ~ 1 ~ none ~ [1] }}|{{ 'a' + 'b' }}|{{ 7 // 2 }}|{{ 2 ** 5 }}|{{ '%03d' % 7 }}",
            "a1None[1]|ab|3|32|007",
        ),
        ("{{ '{:>4}|{a}'.format(1, a='b') }}", "   1|b"),
        ("{% for a, b in [(1, 2), (3, 4)] if a > 1 %}{{ a }}{{ b }}{{ loop.length }}{% endfor %}", "341"),
        (
            "{% macro m(a, b='x') %}[{{ a }}{{ b }}{{ caller() if caller }}]{% endmacro %}{{ m(1) }}{% call m(2) %}c{% endcall %}",
            "[1x][2xc]",
        ),
        (
            "{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
            "4",
        ),
        ("{{ messages[0]['content'].split(' ')[-2] }}{{ messages[::-1][0].role }}", "worlduser"),
        ("{{ strftime_now('%Y')|length }}{{ undefined_name }}{{ dict(a=1).a }}", "41"),
        ("{% filter upper %}a{% endfilter %}{% set x %}b{% endset %}{{ x }}", "Ab"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ [3, 1]|sort|join(',') }}{{ [1, 2]|sum }}{{ 'a b'|title }}{{ 5|string|length }}", "1,33A B1"),
    ],
)
def test_harmless_ones_render_as_the_library_renders_them(source: str, text: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    values: dict[str, Any] = {"messages": MESSAGES, "tools": None, "documents": None}
    assert compiled(source).render(values) == text
    theirs = render_jinja_template([MESSAGES], chat_template=source)[0]
    assert theirs == [text]


def test_a_long_conversation_is_within_bounds() -> None:
    turns = [{"role": "user", "content": "<a_1><b_2><c_3> and what I said of it\n" * 8}] * 512
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content|trim }}{% endfor %}"
    assert len(compiled(source).render({"messages": turns})) > 150_000


def test_every_rendering_has_its_own_budget() -> None:
    source = "{% for i in range(2000) %}{{ i }}{% endfor %}"
    assert len({compiled(source).render({}) for _ in range(60)}) == 1
