"""The flow of `xgr verify`: read, start, ask and compare, report, serve.

Exit code 1 says that the two sides differ by more than the bounds.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.serve_folder import serve_config
from xgr_runtime.cli.verify import flags
from xgr_runtime.cli.verify.terms import SEQUENCE, Terms, check_score
from xgr_runtime.config.variables import variable
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import check_writable
from xgr_runtime.process.log import configure

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.verify.cases import Case, Rule
    from xgr_runtime.cli.verify.judge import Bounds, Judged
    from xgr_runtime.cli.verify.prompts import Renderer
    from xgr_runtime.cli.verify.served import Served
    from xgr_runtime.config import ServeConfig

TOLERANCE = 3e-4  # float32 references over large vocabularies are off by up to 1.3e-4
ENOUGH = 0.9  # mean overlap@width where one side computes in less than float32
PROGRESS = 10  # cases between two lines of progress


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `verify` to the command line; the parsed arguments carry `verify` as `func`."""
    about = "hold a deployment against the ranked lists of your own evaluation code, or of Hugging Face"
    parser = subparsers.add_parser("verify", help=about, description=about, allow_abbrev=False)
    flags.add_flags(parser)
    parser.set_defaults(func=verify)


def verify(args: argparse.Namespace) -> int:
    """0 for a pass (with --serve: after a drained stop), 1 where the sides differ. Raises StartupError."""
    from xgr_runtime.launcher.whole import whole

    flags.check(args)
    log_level = args.log_level or "WARNING"  # of what is started for this alone
    config = serve_config(args)
    configure("xgr", log_level)
    for path, setting in ((args.report, "--report"), (args.save_cases, "--save-cases")):
        if path:
            check_writable(path, setting)
    if args.serve:
        _check_port(config)
    with whole(config) as merged:
        if not Verification(args, merged).run(log_level):
            return 1
    if args.serve:
        if args.dtype:
            print(f"A later `xgr serve` serves what was proved with --dtype {args.dtype} alone.", flush=True)
        _serve(config)
    return 0


class Verification:
    """One run, from files to a verdict."""

    def __init__(self, args: argparse.Namespace, config: ServeConfig) -> None:
        """Reads what the flags name. Raises ConfigError, CatalogError."""
        from rich.console import Console

        from xgr_runtime.catalog import load_catalog

        self.args, self.config = args, config
        # A table that goes into a file is not cut to the width of a terminal that nobody looks at.
        self.console: Console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self.catalog: Catalog = load_catalog(config.catalog, config.model_path)
        self.rule: Rule = _rule(args)
        self.terms = _terms(args, self.rule, self.catalog)
        self.cases: list[Case] = _cases(args, self.catalog)

    def run(self, log_level: str) -> bool:
        """Whether the sides agree. Raises StartupError where nothing can be compared."""
        from xgr_runtime.cli.verify.served import Served, client, started
        from xgr_runtime.launcher.kernels_first import starting

        args, config = self.args, self.config
        if not args.url:
            self.console.print(starting(config))
        key = os.environ.get(variable("api_key")) or config.api_key or None
        server = client(args.url, key) if args.url else started(config, log_level)
        with server as ours:
            served = Served(ours, self.catalog, args.unknown_history == "drop")
            served.check_widths(self.cases)
            renderer = self._renderer(served)
            if args.reference:
                self.cases = self._referred(renderer)
            judged = self._judged(served, renderer)
            return self._report(served.dtype(config.admin_api_key or key), judged)

    def _renderer(self, served: Served) -> Renderer:
        from xgr_runtime.cli.verify.prompts import UNLIMITED, renderer

        most = served.info.max_prompt_tokens or UNLIMITED
        return renderer(self.config.model_path, self.catalog, most, self.args.unknown_history == "drop")

    def _referred(self, renderer: Renderer) -> list[Case]:
        """The cases with Hugging Face's beams in place of theirs."""
        from xgr_runtime.cli.verify.cases import save_cases
        from xgr_runtime.cli.verify.reference import Oracle, referred
        from xgr_runtime.cli.verify.sids import SidTable

        self.console.print(f"Asking Hugging Face's generate {len(self.cases)} times, in float32 ...")
        oracle = Oracle(self.config.model_path, SidTable(self.catalog.sids), self.catalog.scoring)
        prompts = [renderer.render(case) for case in self.cases]
        cases = referred(oracle, self.cases, prompts, self._progress)
        if self.args.save_cases:
            save_cases(self.args.save_cases, cases)
        return cases

    def _judged(self, served: Served, renderer: Renderer) -> list[Judged]:
        from xgr_runtime.cli.verify.judge import CaseJudge

        judge = CaseJudge(served, renderer, self.terms)
        judged = []
        for number, case in enumerate(self.cases, 1):
            judged.append(judge.judge(case))
            self._progress(number)
        return judged

    def _progress(self, number: int) -> None:
        if number % PROGRESS == 0 and number < len(self.cases):
            self.console.print(f"  {number} of {len(self.cases)}")

    def _report(self, dtype: str, judged: list[Judged]) -> bool:
        from xgr_runtime.cli.verify import show
        from xgr_runtime.cli.verify.report import write_report
        from xgr_runtime.cli.verify.totals import shortfalls, total

        totals, bounds = total(judged), self._bounds(dtype)
        problems = shortfalls(judged, totals, bounds)
        about = self._about(dtype)
        width = max(case.width for case in self.cases)
        show.heading(self.console, about, len(judged))
        self.console.print(show.table(totals, bounds, width, self.terms.score))
        show.remarks(self.console, totals, bounds, about)
        show.verdict(self.console, problems)
        if self.args.report:
            write_report(self.args.report, about, bounds, totals, judged, problems)
        return not problems

    def _bounds(self, dtype: str) -> Bounds:
        from xgr_runtime.cli.verify.judge import Bounds

        noise = {dtype, self._cases_dtype()} != {"float32"}
        overlap = self.args.min_overlap if self.args.min_overlap is not None else ENOUGH if noise else None
        return Bounds(self.args.tolerance or self.rule.tolerance or TOLERANCE, overlap)

    def _cases_dtype(self) -> str:
        """In which the other side was computed."""
        return "float32" if self.args.reference else self.args.cases_dtype or self.rule.dtype or "float32"

    def _about(self, dtype: str) -> dict[str, Any]:
        other = "Hugging Face generate" if self.args.reference else str(self.args.cases)
        return {
            "other": other,
            "other_dtype": self._cases_dtype(),
            "url": self.args.url or "",
            "model_path": self.config.model_path,
            "catalog": self.config.catalog,
            "catalog_version": self.catalog.version,
            "dtype": dtype,
            "beam": {"head": self.terms.head, "depth": self.terms.depth, "tail": self.terms.tail},
            "score": self.terms.score,
        }


