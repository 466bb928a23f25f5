"""Which requests get a second try beside the first, because the pair that has them seems stuck.

The policy:
- A request is in doubt while a worker that it waits for is quiet, or once it has taken `after` times what was
  foreseen for it, and at least `LEAST` seconds.
- Another pair without that worker must be able to do it in time, and make nobody else late.
- It gets one such try, and of all live requests at most a tenth at a time (but one) has one.
"""

from collections.abc import Collection

from router.dispatch.attempt import Attempt
from router.dispatch.tries import Tries

LEAST = 0.5
SHARE = 10  # live requests for each that has two tries


def hedge(live: Collection[Tries], after: float, now: float) -> None:
    """Begin such tries."""
    spare = max(1, len(live) // SHARE) - sum(tries.hedged for tries in live)
    for tries in live:
        if spare <= 0:
            return
        if (attempt := tries.only_one) is not None and (stuck := in_doubt(attempt, after, now)):
            if not tries.hedge(stuck):
                return  # others would fare no better
            spare -= 1


def in_doubt(attempt: Attempt, after: float, now: float) -> int:
    """The incarnation that the attempt seems to wait for in vain, or 0."""
    for worker in (attempt.decode,) if attempt.committed else (attempt.prefill, attempt.decode):
        if worker.quiet:
            return worker.incarnation
    promise = attempt.promise
    slow = promise.foreseen and now - attempt.started > max(LEAST, after * promise.forecast.total)
    return attempt.at_work if slow else 0
