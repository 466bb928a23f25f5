"""`xgr trace`: what all processes of a running deployment did in the last seconds, as a file for Perfetto."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.deployment import DeploymentError, add_deployment_flags, asking
from xgr_runtime.files import check_writable, write_whole

if TYPE_CHECKING:
    from xgr_runtime.trace.facts import Overlap, ProcessUse, RequestLife

MOST_SECONDS = 600.0  # that a router tells of
ROOM = 30.0  # seconds that a busy router gets to answer, beyond its own patience with workers


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `trace` to the command line; the parsed arguments carry `run_trace` as `func`."""
    about = "write what all processes of a running deployment did lately, as a trace for Perfetto"
    parser = subparsers.add_parser("trace", help=about, description=about, allow_abbrev=False)
    add_deployment_flags(parser)
    parser.add_argument(
        "--seconds", type=_seconds, default=10.0, help="how far back, up to 600 (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("trace.json"), help="file to write (default: %(default)s)"
    )
    parser.set_defaults(func=run_trace)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= MOST_SECONDS:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0, {MOST_SECONDS:g} at most")
    return seconds


def run_trace(args: argparse.Namespace) -> int:
    """0 with the file written. Raises `ConfigError` for a path or URL, `DeploymentError` for an answer."""
    import msgspec

    check_writable(args.out, "--out")
    with asking(args, ROOM) as client:
        body = client.trace(args.seconds)
    try:
        trace = msgspec.json.decode(body, type=dict[str, Any])
        lines = report(trace)
    except (msgspec.MsgspecError, KeyError):
        raise DeploymentError(f"{args.url} is not an xgr router: its /trace is something else") from None
    write_whole(args.out, body)
    print("\n".join(lines))
    print(f"\n{args.out}: {len(body) / 1e6:.1f} MB. Open https://ui.perfetto.dev and drop the file onto it.")
    return 0


def report(trace: dict[str, Any]) -> list[str]:
    """What the trace shows, in a few lines."""
    from xgr_runtime.trace.facts import last_request, overlaps, process_uses

    return [
        *use_lines(process_uses(trace)),
        *missing_lines(trace["otherData"]),
        *request_lines(last_request(trace), overlaps(trace)),
    ]


def use_lines(uses: list[ProcessUse]) -> list[str]:
    """A table of the processes."""
    width = max([len(use.name) for use in uses] + [7])
    lines = [f"{'process':<{width}}  {'spans':>7}  {'busy':>9}  share"]
    for use in uses:
        busy = "" if use.busy is None else f"{use.busy:>7.3f} s  {use.busy / use.seconds:>5.0%}"
        lines.append(f"{use.name:<{width}}  {use.spans:>7}  {busy}".rstrip())
    return lines


def missing_lines(about: dict[str, Any]) -> list[str]:
    """What the trace does not show."""
    absent = [f"missing: {address}: {reason}" for address, reason in about["missing"].items()]
    cut = about["forgotten_before_seconds"].items()
    return absent + [f"{name} had forgotten the first {seconds:.1f} s" for name, seconds in cut]


def request_lines(life: RequestLife | None, moved: list[Overlap]) -> list[str]:
    """Where the time of the last request went."""
    if life is None:
        return ["no request was answered in that time"]
    parts: dict[str, list[str]] = {}
    for phase in life.phases:
        parts.setdefault(phase.process, []).append(f"{phase.name} {phase.seconds * 1e3:.1f}")
    lines = [f"\nthe last request, {life.rid}, took {life.seconds * 1e3:.1f} ms; in it, in ms:"]
    lines += [f"  {process}: {', '.join(texts)}" for process, texts in parts.items()]
    own = [overlap for overlap in moved if overlap.rid == life.rid]
    lines += [f"  {o.share:.0%} of {o.bytes / 1e6:.1f} MB of KV arrived during its prefill" for o in own]
    return lines