def _rule(args: argparse.Namespace) -> Rule:
    from xgr_runtime.cli.verify.cases import Rule, read_rule

    return read_rule(args.cases) if args.cases and not args.reference else Rule()


def _terms(args: argparse.Namespace, rule: Rule, catalog: Catalog) -> Terms:
    """What their beams are: by flags and rule.json, else as the catalog's scoring has it."""
    scoring = catalog.scoring
    head = [forced.token for forced in scoring.emitted_head] if rule.scored_head is None else rule.scored_head
    tail = [forced.token for forced in scoring.emitted_tail] if rule.scored_tail is None else rule.scored_tail
    score = (
        check_score(args.score, "--score")
        if args.score
        else check_score(rule.score or SEQUENCE, "rule.json's score")
    )
    return Terms(catalog.depth, tuple(head), tuple(tail), score)


def _cases(args: argparse.Namespace, catalog: Catalog) -> list[Case]:
    from xgr_runtime.cli.verify import cases

    most = args.limit if args.reference is None else args.reference
    messages = cases.read_messages(args.messages) if args.messages else []
    if args.messages and not args.cases:
        return cases.of_messages(messages[:most], args.width, args.template)
    if args.histories:
        found = cases.read_histories(args.histories, args.width, most)
    elif args.cases:
        found = cases.read_cases(args.cases, args.beams, most)
    else:
        found = cases.random_cases(catalog, args.reference, args.width, args.seed)
    if args.prompt_ids:
        return [cases.by_ids(case) for case in found]
    if args.messages and len(messages) < len(found):
        raise ConfigError(f"--messages {args.messages} has {len(messages)} rows for {len(found)} cases")
    filled = flags.variables(args.variable)
    return [
        cases.completed(case, args.template, filled, messages[place] if messages else None)
        for place, case in enumerate(found)
    ]


def _check_port(config: ServeConfig) -> None:
    from xgr_runtime.launcher.topology import check_port

    check_port(config.host, config.port)  # before the proof, not after it


def _serve(config: ServeConfig) -> None:
    from xgr_runtime.launcher.deployment import Deployment

    configure("xgr", config.log_level)
    with contextlib.suppress(KeyboardInterrupt):
        Deployment(config).run_forever()
