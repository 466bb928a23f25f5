"""`xgr prompt`: one prompt as the deployment would render it: its text, its tokens, and the SIDs in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.serve_folder import serve_config
from xgr_runtime.cli.verify import flags
from xgr_runtime.config import ServeConfig, add_flags
from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.verify.prompts import Renderer
    from xgr_runtime.prompts import Rendered

WIDTH = 110  # of wrapped tokens where no terminal says another


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `prompt` to the command line."""
    about = "show text, tokens and SIDs of one prompt"
    parser = subparsers.add_parser("prompt", help=about, description=about, allow_abbrev=False)
    flags.add_folder(parser)
    add = parser.add_argument
    add("--history", nargs="*", metavar="ITEM", help="item ids, oldest first")
    add(
        "--messages",
        type=Path,
        metavar="FILE",
        help="JSON list of messages, or the first row of such a column",
    )
    add("--template", metavar="NAME", help="of the catalog (default: its default)")
    flags.add_variable(parser)
    add("--unknown-history", choices=("refuse", "drop"), default="refuse", help="as in a request")
    add("--json", action="store_true", help="print one JSON object")
    settings = "settings of the deployment"
    add_flags(parser.add_argument_group(settings, "They count before those of serve.toml."), ServeConfig)
    parser.set_defaults(func=prompt)


def prompt(args: argparse.Namespace) -> int:
    """0. Raises StartupError, BadRequest."""
    from xgr_runtime.catalog import load_catalog
    from xgr_runtime.checkpoint import described
    from xgr_runtime.cli.verify.prompts import UNLIMITED, renderer

    if (args.history is None) == (args.messages is None):
        raise ConfigError("say what of: --history ITEM ..., or --messages FILE")
    config = serve_config(args)
    most = config.max_prompt_tokens or UNLIMITED
    with described(Path(config.model_path), config.base_model_path) as files:
        catalog = load_catalog(config.catalog, files)
        rendering = renderer(str(files), catalog, most, args.unknown_history == "drop")
    rendered = _rendered(args, rendering)
    facts = facts_of(rendered, catalog, rendering.tokenizer, args.history or ())
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _show(facts)
    return 0


def _rendered(args: argparse.Namespace, rendering: Renderer) -> Rendered:
    filled = flags.variables(args.variable)
    if args.messages is None:
        return rendering.of_history(args.history, args.template, filled)
    return rendering.of_messages(_messages(args.messages), args.template, {})


def _messages(path: Path) -> list[dict[str, Any]]:
    """Raises ConfigError."""
    from xgr_runtime.cli.verify.cases import read_messages

    if path.suffix != ".json":
        return read_messages(path)[0]
    try:
        messages: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--messages {path} cannot be read ({error!s:.200}): give a JSON list") from None
    return messages


def facts_of(
    rendered: Rendered, catalog: Catalog, tokenizer: Tokenizer, history: Sequence[str]
) -> dict[str, Any]:
    """What is shown, as JSON values: text, tokens, the SIDs in it and the items that they stand for."""
    ids = rendered.tokens.tolist()
    spelt = [spelling(tokenizer, token) for token in ids]
    return {
        # Of a template of ids the tokens one by one: a decoder for prose may put blanks between them.
        "text": "".join(spelt) if rendered.text is None else rendered.text,
        "tokens": [{"id": token, "text": text} for token, text in zip(ids, spelt, strict=True)],
        "sids": sids_in(ids, catalog, tokenizer),
        "history": [{"item": item, "title": catalog.title(item)} for item in history],
        "dropped": rendered.dropped,
    }


def spelling(tokenizer: Tokenizer, token: int) -> str:
    """As it reads in a text; where it is a part of a letter only, as the vocabulary spells it."""
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    named = tokenizer.id_to_token(token)
    return text if text and "\ufffd" not in text else named or ""


def sids_in(ids: Sequence[int], catalog: Catalog, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Where SIDs of the catalog stand among the tokens, first to last, each with its items."""
    from xgr_runtime.cli.verify.sids import SidTable

    table, found, place = SidTable(catalog.sids), [], 0
    while place + catalog.depth <= len(ids):
        sid = tuple(ids[place : place + catalog.depth])
        if not table.holds(sid):
            place += 1
            continue
        items = catalog.items_of_leaves([table.leaf(sid)])[0]
        text = "".join(spelling(tokenizer, token) for token in sid)
        found.append({"place": place, "sid": list(sid), "text": text, "items": items})
        place += catalog.depth
    return found


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(Text(facts["text"]), soft_wrap=True)
    console.print(f"\n[bold]{len(facts['tokens'])} tokens[/]")
    for line in token_lines(facts["tokens"], console.width):
        console.print(Text(line), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("at", "SID", "items", "title"):
        table.add_column(column, overflow="fold")
    titles = {row["item"]: row["title"] for row in facts["history"]}
    for row in facts["sids"]:
        title = next((titles[item] for item in row["items"] if titles.get(item)), "") or ""
        table.add_row(str(row["place"]), Text(row["text"]), Text(", ".join(row["items"])), Text(title))
    console.print(f"\n[bold]{len(facts['sids'])} SIDs[/]")
    console.print(table)
    if facts["dropped"]:
        console.print(f"{facts['dropped']} items of the history did not fit, the oldest")


def token_lines(tokens: Sequence[dict[str, Any]], width: int) -> list[str]:
    """Ids and spellings, in lines that break between tokens alone: blanks are part of a spelling."""
    from rich.cells import cell_len

    lines = [""]
    for token in tokens:
        shown = f"{token['id']} {token['text']!r}"
        if lines[-1] and cell_len(lines[-1]) + 2 + cell_len(shown) > width:
            lines.append("")
        lines[-1] += f"  {shown}" if lines[-1] else shown
    return lines
