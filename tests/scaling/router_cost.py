"""What a request costs a router: CPU time of its process, with workers that answer at once.

python tests/scaling/router_cost.py [--workers 1,16,64] [--against FOLDER] [--rounds 5]

Serves a made catalog with so many prefill and as many decode workers, played by one process, and lets callers
ask as fast as answers come: first what is answered, then what is refused (a field that is none). With
--against, a second router of the sources in that folder does the same in turns, so that the ratio holds on a
busy machine too. Figures are medians over the rounds; the rate of one router core is one over the first.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from played_devices import ITEMS, Files
from ports import free_port
from until import until

HERE, TREE = Path(__file__).parent, Path(__file__).parents[2]
Costs = dict[str, list[float]]  # milliseconds of a request, by what becomes of it


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--workers", default="1", help="of each role, a point each")
    flags.add_argument("--against", type=Path, help="a checkout of other sources")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--seconds", type=int, default=3, help="of each round")
    flags.add_argument("--callers", type=int, default=16)
    flags.add_argument("--items", type=int, default=64, help="of a history, three tokens each")
    flags.add_argument("--width", type=int, default=128)
    flags.add_argument("--results", type=int, default=128)
    args = flags.parse_args(argv)
    trees = [TREE] if args.against is None else [TREE, args.against.resolve()]
    for workers in map(int, args.workers.split(",")):
        with tempfile.TemporaryDirectory(prefix="xgr-cost-") as folder, ExitStack() as stack:
            files = Files(Path(folder), "H200", 1.0)
            routers = [
                stack.enter_context(router(files, Path(folder, str(number)), tree, workers))
                for number, tree in enumerate(trees)
            ]
            say(workers, measure(routers, args))
    return 0


def measure(routers: Sequence[tuple[str, psutil.Process]], args: argparse.Namespace) -> list[Costs]:
    """Of each router; they take turns."""
    costs: list[Costs] = [{"answered": [], "refused": []} for _ in routers]
    for turn in range(args.rounds + 1):
        for (url, process), own in zip(routers, costs, strict=True):
            for kind, taken in own.items():
                cost = asked(url, process, kind, args)
                if turn:  # the first warms up
                    taken.append(cost)
    return costs


def asked(url: str, process: psutil.Process, kind: str, args: argparse.Namespace) -> float:
    """Milliseconds of CPU time for each request."""
    numbers = (args.callers, args.seconds, ITEMS, args.items, args.width, args.results)
    command = [sys.executable, str(HERE / "callers.py"), url, *map(str, numbers)]
    before = sum(process.cpu_times()[:2])
    said = subprocess.check_output([*command, *(["refused"] if kind == "refused" else [])], text=True)
    spent = sum(process.cpu_times()[:2]) - before
    return 1e3 * spent / int(json.loads(said)["answered"])


def say(workers: int, costs: Sequence[Costs]) -> None:
    for kind, taken in costs[0].items():
        line = f"{workers:3d} + {workers} workers, {kind}: {statistics.median(taken):.2f} ms of CPU a request"
        if len(costs) > 1:
            others = costs[1][kind]
            ratio = statistics.median(own / other for own, other in zip(taken, others, strict=True))
            line += f", {statistics.median(others):.2f} against, ratio {ratio:.2f}"
        print(line, flush=True)


@contextmanager
def router(files: Files, folder: Path, tree: Path, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """One of the sources in `tree`, with its workers."""
    folder.mkdir(0o700)
    environ = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'kernels'}"}
    played = [sys.executable, str(HERE / "at_once.py"), str(folder), *map(str, (workers, workers, ITEMS))]
    port = free_port()
    settings = {
        "model-path": files.model,
        "catalog": files.catalog,
        "port": port,
        "prefill": ",".join(f"ipc://{folder}/p{number}" for number in range(workers)),
        "decode": ",".join(f"ipc://{folder}/d{number}" for number in range(workers)),
        "max-live": 4096,
        "hedge-after": 0,
    }
    command = [sys.executable, "-m", "router", *(f"--{name}={value}" for name, value in settings.items())]
    with ExitStack() as stack, (folder / "log").open("w") as log:
        own = subprocess.Popen(played, stdout=subprocess.PIPE, text=True)
        stack.callback(own.kill)
        assert own.stdout is not None and own.stdout.readline() == "ready\n"
        process = subprocess.Popen(command, env=environ, cwd=tree, stdout=log, stderr=log)
        stack.callback(process.kill)
        until(lambda: listens(port), "the router listens")
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
