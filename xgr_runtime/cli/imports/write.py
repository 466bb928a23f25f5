"""Writes what was read: items.jsonl, catalog.json and what it names, serve.toml; all of them or none.

They are written into a hidden folder beside, built there as a server would, and only then get their name.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.catalog import Catalog, build_catalog
from xgr_runtime.catalog.checks import check_lengths, checked_ids, checked_popularity, resolved_sids
from xgr_runtime.catalog.declared import TOKEN_IDS, spell
from xgr_runtime.catalog.vocabulary import read_vocabulary
from xgr_runtime.cli.imports.draft import chat_template_names
from xgr_runtime.cli.imports.tables import sids
from xgr_runtime.errors import CatalogError, ConfigError, StartupError
from xgr_runtime.files import read_object
from xgr_runtime.prompts import Prompts
from xgr_runtime.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenizers import Tokenizer

    from xgr_runtime.cli.imports.checkpoints import TrainedModel
    from xgr_runtime.cli.imports.draft import Draft

ITEMS, TEMPLATES, SERVE = "items.jsonl", "catalog.json", "serve.toml"
_MARK = re.compile(r"<\|[^<>|\s]+\|>")
_SID_TOKEN = re.compile(r"<[a-z]_\d+>")
_LEAST_WIDTH = 128


def check_place(out: Path, force: bool) -> None:
    """Before any work. Raises ConfigError where something is there that an import did not write."""
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}: make it, or name another")
    if not out.exists():
        return
    if out.is_dir():
        named = chat_template_names(read_object(out / TEMPLATES, ConfigError))
        strangers = [path for path in out.iterdir() if path.name not in (ITEMS, TEMPLATES, SERVE, *named)]
    else:
        strangers = [out]
    if strangers:
        raise ConfigError(
            f"--out {out} holds {strangers[0].name}, which no import wrote: name another folder"
        )
    if any(out.iterdir()) and not force:
        raise ConfigError(f"--out {out} is there already: name another folder, or replace it with --force")


def write(draft: Draft, model: TrainedModel, out: Path) -> Catalog:
    """The catalog as a server builds it of what lies in `out` now.

    Raises CatalogError, ModelError, ConfigError; then `out` is as it was.
    """
    _check_rows(draft)
    hidden = out.with_name(f".{secrets.token_hex(8)}.{out.name}")
    try:
        hidden.mkdir()
        _write_items(draft, hidden / ITEMS)
        _write_json(hidden / TEMPLATES, _declared(draft))
        for name, text in draft.files.items():
            (hidden / name).write_text(text, encoding="utf-8")
        (hidden / SERVE).write_text(_settings(draft, model, out), encoding="utf-8")
        with _as_read(hidden, draft, model, out):
            catalog = build_catalog(hidden / ITEMS, model.files)
            tokenizer = read_tokenizer(model.files)
            _check_marks(draft, tokenizer)
            _note_unused(draft, tokenizer)
            Prompts.read(tokenizer, model.files).check(catalog)
        _replace(out, hidden)
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written ({error.strerror or error}): make room there, or name another"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return catalog


def _check_rows(draft: Draft) -> None:
    """What is wrong with an item is said of the file and line that it came from. Raises CatalogError."""
    with _of(draft.source):
        columns = draft.columns = spell(draft.columns, draft.form)
        check_lengths(columns)
        columns.items = checked_ids(columns)
        checked_popularity(columns, columns.items)
        for row, texts in enumerate(zip(columns.items, columns.titles or repeat(None), strict=False)):
            if any(text and not _is_unicode(text) for text in texts):
                raise CatalogError(
                    f"{columns.place(row)}, item {texts[0]!r:.80}: it or its title is not valid Unicode: "
                    "correct it"
                )


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


@contextlib.contextmanager
def _of(source: Path) -> Iterator[None]:
    """Errors of the block begin with the file that they are of."""
    try:
        yield
    except CatalogError as error:
        raise CatalogError(f"{source}: {error}") from error


def _check_marks(draft: Draft, tokenizer: Tokenizer | None) -> None:
    """Raises CatalogError where templates hold a mark, as <|sid_begin|>, that the tokenizer spells out."""
    for mark in sorted(set(_MARK.findall(json.dumps([draft.templates, draft.more, draft.files])))):
        if tokenizer is None or tokenizer.token_to_id(mark) is None:
            raise CatalogError(
                f"the prompts of evaluation hold {mark}, and the checkpoint's tokenizer has no such token: "
                "name the checkpoint that the project trained with --model-path"
            )


def _note_unused(draft: Draft, tokenizer: Tokenizer | None) -> None:
    """Says so where the tokenizer has SID tokens that no item has: the index may be another run's."""
    if draft.trained_tokens is None or tokenizer is None:
        return
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    unused = sorted({token for token in added if _SID_TOKEN.fullmatch(token)} - draft.trained_tokens)
    if unused:
        draft.assumed.append(
            f"{draft.source.name} is the one of training, although the tokenizer has {len(unused)} SID "
            f"tokens that no item has, such as {unused[0]}"
        )


