"""How long a deployment takes to serve, and to replace a worker that was killed: forked and spawned.

python tests/bench/start.py --model-path DIR --catalog FILE [--rounds N] [-- FLAGS of xgr serve]

The first start fills the cache of compiled kernels and checks and does not count. A start ends with the first
answer; a replacement lasts from `kill -9` to an answer that the new worker has had its part in. Prints a
table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from xgr_runtime.client import XgrClient

METHODS = ("fork", "spawn")
WORKERS = ("prefill_worker", "decode_worker")
PATIENCE = 600.0  # seconds


@dataclass
class Server:
    """`xgr serve`, and what it said."""

    process: subprocess.Popen[str]
    began: float
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if found := re.search(r"ready at (http://\S+)", line):
                self.url = found[1]

    def wait_url(self) -> str:
        while not self.url:
            if self.process.poll() is not None:
                raise SystemExit("it does not start:\n" + "\n".join(self.lines))
            time.sleep(0.005)
        return self.url

    def worker(self, module: str) -> psutil.Process:
        family = psutil.Process(self.process.pid).children(recursive=True)
        return next(process for process in family if module in process.cmdline())

    def parts(self) -> str:
        """The launcher's own account of its start."""
        line = next(line for line in self.lines if "ready at" in line)
        return line.partition(" took ")[2]


@contextmanager
def serving(args: argparse.Namespace, method: str) -> Iterator[Server]:
    flags = [f"--model-path={args.model_path}", f"--catalog={args.catalog}", "--port=0"]
    command = [sys.executable, "-m", "xgr_runtime.cli", "serve", *flags, f"--start-method={method}"]
    process = subprocess.Popen([*command, *args.flags], stderr=subprocess.PIPE, text=True)
    server = Server(process, time.monotonic())
    threading.Thread(target=server.read, daemon=True).start()
    try:
        yield server
    finally:
        process.terminate()
        process.wait(60)


def answer(client: XgrClient) -> list[str]:
    """The incarnations of the workers that have answered a request."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            client.generate(input_ids=[1, 5, 6, 7], beam_width=8)
            return sorted(worker.incarnation or "" for worker in client.workers() if worker.usable)
        except Exception:  # of any kind: it is not there, or refuses for want of a worker
            time.sleep(0.01)
    raise SystemExit(f"no answer within {PATIENCE:g} s")


def replaced(server: Server, client: XgrClient, module: str) -> float:
    """Seconds from the end of a worker to an answer without it."""
    before = answer(client)
    server.worker(module).kill()
    killed = time.monotonic()
    while (after := answer(client)) == before or len(after) < len(before):
        time.sleep(0.01)
    return time.monotonic() - killed


def measure(args: argparse.Namespace, method: str) -> dict[str, float]:
    with serving(args, method) as server, XgrClient(server.wait_url()) as client:
        answer(client)
        seconds = {"start": time.monotonic() - server.began}
        print(f"{method}: {server.parts()}", file=sys.stderr)
        seconds |= {module: replaced(server, client, module) for module in WORKERS}
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--catalog", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="of xgr serve, after --")
    args = parser.parse_args()
    measure(args, "fork")
    runs = [(method, measure(args, method)) for _ in range(args.rounds) for method in METHODS]
    medians = {
        method: {
            what: round(statistics.median(run[what] for name, run in runs if name == method), 2)
            for what in ("start", *WORKERS)
        }
        for method in METHODS
    }
    for method, seconds in medians.items():
        print(method, *(f"{what} {value:.2f} s" for what, value in seconds.items()), sep="  ")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
