"""The flags of `xgr verify`: what is compared, with what, and what is enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from xgr_runtime.cli.numbers import above_0, count, seed, share
from xgr_runtime.config import Dtype, ServeConfig
from xgr_runtime.config import add_flags as add_settings
from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

DTYPES = tuple(name for name in get_args(Dtype) if name != "auto")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All of them, and behind them one for each setting of the deployment."""
    add_folder(parser)
    _add_cases(parser)
    _add_judgement(parser)
    add_settings(
        parser.add_argument_group("settings of the deployment", "They count before those of serve.toml."),
        ServeConfig,
    )


def add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        metavar="DIR",
        help="folder with serve.toml, as `xgr import` writes it; or else --model-path and --catalog",
    )


def _add_cases(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the other side").add_argument
    add("--cases", type=Path, metavar="FILE", help="JSON lines: prompts and the ranked beams given for them")
    add(
        "--beams",
        default="beams",
        metavar="FIELD",
        help="field of a line that has them (default: %(default)s)",
    )
    add("--limit", type=count, metavar="N", help="only the first N cases")
    add(
        "--messages",
        type=Path,
        metavar="FILE",
        help="messages of the cases, row by row, or for --reference: Parquet or JSON lines",
    )
    add("--template", metavar="NAME", help="of the prompts; {field} stands for a field of the line")
    add_variable(parser, "; {field} stands for a field of the line")
    add("--prompt-ids", action="store_true", help="ask by the cases' prompt_ids: the search alone")
    add("--unknown-history", choices=("refuse", "drop"), default="refuse", help="as in a request")
    add(
        "--reference",
        type=count,
        metavar="N",
        help="N prompts through Hugging Face's generate: of --cases, --histories, --messages or random items",
    )
    add("--histories", type=Path, metavar="FILE", help="JSON lines with a `history` each, for --reference")
    add("--width", type=count, default=50, help="beams of --reference without cases (default: %(default)s)")
    add("--seed", type=seed, default=0, help="of random histories (default: %(default)s)")
    add("--save-cases", type=Path, metavar="FILE", help="write what --reference gave as cases")


def add_variable(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument(
        "--variable",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help=f"text for a variable of the template, once for each{more}",
    )


def _add_judgement(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is enough, and what comes of it").add_argument
    add("--tolerance", type=above_0, help="largest difference of a score (default: rule.json's, else 3e-4)")
    add(
        "--min-overlap",
        type=share,
        help="mean overlap@width that is enough; without it lists must be the same, but where one side "
        "computes in less than float32: there it is 0.9",
    )
    add("--cases-dtype", choices=DTYPES, help="in which the cases were computed (default: float32)")
    add("--score", help="what their scores are: sequence_score (default), sum, or sum / N")
    add("--url", help="verify a deployment that runs, instead of one that is started")
    add("--report", type=Path, metavar="FILE", help="write all figures as JSON")
    add("--serve", action="store_true", help="after a pass, serve in the foreground as `xgr serve` does")


def variables(given: Sequence[str]) -> dict[str, str]:
    """Of --variable NAME=TEXT. Raises ConfigError."""
    wrong = [text for text in given if "=" not in text]
    if wrong:
        raise ConfigError(f"--variable is {wrong[0]!r:.80}: write NAME=TEXT")
    return dict(text.split("=", 1) for text in given)


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError for flags that make no sense together."""
    if args.cases is None and args.reference is None:
        raise ConfigError("nothing to compare with: name --cases FILE, or --reference N")
    together = [
        (args.serve and args.url, "--serve and --url: what runs already is served"),
        (args.histories and not args.reference, "--histories without --reference N"),
        (args.histories and args.cases, "--histories and --cases: give one of them"),
        (
            args.save_cases and not args.reference,
            "--save-cases without --reference N: cases are a file already",
        ),
        (args.messages and args.histories, "--histories and --messages: give one of them"),
        (args.prompt_ids and args.reference, "--prompt-ids and --reference, which renders prompts itself"),
    ]
    wrong = next((what for refused, what in together if refused), None)
    if wrong:
        raise ConfigError(f"{wrong}")
