"""Names of a prompt's blocks: equal names, equal tokens from the prompt's first to the block's last."""

from typing import Protocol


class Digest(Protocol):
    """A hash that was given nothing yet; one with a key where nobody may look for two prompts of one name."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


def block_hashes(tokens: bytes, block: int, digest: Digest) -> list[bytes]:
    """Hashes over the first one, two, ... whole blocks of `block` tokens; `tokens` are int32 [L]."""
    size, hashes = 4 * block, list[bytes]()
    for start in range(0, len(tokens) - size + 1, size):
        digest.update(tokens[start : start + size])
        hashes.append(digest.digest())
    return hashes
