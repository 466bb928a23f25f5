"""Logging for every process: one line per event on stderr, with the process's name."""

import logging
import sys


def configure(process: str, level: str = "INFO") -> None:
    """Send this process's log lines to stderr as `time level process: message`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {process}: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "numba"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
