"""Looks at a source now and then, and tells of what it names once that has changed."""

import logging
import threading
from collections.abc import Callable, Sequence

from xgr_runtime.discovery import Source, WorkerAddress
from xgr_runtime.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_EVERY = 0.5  # seconds

Tell = Callable[[Sequence[WorkerAddress]], None]
"""Takes all that a source names. Raises `ConfigError` where that cannot be: then it is told again."""


class Watch:
    """In a thread of its own: a dead file server answers nobody, and nobody waits for it."""

    def __init__(self, source: Source, told: Sequence[WorkerAddress] | None, tell: Tell) -> None:
        """`told`: what `source` named when it was first looked at; None where that was nothing."""
        self._source = source
        self._tell = tell
        self._told = told
        self.problem = ""  # why the source counts as it was before, else empty
        self._over = threading.Event()

    def start(self) -> None:
        """Look from now on."""
        threading.Thread(target=self._run, name="discovery", daemon=True).start()

    def stop(self) -> None:
        """Look no more; does not wait for a look that is under way."""
        self._over.set()

    def look(self) -> None:
        """Tell of a list that is another one; say once why there is none, and once that it is there again."""
        try:
            named = self._source.look()
            if named != self._told:
                self._tell(named)
                log.info("%s names %d workers", self._source, len(named))
            elif self.problem:
                log.info("%s names the same workers as before", self._source)
            self._told, self.problem = named, ""
        except ConfigError as error:
            if str(error) != self.problem:
                log.warning("the workers stay as they are: %s", error)
            self.problem = str(error)

    def _run(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            try:
                self.look()
            except Exception:  # a loop that has ended, or a bug: the next look may fare better
                if not self._over.is_set():
                    log.exception("looking at %s failed", self._source)
