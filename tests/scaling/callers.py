"""Callers of /generate, one request after the other each, as fast as answers come: a process of its own.

python tests/scaling/callers.py URL CALLERS SECONDS CATALOG ITEMS WIDTH RESULTS [refused]

The catalog has CATALOG items i0, i1 and so on, a history ITEMS of them. With `refused` each body has a
field that is none. Says how many were answered, and the median of seconds, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

BODIES = 300  # that are made before
MOST_ANSWER = 1 << 20  # bytes


def main(argv: Sequence[str]) -> None:
    url, callers, seconds, catalog, items, width, results = argv[0], *map(int, argv[1:7])
    refused = len(argv) > 7
    bodies = [body(catalog, items, width, results, refused) for _ in range(BODIES)]
    took = asyncio.run(all_callers(url, callers, seconds, bodies, 400 if refused else 200))
    print(json.dumps({"answered": len(took), "median": statistics.median(took)}))


def body(catalog: int, items: int, width: int, results: int, refused: bool) -> bytes:
    """A request as it goes over the wire."""
    asked = {
        "history": [f"i{random.randrange(catalog)}" for _ in range(items)],
        "sampling_params": {"beam_width": width, "n": results},
        "timeout_ms": 600_000,
        **({"no_field": 1} if refused else {}),
    }
    text = json.dumps(asked).encode()
    head = b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(text) + text


async def all_callers(
    url: str, callers: int, seconds: float, bodies: Sequence[bytes], status: int
) -> list[float]:
    """What each answer took, in seconds."""
    until, took = time.monotonic() + seconds, list[float]()
    await asyncio.gather(*(ask_on(url, until, bodies, status, took) for _ in range(callers)))
    return took


async def ask_on(url: str, until: float, bodies: Sequence[bytes], status: int, took: list[float]) -> None:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=MOST_ANSWER)
    while (began := time.monotonic()) < until:
        writer.write(random.choice(bodies))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        said = await reader.readexactly(size)
        if not head.startswith(b"http/1.1 %d" % status):
            raise RuntimeError(f"{head!r} {said[:300]!r}")
        took.append(time.monotonic() - began)
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1:])
