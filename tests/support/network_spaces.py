"""Network namespaces: a thread goes into one, and what it starts or connects from then on is in there.

`python -m network_spaces SPACE MODULE FLAGS` runs MODULE inside the namespace that the file SPACE stands for.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import runpy
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_NEWNET = 0x40000000  # CLONE_NEWNET
_TUNSETIFF, _TUN, _NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8922, 0x8943
_UP = 0x1
_QUEUE = 8192  # packets that wait for whoever reads the device: it drops none on its own
_OURS = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def enter(space: str) -> None:
    """This thread goes into the namespace; threads and processes that it starts are in there, too."""
    descriptor = os.open(space, os.O_RDONLY)
    try:
        _called(_libc.setns(descriptor, _NEWNET), "setns")
    finally:
        os.close(descriptor)


@contextmanager
def inside(space: str) -> Iterator[None]:
    """The same for a while. Sockets stay where they were made."""
    home = os.open(_OURS, os.O_RDONLY)
    try:
        enter(space)
        yield
    finally:
        _called(_libc.setns(home, _NEWNET), "setns")
        os.close(home)


def new_space() -> int:
    """A namespace with its loopback up: a descriptor that keeps it. Raises OSError where none is allowed."""
    return in_thread(_new_space)


def new_device(name: str, address: str, mtu: int) -> int:
    """A TUN device of the namespace that we are in, up, in a /24: the other end of it, for IPv4 packets.

    Raises OSError where there is no TUN.
    """
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_PI))
        set_up(name, address, mtu)
    except OSError:
        os.close(end)
        raise
    return end


def set_up(name: str, address: str, mtu: int) -> None:
    """Give a device of the namespace that we are in its address in a /24, and switch it on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in (
            (_SIOCSIFADDR, _inet(address)),
            (_SIOCSIFNETMASK, _inet("255.255.255.0")),
            (_SIOCSIFMTU, struct.pack("i20x", mtu)),
            (_SIOCSIFTXQLEN, struct.pack("i20x", _QUEUE)),
        ):
            fcntl.ioctl(control, request, _named(name) + value)
        _switch_on(control, name)


def in_thread(act: Callable[[], T]) -> T:
    """What `act` gives, done in a thread that is then gone, and with it the namespace that it went into."""
    found: list[T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(act())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _new_space() -> int:
    _called(_libc.unshare(_NEWNET), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _switch_on(control, "lo")
    return os.open(_OURS, os.O_RDONLY)


def _switch_on(control: socket.socket, name: str) -> None:
    flags = struct.unpack("16xH22x", fcntl.ioctl(control, _SIOCGIFFLAGS, _named(name) + bytes(24)))[0]
    fcntl.ioctl(control, _SIOCSIFFLAGS, _named(name) + struct.pack("H22x", flags | _UP))


def _named(name: str) -> bytes:
    return struct.pack("16s", name.encode())


def _inet(address: str) -> bytes:
    """A sockaddr_in, filled up to the size of what an ifreq holds."""
    return struct.pack("Hxx4s16x", socket.AF_INET, socket.inet_aton(address))


def _called(result: int, name: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def main() -> None:
    enter(sys.argv.pop(1))
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
