"""Numbers of commands' flags, within bounds: `type=` of argparse, whose error names the flag."""

import argparse


def above_0(text: str) -> float:
    """A number, not 0."""
    return _number(text, 1e-9, 1e12, "a number above 0")


def from_0(text: str) -> float:
    """A number, also 0."""
    return _number(text, 0, 1e12, "a number of at least 0")


def share(text: str) -> float:
    """From 0 to 1."""
    return _number(text, 0, 1, "a share between 0 and 1")


def seconds(text: str) -> float:
    """As many as a day has, at most."""
    return _number(text, 1e-3, 86_400, "a number of seconds above 0, a day at most")


def count(text: str) -> int:
    """Of things: one at least."""
    return _whole(text, 1, 1 << 31, "a whole number of at least 1")


def port(text: str) -> int:
    """Of TCP; 0 is any free one."""
    return _whole(text, 0, 65_535, "a port: a whole number from 0 to 65535")


def seed(text: str) -> int:
    """That every generator of random numbers takes."""
    return _whole(text, 0, (1 << 32) - 1, "a whole number from 0 to 4294967295")


def _number(text: str, least: float, most: float, what: str) -> float:
    value = float(text)
    if not least <= value <= most:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def _whole(text: str, least: int, most: int, what: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text:.100} is not {what}") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text:.100} is not {what}")
    return value
