"""What self-checks have found on this machine, kept by content: a second start does not do them again.

The content is that of the weights, of the code that runs them, and of everything below it; the machine's
processor counts as well. What is damaged is no finding: the check is done again.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from xgr_runtime.cache.kernels import kernel_key, version_of
from xgr_runtime.cache.records import Records
from xgr_runtime.checkpoint import sampled_files
from xgr_runtime.model.backends.fused import LayerFacts

log = logging.getLogger(__name__)

FOLDER = "checks"
KEPT = 64  # files; those used last stay
_PACKAGES = ("xgr-runtime", "torch", "triton", "transformers", "safetensors", "sglang")


class Finding(msgspec.Struct, frozen=True):
    """A checkpoint computes what Hugging Face's model does. `prunes`: see `ModelBackend`."""

    prunes: bool
    own: LayerFacts | None = (
        None  # with which our own layers do, too; on a CPU from the weights as they are saved
    )


class Check:
    """The check of one checkpoint in one library's layers."""

    def __init__(self, records: Records | None, key: str) -> None:
        self._records = records
        self._key = key
        self.known = self._read()

    def keep(self, finding: Finding) -> None:
        """For later starts."""
        if self._records is not None:
            self._records.write(self._key, msgspec.json.encode(finding))

    def _read(self) -> Finding | None:
        content = self._records.read(self._key) if self._records else None
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=Finding)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            log.warning("the model is checked again, what was kept of its check is damaged: %s", error)
            return None


class KeptChecks:
    """All checks of one start, and how long they took."""

    def __init__(self, cache: Path | None = None) -> None:
        """`cache`: the folder of what is kept for later starts; None: nothing is."""
        self.seconds = 0.0
        self._records = Records(cache / FOLDER, KEPT) if cache else None

    def of(self, folder: Path, weights_hash: str, library: str, dtype: str, device: str) -> Check:
        """That of the checkpoint in `folder`, which has this hash. Raises ModelError."""
        weights = [weights_hash, *sampled_files(folder)]
        parts = [
            *weights,
            library,
            dtype,
            _device(device),
            kernel_key(),
            _sources(),
            *map(version_of, _PACKAGES),
        ]
        return Check(self._records, hashlib.sha256(repr(parts).encode()).hexdigest()[:32])

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count this time as spent on checks."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began


def _device(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def _sources() -> str:
    """Of the model's code: an edit anywhere makes every check a new one."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
