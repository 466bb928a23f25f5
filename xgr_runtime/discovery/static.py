"""Workers that the settings name: they stay the same while the router runs."""

from collections.abc import Sequence

from xgr_runtime.discovery import WorkerAddress, check_twice


class StaticList:
    """See `Source`."""

    def __init__(self, prefill: Sequence[str], decode: Sequence[str]) -> None:
        self._workers = [WorkerAddress("prefill", address) for address in prefill]
        self._workers += [WorkerAddress("decode", address) for address in decode]

    def look(self) -> list[WorkerAddress]:
        """See `Source.look`."""
        check_twice(self._workers, "--prefill and --decode")
        return self._workers