@contextlib.contextmanager
def _as_read(hidden: Path, draft: Draft, model: TrainedModel, out: Path) -> Iterator[None]:
    """Errors of the block name the source and the folder that was asked for, not the hidden one."""
    try:
        yield
    except StartupError as error:
        with _of(draft.source):  # whose lines are the better place for what is wrong with a SID
            resolved_sids(draft.columns, list(draft.columns.items), read_vocabulary(model.files))
        text = str(error).replace(str(hidden / ITEMS), str(draft.source)).replace(str(hidden), str(out))
        text = text.replace(str(model.files), str(model.folder))
        raise type(error)(re.sub(r"\bline (\d+)", r"row \1", text)) from error


def _replace(out: Path, made: Path) -> None:
    """`made` gets the name `out`; what was there, which an import wrote, is gone then."""
    if not out.exists():
        made.rename(out)
        return
    old = out.with_name(f".{secrets.token_hex(8)}.{out.name}")
    out.rename(old)
    try:
        made.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_items(draft: Draft, path: Path) -> None:
    columns = draft.columns
    encode = msgspec.json.Encoder().encode
    with path.open("wb") as file:
        for item, sid, title, popularity, attributes in zip(
            columns.items,
            sids(columns),
            columns.titles or repeat(None),
            columns.popularity or repeat(None),
            columns.attributes or repeat(b""),
            strict=False,
        ):
            row: dict[str, Any] = {"item": item, "sid": sid}
            if title:
                row["title"] = title
            if popularity is not None:
                row["popularity"] = popularity
            if isinstance(attributes, bytes) and attributes:
                row["attributes"] = msgspec.Raw(attributes)
            file.write(encode(row) + b"\n")


def _declared(draft: Draft) -> dict[str, Any]:
    """catalog.json. SIDs are written as the tokens that the form gave."""
    fields: dict[str, Any] = {"templates": draft.templates} if draft.templates else {}
    fields |= draft.more
    if draft.scoring:
        fields["scoring"] = draft.scoring
    if draft.form.sid_format == TOKEN_IDS:  # other integers must not pass as ids
        fields["sid_format"] = TOKEN_IDS
    return fields


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _settings(draft: Draft, model: TrainedModel, out: Path) -> str:
    """serve.toml. Paths are whole, so that `--config` works from any folder."""
    width = max(_LEAST_WIDTH, draft.width)
    base = f"base-model-path = {_quoted(model.base)}\n" if model.base else ""
    return (
        f"# Evaluation asked for {draft.width} beams: beam_width of a request.\n"
        f"model-path = {_quoted(model.folder)}\n"
        f"{base}"
        f"catalog = {_quoted(out / ITEMS)}\n"
        f"max-beam-width = {width}\n"
    )


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
