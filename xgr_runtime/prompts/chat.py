"""Chat templates: where a checkpoint keeps them, which of them counts, and what they are rendered with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xgr_runtime.errors import BadRequest, CatalogError, ModelError
from xgr_runtime.files import is_missing, open_ordinary, read_object
from xgr_runtime.prompts.jinja import MOST_SOURCE, compiled

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xgr_runtime.prompts.jinja import ChatTemplate

SETTINGS = "tokenizer_config.json"
NAMED = "special_tokens_map.json"
ALONE = "chat_template.jinja"
OF_PROCESSOR = "chat_template.json"
MORE = "additional_chat_templates"
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class Chat:
    """What a checkpoint says of chat: its templates by name, and the special tokens that they may name."""

    templates: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Chat:
        """Of a checkpoint's folder. Raises ModelError for files that cannot be read.

        As `transformers` chooses: a file of its own before tokenizer_config.json, a processor's file last.
        """
        settings = read_object(folder / SETTINGS, ModelError)
        return cls(_templates(folder, settings), _tokens(folder, settings))

    def source(self) -> str | None:
        """The template that counts where none is named; None if there is none."""
        return self.templates.get("default")

    def template(self, own: str | None) -> ChatTemplate:
        """`own`, or else the checkpoint's, compiled. Raises CatalogError."""
        source = self.source() if own is None else own
        if source is not None:
            return compiled(source)
        if self.templates:
            names = ", ".join(self.templates)
            raise CatalogError(
                f"the checkpoint's chat templates are {names}, and none is the default: name a file with the "
                'one that you mean as "chat_template"'
            )
        raise CatalogError(
            'the checkpoint has no chat template: name a file beside catalog.json as "chat_template"'
        )

    def text(self, template: ChatTemplate, messages: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The messages as that template writes them. Raises TemplateFailure."""
        values = {"tools": None, "documents": None, "add_generation_prompt": True, **self.tokens, **kwargs}
        return template.render({**values, "messages": messages})


def without_absent(number: int, message: Any) -> dict[str, Any]:
    """A message without its null fields: templates ask whether a field is there. Raises BadRequest."""
    if not isinstance(message, Mapping):
        raise BadRequest(f"messages[{number}] is {message!r:.80}: it must be an object", "messages")
    return {name: value for name, value in message.items() if value is not None}


def _templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    files = {"default": folder / ALONE}
    more = folder / MORE
    if more.is_dir():
        files |= {path.stem: path for path in sorted(more.glob("*.jinja"))}
    alone = {name: _text(path) for name, path in files.items() if not is_missing(path)}
    if alone:
        return alone
    return _written(folder / SETTINGS, settings.get("chat_template")) or _written(
        folder / OF_PROCESSOR, read_object(folder / OF_PROCESSOR, ModelError).get("chat_template")
    )


def _written(path: Path, value: Any) -> dict[str, str]:
    """One template, a list of named ones, or an object of them."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = {one.get("name"): one.get("template") for one in value}
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise ModelError(f"{path}: chat_template must be text, or a list of objects with name and template")
    return value


def _text(path: Path) -> str:
    try:
        with open_ordinary(path) as file:
            content = file.read(4 * MOST_SOURCE + 1)
        return content.decode()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as text ({error}): correct or remove it") from error


def _tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> text of each special token that has a name."""
    named = read_object(folder / NAMED, ModelError)
    found: dict[str, Any] = {}
    for name in TOKENS:
        value = settings.get(name, named.get(name))
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found
