"""The templates that catalog.json beside a source declares: of ids, of text, of messages."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.catalog.declared import Declared
from xgr_runtime.catalog.template import (
    DEFAULT,
    MessagesTemplate,
    PromptTemplate,
    Template,
    Templates,
    TextTemplate,
)
from xgr_runtime.catalog.vocabulary import MAX_TOKEN
from xgr_runtime.errors import CatalogError
from xgr_runtime.files import open_ordinary, read_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from xgr_runtime.catalog.vocabulary import Vocabulary

MOST_BYTES = 256 * 1024  # of one template, its chat template included
MOST_NAMED = 64  # templates of one catalog
MOST_TOGETHER = 768 * 1024  # bytes of all templates: they lie in the built file's header
_PARTS = ("prefix", "separator", "suffix")
IDS_FIELDS = (*_PARTS, "max_history_items", "window_step")  # of the template of ids


def template_file(source: Path) -> Path:
    """Where the template of that source is, if it has one."""
    return source.with_name("catalog.json")


def files_beside(source: Path) -> list[Path]:
    """catalog.json of a source, and the chat templates that it names where it can be read."""
    path = template_file(source)
    try:
        named = read_object(path, CatalogError).get("templates", {}) if path.name != source.name else {}
        texts = [one.get("chat_template") for one in named.values()]
    except (CatalogError, AttributeError):
        texts = []
    return [path, *(path.parent / name for name in texts if isinstance(name, str) and "\0" not in name)]


def read_beside(source: Path, path: Path | None = None) -> dict[str, Any]:
    """The fields of catalog.json beside `source`, or of another file; {} without one. Raises CatalogError."""
    path = path or template_file(source)
    fields = read_object(path, CatalogError, strict=True) if path.name != source.name else {}
    known = (
        *IDS_FIELDS,
        "templates",
        "default_template",
        *Declared.__struct_fields__,
        "scoring",
        "attributes",
    )
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise CatalogError(f"{path}: unknown fields {unknown!s:.200}: use {known}")
    return fields


def read_templates(fields: Mapping[str, Any], path: Path, vocabulary: Vocabulary) -> Templates:
    """The templates of catalog.json, which `path` names; the one of ids where it names none.

    Raises CatalogError.
    """
    named = _object(path, "templates", fields.get("templates", {}))
    if len(named) > MOST_NAMED:
        raise CatalogError(
            f"{path}: there are {len(named)} templates, at most {MOST_NAMED} may be: drop some"
        )
    templates: dict[str, Template] = {
        name: _named(path, name, _object(path, f"templates.{name}", named[name])) for name in sorted(named)
    }
    of_ids = [name for name in IDS_FIELDS if name in fields]
    if of_ids and DEFAULT in templates:
        raise CatalogError(
            f"{path}: {of_ids[0]} and templates.{DEFAULT} both say what the template {DEFAULT!r} is: keep one"
        )
    if of_ids or not templates:
        templates[DEFAULT] = read_template(fields, path, vocabulary)
    default = fields.get("default_template", "")
    if type(default) is not str or (default and default not in templates):
        raise CatalogError(f"{path}: default_template is {default!r:.80}: name one of {', '.join(templates)}")
    if len(msgspec.msgpack.encode(templates)) > MOST_TOGETHER:
        raise CatalogError(
            f"{path}: the templates have more than {MOST_TOGETHER} bytes together: shorten them"
        )
    return Templates(templates, default)


def prompt_ends(templates: Templates, vocabulary: Vocabulary) -> list[Sequence[int]]:
    """The tokens that the prompts of each template end in, as far as they are the same in all of its prompts.

    Raises CatalogError.
    """
    ends: list[Sequence[int]] = []
    for template in templates.named.values():
        match template:
            case PromptTemplate():
                ends.append(template.suffix)
                continue
            case TextTemplate():
                text = template.text.rpartition("}")[2]
            case MessagesTemplate():
                text = template.generation_prefix
        ends.append(vocabulary.text_tokens(text) if text else ())
    return ends


def read_template(fields: Mapping[str, Any], path: Path, vocabulary: Vocabulary) -> PromptTemplate:
    """The template of ids in catalog.json; absent fields take their defaults.

    Those of prefix and suffix are what the tokenizer puts around any text; it also goes around a prefix and a
    suffix that are written as text. Raises CatalogError.
    """
    return PromptTemplate(
        prefix=_tokens(path, "prefix", fields, vocabulary, before=vocabulary.begin),
        separator=_tokens(path, "separator", fields, vocabulary),
        suffix=_tokens(path, "suffix", fields, vocabulary, behind=vocabulary.end),
        max_history_items=_whole(path, "max_history_items", fields.get("max_history_items")),
        window_step=_whole(path, "window_step", fields.get("window_step", 1)) or 1,
    )


def _named(path: Path, name: str, fields: dict[str, Any]) -> Template:
    """One template of text or of messages. Raises CatalogError that names its field."""
    where = f"templates.{name}"
    kind: type[TextTemplate | MessagesTemplate] = TextTemplate if "text" in fields else MessagesTemplate
    if unknown := sorted(set(fields) - set(kind.__struct_fields__)):
        raise CatalogError(
            f"{path}: {where} has the unknown fields {unknown!s:.200}: one with "
            f"{'text' if kind is TextTemplate else 'messages'} has {kind.__struct_fields__}"
        )
    for field in ("max_history_items", "window_step"):
        if field in fields:
            _whole(path, f"{where}.{field}", fields[field])
    _check_unicode(path, where, fields)
    if (file := fields.get("chat_template")) is not None:
        fields = {**fields, "chat_template": _chat_template(path, f"{where}.chat_template", file)}
    try:
        found = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise CatalogError(f"{path}: {where}: {error}: correct it") from error
    if (size := len(msgspec.msgpack.encode(found))) > MOST_BYTES:
        raise CatalogError(f"{path}: {where} has {size} bytes, the limit is {MOST_BYTES}: shorten it")
    return found


def _chat_template(path: Path, where: str, name: Any) -> str:
    """The text of the file of that name beside catalog.json."""
    if type(name) is not str or not name or "\0" in name:
        raise CatalogError(f"{path}: {where} is {name!r:.80}: name a file beside {path.name}")
    file = path.parent / name
    try:
        with open_ordinary(file) as stream:
            content = stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CatalogError(
            f"{path}: {where}: {file} cannot be read ({error}): name a file beside {path.name}"
        ) from error
    if len(content) > MOST_BYTES:
        raise CatalogError(f"{path}: {where}: {file} has more than {MOST_BYTES} bytes: shorten it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path}: {where}: {file} is not UTF-8 text ({error}): convert it") from error


def _check_unicode(path: Path, where: str, value: Any) -> None:
    """Raises CatalogError for a text, wherever it stands, that no prompt can hold."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_unicode(path, where, name)
            _check_unicode(path, f"{where}.{name}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_unicode(path, f"{where}[{number}]", inner)
    elif isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
        raise CatalogError(f"{path}: {where} holds a zero byte or half a character: remove it")


def _object(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CatalogError(f"{path}: {where} is {value!r:.80}: it must be an object")
    return value


def _whole(path: Path, where: str, value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_TOKEN:
        raise CatalogError(f"{path}: {where} is {value!r:.40}: it must be a whole number of at least 1")
    return value


def _tokens(
    path: Path,
    name: str,
    fields: Mapping[str, Any],
    vocabulary: Vocabulary,
    before: Sequence[int] = (),
    behind: Sequence[int] = (),
) -> tuple[int, ...]:
    """The ids of one part: of a list of token strings and ids, or of text that is no single token."""
    value = fields.get(name, [])
    if name not in fields:
        return (*before, *behind)
    parts = _listed(value)
    if not set(map(type, parts)) <= {str, int}:
        raise CatalogError(
            f"{path}: {name} is {value!r:.80}: it must be text, or a list of token strings or ids"
        )
    try:
        if any(type(part) is str and not vocabulary.holds(part) for part in parts):
            return (*before, *_of_text(parts, vocabulary), *behind)
        return tuple(vocabulary.resolve(part) for part in parts)
    except CatalogError as error:
        raise CatalogError(f"{path}: {name}: {error}") from error


def check_whole(
    fields: Mapping[str, Any], path: Path, sids: NDArray[np.int32], vocabulary: Vocabulary
) -> None:
    """Raises CatalogError where the tokenizer makes other ids of a whole prompt's text than of its parts.

    A prompt is put together of ids. sids [some, depth] are those of one that is tried.
    """
    parts = [_listed(fields.get(name, [])) for name in _PARTS]
    every = [part for one in parts for part in one]
    if vocabulary.tokenizer is None or all(type(part) is int or vocabulary.holds(part) for part in every):
        return
    if int in set(map(type, every)):  # then no text says what the whole is
        return
    prefix, separator, suffix = ("".join(map(str, one)) for one in parts)
    spell = vocabulary.tokenizer.id_to_token
    spelt = ["".join(spell(token) or "" for token in sid) for sid in sids.tolist()]
    whole = vocabulary.text_tokens(prefix + separator.join(spelt) + suffix)
    first, between, last = (
        tuple(vocabulary.text_tokens(text)) if text else () for text in (prefix, separator, suffix)
    )
    if whole != PromptTemplate(first, between, last).render(sids):
        raise CatalogError(
            f"{path}: the tokenizer makes other tokens of a whole prompt than of prefix, SIDs, separator and "
            "suffix: give SIDs tokens of their own in the tokenizer, or write the parts as ids"
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _of_text(parts: Sequence[str | int], vocabulary: Vocabulary) -> list[int]:
    """Neighbouring texts are one text: a tokenizer makes other ids of a text than of its pieces."""
    ids: list[int] = []
    for is_text, run in itertools.groupby(parts, key=lambda part: type(part) is str):
        neighbours = list(run)
        if is_text:
            ids += vocabulary.text_tokens("".join(map(str, neighbours)))
        else:
            ids += map(vocabulary.resolve, neighbours)
    return ids
