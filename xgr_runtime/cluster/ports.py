"""Ports that nobody listens on, for processes that are told theirs before they start."""

import contextlib
import socket


def free_ports(host: str, count: int) -> list[int]:
    """Different ones of that address. Where another process takes one meanwhile, ours fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as held:
        found = []
        for _ in range(count):
            listener = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.bind((host, 0))
            found.append(int(listener.getsockname()[1]))
        return found
