"""A catalog's templates of each kind, for its tests over HTTP."""

from __future__ import annotations

from dataclasses import replace

from xgr_runtime.catalog import Catalog, PromptTemplate
from xgr_runtime.catalog.template import MessagesTemplate, Template, Templates, TextTemplate

# Each message between <bos> and <eos>, then what the request adds.
CHAT = (
    "{% for m in messages %}<bos>{{ m.content }}<eos>{% endfor %}{{ (more or '') }}"
    "{% if messages[0].role == 'nobody' %}{{ raise_exception('nobody may speak') }}{% endif %}"
)


def with_templates(catalog: Catalog, templates: Templates) -> Catalog:
    """The same items and SIDs, under other templates."""
    return Catalog.from_content(replace(catalog.content, templates=templates), catalog.vocab_size)


def make_templates() -> Templates:
    """`default` is of ids, `story` has variables, `two` two histories, `chat` is for a request's messages."""
    named: dict[str, Template] = {
        "default": PromptTemplate(prefix=(1,), max_history_items=8),
        "story": TextTemplate("{profile}{history}{end}", separator="<eos>", defaults={"end": ""}),
        "two": TextTemplate("{history.seen}<eos>{history.bought}", empty_history="<pad>"),
        "chat": MessagesTemplate(chat_template=CHAT, generation_prefix="<a_7>"),
    }
    return Templates(named)
