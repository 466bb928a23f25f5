"""Memory without a name that nobody can change or cut off once it is sealed: where a catalog is read from.

Whoever may write to a file can overwrite or shorten it while kernels follow what they have mapped of it. So a
process takes the bytes into memory of its own first, and only then checks them. The processes of one
deployment share the launcher's memory: they inherit its descriptor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_AT_ONCE = 1 << 20  # bytes


@contextlib.contextmanager
def sealing(name: str) -> Iterator[BinaryIO]:
    """New memory to write to. It is sealed once the block has ended well, and closed if it has not."""
    memory = unsealed(name)
    try:
        yield memory
        seal(memory)
    except BaseException:
        memory.close()
        raise


def unsealed(name: str) -> BinaryIO:
    """New memory, to be written for longer than a block lasts; `seal` it then. Raises OSError."""
    return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")


def seal(memory: BinaryIO) -> None:
    """From now on nobody can change it. Raises OSError."""
    memory.flush()
    fcntl.fcntl(memory.fileno(), fcntl.F_ADD_SEALS, _SEALS)


def sealed_copy(file: BinaryIO, name: str) -> BinaryIO:
    """What is left to read of a file, in sealed memory. Raises OSError."""
    with sealing(name) as memory:
        shutil.copyfileobj(file, memory, _AT_ONCE)
    return memory


def is_sealed(file: BinaryIO) -> bool:
    """Whether this is sealed memory already."""
    try:
        return fcntl.fcntl(file.fileno(), fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # a file on a disk
        return False


def inherited_path(file: BinaryIO) -> str:
    """Where a child finds a descriptor that it inherits from us."""
    return f"/proc/self/fd/{file.fileno()}"
