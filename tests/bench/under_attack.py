"""What one client's attack costs another: its p99 while each attack runs, and the router's memory afterwards.

    .venv/bin/python tests/bench/under_attack.py --model-path CHECKPOINT --catalog FILE

A steady client asks for 50 beams while another process does what it can. Ratios are to the same client
undisturbed, between the attacks. The last line is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment

MOST = 8 << 20  # bytes of a body
ROUND = 1.0  # seconds, at least, between one caller's tries: two cores cannot bear a client that never rests
Address = tuple[str, int]


def post(body: bytes, *headers: bytes) -> bytes:
    head = [b"POST /generate HTTP/1.1", b"host: localhost", b"content-type: application/json", *headers]
    return b"\r\n".join([*head, b"content-length: %d" % len(body), b"", body])


def exchange(address: Address, sent: bytes, hang_up: bool = False) -> None:
    with suppress(OSError), socket.create_connection(address, 30) as client:
        client.sendall(sent)
        if not hang_up:
            client.recv(65536)


def unknown_key(address: Address) -> None:
    """What a quadratic expression was once run over."""
    exchange(address, post(b'{"- at `$%b": 1}' % (b"[" * 400_000)))


def query(address: Address) -> None:
    exchange(
        address, b"GET /trace?%b=1 HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"-%20at%20`$" + b"[" * 30_000)
    )


def long_text(address: Address) -> None:
    exchange(address, post(b'{"text": "%b"}' % (b"<a_1> " * (MOST // 6 - 10))), hang_up=True)


def long_lists(address: Address) -> None:
    exchange(address, post(b'{"input_ids": [%b1]}' % (b"999," * (MOST // 4 - 10))), hang_up=True)


def burst(address: Address) -> None:
    """One of many prompts of 2,000 tokens that have 15 s."""
    prompt = [random.randrange(3, 900) for _ in range(2000)]
    exchange(address, post(json.dumps({"input_ids": prompt, "timeout_ms": 15_000}).encode()))


def crumbs(address: Address) -> None:
    head = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    exchange(address, head + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000)


def idle(address: Address) -> None:
    """Connections that say nothing, as many as there may be."""
    with suppress(OSError):
        held = [socket.create_connection(address, 30) for _ in range(1024)]
        time.sleep(2)
        for client in held:
            client.close()


# The attack, and how many do it side by side.
ATTACKS: dict[str, tuple[Callable[[Address], None], int]] = {
    "unknown key of 400 KB": (unknown_key, 4),
    "query of 30 KB": (query, 4),
    "texts of 8 MB, callers gone": (long_text, 12),
    "lists of 8 MB, callers gone": (long_lists, 12),
    "bursts of 200 prompts": (burst, 200),
    "chunks of one byte": (crumbs, 4),
    "1,024 idle connections": (idle, 1),
}


def attack(name: str, url: str, seconds: float) -> None:
    """Run as a process of its own, so that it does not slow the client that is measured."""
    what, callers = ATTACKS[name]
    where = urlsplit(url)
    address, end = (where.hostname or "", where.port or 0), time.monotonic() + seconds

    def again() -> None:
        while (began := time.monotonic()) < end:
            what(address)
            time.sleep(max(0.0, began + ROUND - time.monotonic()))

    threads = [threading.Thread(target=again) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def latencies(url: str, seconds: float, body: bytes) -> tuple[list[float], int]:
    """Of one request after the other, in milliseconds, and how many were refused."""
    where, took, refused = urlsplit(url), [], 0
    end = time.monotonic() + seconds
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    while time.monotonic() < end:
        began = time.monotonic()
        connection.request("POST", "/generate", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        took.append((time.monotonic() - began) * 1e3)
        refused += answer.status != 200
        time.sleep(0.02)
    connection.close()
    return took, refused


def p99(values: list[float]) -> float:
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def measure(url: str, router: psutil.Process, seconds: float, body: bytes) -> dict[str, dict[str, float]]:
    results = {}
    latencies(url, 5, body)
    for name in ATTACKS:
        quiet, _ = latencies(url, seconds, body)
        before = router.memory_info().rss
        command = [sys.executable, __file__, "--attack", name, "--url", url, "--seconds", str(seconds)]
        with subprocess.Popen(command) as attacker:
            time.sleep(0.5)
            under, refused = latencies(url, seconds - 1, body)
            attacker.wait()
        time.sleep(3)
        kept = (router.memory_info().rss - before) / (1 << 20)
        row = {
            "quiet p50, ms": statistics.median(quiet),
            "quiet p99, ms": p99(quiet),
            "p50, ms": statistics.median(under),
            "p99, ms": p99(under),
            "p99 ratio": p99(under) / p99(quiet),
            "requests": len(under),
            "refused": refused,
            "router keeps, MiB": kept,
        }
        results[name] = {key: round(value, 2) for key, value in row.items()}
        print(f"{name:30} {results[name]}", flush=True)
    return results


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model-path", type=Path)
    flags.add_argument("--catalog", type=Path)
    flags.add_argument("--seconds", type=float, default=15.0, help="of each attack, and of quiet before it")
    flags.add_argument("--prompt-tokens", type=int, default=200)
    flags.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    flags.add_argument("--url", help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.attack:
        attack(args.attack, args.url, args.seconds)
        return
    random.seed(0)
    prompt = [random.randrange(3, 900) for _ in range(args.prompt_tokens)]
    body = json.dumps(
        {"input_ids": prompt, "timeout_ms": 2000, "sampling_params": {"beam_width": 50}}
    ).encode()
    config = ServeConfig(
        model_path=str(args.model_path), catalog=str(args.catalog), port=0, log_level="ERROR"
    )
    with Deployment(config) as deployment:
        router = psutil.Process(deployment.pid("router"))
        print(json.dumps(measure(deployment.url, router, args.seconds, body)))


if __name__ == "__main__":
    main()
