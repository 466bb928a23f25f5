"""Content in parts, as clients of chat endpoints send it: who reads it, and what others are given."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, nodes
from jinja2.ext import loopcontrols

from xgr_runtime.errors import BadRequest
from xgr_runtime.prompts.jinja import _Generation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONTENT = "content"
_ENVIRONMENT = Environment(extensions=[_Generation, loopcontrols])  # it reads, and renders nothing


def as_read(messages: Sequence[Mapping[str, Any]], source: str) -> Sequence[Mapping[str, Any]]:
    """Messages as a chat template can read them: where it reads texts alone, one part becomes its text.

    Most templates take anything else for no content at all, without a word. Raises BadRequest for several
    parts, which no rule says how to join.
    """
    if not any(isinstance(message.get(CONTENT), list) for message in messages) or reads_parts(source):
        return messages
    return [{**message, CONTENT: _text(at, message.get(CONTENT))} for at, message in enumerate(messages)]


def _text(at: int, content: Any) -> Any:
    if not isinstance(content, list):
        return content
    if len(content) != 1:
        raise BadRequest(
            f"messages[{at}].content has {len(content)} parts, and the chat template reads text alone: "
            "send the content as one text",
            "messages",
        )
    return content[0]["text"]


@lru_cache(64)
def reads_parts(source: str) -> bool:
    """Whether a chat template goes through the parts of a message's content.

    It does where it loops over what is called content, or was assigned from that.
    """
    tree = _ENVIRONMENT.parse(source)
    names = {CONTENT}
    names |= {
        one.target.name
        for one in tree.find_all(nodes.Assign)
        if isinstance(one.target, nodes.Name) and _is_content(one.node, names)
    }
    loops = [one.iter for one in tree.find_all(nodes.For)]
    filters = [one for one in tree.find_all(nodes.Filter) if one.name in ("map", "selectattr")]
    return any(_is_content(one, names) for one in (*loops, *filters))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node, names)
    if isinstance(node, nodes.Getattr):
        return node.attr == CONTENT
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == CONTENT
    return isinstance(node, nodes.Name) and node.name in names
