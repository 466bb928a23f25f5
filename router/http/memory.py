"""What long bodies took of the router's memory goes back to the system: it serves for months beside others.

glibc keeps what was freed for as long as something lies behind it, also in the arenas of threads.
"""

import ctypes
import platform

_M_MMAP_THRESHOLD = -3  # malloc.h
_OWN_MAPPING = 1 << 20  # bytes from which an allocation is a mapping, which goes back when it is freed


def keep_large_apart() -> None:
    """From now on; glibc raises that size, which starts smaller, by what it sees freed."""
    if _is_glibc():
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING)


def give_back_memory() -> None:
    """All that is free now. It takes milliseconds, in which whoever allocates may wait."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
