"""Bodies as long as they may be, many at once: others are served, and the memory is given back."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from fleet import Fleet
from trial import MakeTrial
from until import until

MOST = 8 << 20  # bytes
AT_ONCE = 12
GIVEN_BACK = 50  # MiB that the router may have more afterwards


def filled(start: bytes, entry: bytes, end: bytes) -> bytes:
    """As many entries as a body may hold."""
    return start + entry * ((MOST - len(start) - len(end)) // len(entry)) + end


BODIES = {
    "text": filled(b'{"text":"', b"<a_1> ", b'"}'),
    "one long word": filled(b'{"text":"', b"a", b'"}'),
    "tokens": filled(b'{"input_ids":[', b"999,", b"1]}"),
    "history": filled(b'{"history":[', b'"12",', b'"1"]}'),
    "histories": filled(b'{"history":{"a":[', b'"12",', b'"1"]}}'),
    "messages": filled(b'{"messages":[{"role":"user","content":"', b"<a_1> ", b'"}]}'),
    "variables": filled(b'{"history":[],"variables":{"a":"', b"<a_1> ", b'"}}'),
    "deny": b'{"history":["1"],"filters":{"deny":[%s"1"]}}' % b"".join(b'"%d",' % n for n in range(500_000)),
    "labels": filled(b'{"custom_labels":{', b'"k":"",', b'"a":""}}'),
}


def send(url: str, body: bytes, hang_up: bool) -> None:
    """Posts it and waits for the answer's first byte, or does not."""
    address = urlsplit(url)
    head = "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with (
        suppress(OSError),
        socket.create_connection((address.hostname or "", address.port or 0), 60) as client,
    ):
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if not hang_up:
            client.recv(1)


KINDS = [*BODIES]
CASES = [(callers, KINDS[half::2]) for callers in ("stay", "hang up") for half in range(2)]


@pytest.mark.in_turns("kinds", share=4)
@pytest.mark.parametrize(("callers", "kinds"), CASES, ids=[f"{c}-{k[0]}..{k[-1]}" for c, k in CASES])
def test_long_bodies(fleet: Fleet, trial: MakeTrial, callers: str, kinds: list[str]) -> None:
    router = fleet.process("router")
    assert router is not None
    before = router.memory_info().rss
    case = f"{AT_ONCE} bodies of 8 MB at a time, callers {callers}: {', '.join(kinds)}"
    with trial(case) as it, it.crowd(seed=26, callers=2):
        for body in map(BODIES.__getitem__, kinds):
            threads = [
                threading.Thread(target=send, args=(fleet.url, body, callers == "hang up"))
                for _ in range(AT_ONCE)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def grown() -> float:
        return (router.memory_info().rss - before) / (1 << 20)

    with suppress(AssertionError):
        until(lambda: grown() < GIVEN_BACK, "the memory is given back", seconds=60, every=0.2)
    assert grown() < GIVEN_BACK, f"the router has {grown():.0f} MiB more"
