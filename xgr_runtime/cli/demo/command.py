"""The flow of `xgr demo`: prepare, serve, ask, measure, stay; with --kit see `kit.py`.

Exit code 1 says that the model does not beat the popularity baseline; errors on the way are raised.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from xgr_runtime.cli.demo import measure
from xgr_runtime.cli.demo.data import ShopSettings
from xgr_runtime.cli.demo.prepare import DemoFiles, DemoSettings, TrainingPlan, prepare
from xgr_runtime.cli.numbers import count, port, seconds, seed
from xgr_runtime.config import Backend

if TYPE_CHECKING:
    from rich.console import Console

HOST = "127.0.0.1"
SHOWN = 3  # users whose lists are printed
REQUEST_TIMEOUT = 60.0  # seconds; generous, for a machine that is busy


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `demo` to the command line; the parsed arguments carry `run_demo` as `func`."""
    shop, training = ShopSettings(), TrainingPlan()
    about = "generate a shop, train a small model, serve it, ask it"
    parser = subparsers.add_parser("demo", help=about, description=about)
    parser.add_argument(
        "--kit",
        type=Path,
        metavar="DIR",
        help="import, verify and serve a project's artefacts instead: data/, model/, cases.jsonl",
    )
    parser.add_argument("--exit", action="store_true", help="leave after the requests instead of staying up")
    parser.add_argument(
        "--port", type=port, default=30000, help="port of the HTTP server (default: %(default)s)"
    )
    parser.add_argument(
        "--model-backend",
        choices=[name for name in get_args(Backend) if name != "simulated"],
        default="auto",
        help="library whose layers run the model (default: %(default)s)",
    )
    parser.add_argument(
        "--items", type=count, default=shop.items, help="items in the catalog (default: %(default)s)"
    )
    parser.add_argument(
        "--users", type=count, default=shop.users, help="histories to learn from (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=seed, default=shop.seed, help="of data and training (default: %(default)s)"
    )
    parser.add_argument(
        "--train-seconds",
        type=seconds,
        default=training.seconds,
        help="time to train in (default: %(default)s)",
    )
    parser.add_argument(
        "--test-users", type=count, default=200, help="users behind HR@10 (default: %(default)s)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(".cache/demo"),
        help="folder of what is made once (default: %(default)s)",
    )
    parser.set_defaults(func=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """The whole demo. Ctrl-C and SIGTERM end it at any point, with everything stopped."""
    from rich.console import Console

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    return _demo(args, Console(highlight=False))


def _demo(args: argparse.Namespace, console: Console) -> int:
    from xgr_runtime.cli.demo import show
    from xgr_runtime.cli.demo.kit import run_kit
    from xgr_runtime.cli.demo.servers import start_servers
    from xgr_runtime.client import XgrClient
    from xgr_runtime.launcher.topology import check_port

    check_port(HOST, args.port)  # before the minute of training, not after it
    if args.kit is not None:
        return run_kit(args, console)
    made = _prepare(args, console)
    items = measure.read_items(made.catalog)
    users = measure.read_users(made.histories, max(args.test_users, SHOWN))
    with start_servers(made, HOST, args.port, args.model_backend, console.print) as base_url:
        with XgrClient(base_url, timeout=REQUEST_TIMEOUT) as client:
            for user in users[:SHOWN]:
                show.recommendations(console, user, measure.recommend(client, user), items)
            model, popularity = measure.hit_rate(client, users), measure.popularity_hit_rate(items, users)
        show.quality(console, len(users), model, popularity)
        console.print(f"\nServing at {base_url}. Try:\n")
        console.print(show.curl_line(base_url, users[0]), soft_wrap=True, markup=False)
        if not args.exit:
            _stay(console)
    return 0 if model > popularity else 1


def _prepare(args: argparse.Namespace, console: Console) -> DemoFiles:
    from xgr_runtime.cli.demo import show

    settings = DemoSettings(
        ShopSettings(items=args.items, users=args.users, seed=args.seed),
        TrainingPlan(seconds=args.train_seconds),
    )
    folder = settings.folder(args.cache)
    if folder.is_dir():
        console.print(f"Using the shop and the model in {folder}")
        return DemoFiles(folder)
    console.print(f"Making a shop of {args.items:,} items, {args.users:,} users and a small Qwen3")
    with show.training_bar(console) as report:
        return prepare(settings, args.cache, report)


def _stay(console: Console) -> None:
    console.print("\nPress Ctrl-C to stop.")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    console.print("\nStopping ...")
