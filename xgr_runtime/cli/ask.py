"""`xgr ask`: one request from the shell, and its ranked items as a table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.deployment import add_deployment_flags, asking
from xgr_runtime.cli.numbers import count
from xgr_runtime.cli.tables import new_table, show
from xgr_runtime.cli.verify import flags
from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from xgr_runtime.client import Request
    from xgr_runtime.wire.answers import Answer, BeamResult

MARGIN = 30.0  # seconds that an answer may be later than its deadline
DEADLINE_MS = 30_000


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `ask` to the command line."""
    about = "ask a running deployment what follows a history"
    parser = subparsers.add_parser("ask", help=about, description=about, allow_abbrev=False)
    add = parser.add_argument
    add("history", nargs="*", metavar="ITEM", help="item ids, oldest first; - reads them from stdin")
    add("--text", help="a prompt as text, in place of items")
    add("--width", type=count, help="beams of the search (default: the deployment's)")
    add("-n", type=count, default=10, help="results (default: 10)")
    add("--where", metavar="CONDITION", help="over the items' attributes, as SQL writes it behind WHERE")
    add("--named", action="append", metavar="NAME", help="a named filter of the deployment; may be repeated")
    add("--allow", nargs="+", metavar="ITEM", help="no item but these")
    add("--deny", nargs="+", metavar="ITEM", help="none of these items")
    add("--exclude-history", action="store_true", help="none of the history's items")
    add("--template", metavar="NAME", help="of the catalog (default: its default)")
    flags.add_variable(parser)
    add("--model", help="its name, where several are served")
    add("--timeout-ms", type=count, default=DEADLINE_MS, help="deadline (default: %(default)s)")
    add("--json", action="store_true", help="print the answer as it came")
    add_deployment_flags(parser)
    parser.set_defaults(func=ask)


def ask(args: argparse.Namespace) -> int:
    """0. Raises `DeploymentError`, `ConfigError`."""
    import msgspec

    request = _request(args)
    with asking(args, args.timeout_ms / 1000 + MARGIN) as client:
        answer = client.generate(**request)
    if args.json:
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    else:
        show(_results(answer))
        _say_more(answer)
    return 0


def _request(args: argparse.Namespace) -> Request:
    history = sys.stdin.read().split() if args.history == ["-"] else args.history
    if bool(history) == (args.text is not None):
        raise ConfigError("say what of: ITEM ..., or --text PROMPT")
    request: Request = {
        "n": args.n,
        "exclude_history": args.exclude_history,
        "timeout_ms": args.timeout_ms,
        "title": True,
    }
    if history:
        request["history"] = history
    else:
        request["text"] = args.text
    given: dict[str, Any] = {
        "beam_width": args.width,
        "where": args.where,
        "named": args.named,
        "allow": args.allow,
        "deny": args.deny,
        "template": args.template,
        "variables": flags.variables(args.variable),
        "model": args.model,
    }
    request.update({name: value for name, value in given.items() if value})  # type: ignore[typeddict-item]
    return request


def _results(answer: Answer) -> Table:
    from rich.text import Text

    table = new_table("", "item", "score", "title", "SID")
    for rank, result in enumerate(answer.meta_info.beam_results, 1):
        score = f"{result.meta_info.sequence_score:.4f}"
        sid = " ".join(map(str, result.output_ids))
        table.add_row(*map(Text, (str(rank), _items(result), score, _title(result), sid)))
    return table


def _items(result: BeamResult) -> str:
    """The first one, and how many more are on its SID."""
    first, more = result.items[0] if result.items else "-", len(result.items) - 1
    return f"{first} (+{more})" if more > 0 else first


def _title(result: BeamResult) -> str:
    title = result.item_info[0].title if result.item_info else None
    return title if isinstance(title, str) else ""


def _say_more(answer: Answer) -> None:
    """What the table does not show, on stderr."""
    meta = answer.meta_info
    cached = f", {meta.cached_tokens} of them cached" if meta.cached_tokens else ""
    said = [f"{meta.prompt_tokens} tokens{cached}, {1000 * meta.e2e_latency:.0f} ms, {meta.catalog_version}"]
    for where in ("history", "allow", "deny"):
        if unknown := getattr(meta.unknown_items, where):
            said.append(f"{unknown} of {where} unknown to the catalog")
    if meta.dropped_items:
        said.append(f"the prompt has room for all but the {meta.dropped_items} oldest items")
    print("; ".join(said), file=sys.stderr)
