"""Whether a wider search could have changed an answer.

A beam's score only falls: every token adds a log-probability, which is at most 0. So no SID below a child
that a level passed over has a score above that child's, which is not above that of the last child kept. The
highest such last score of all levels is the *ceiling*: no SID that is not among the beams has a score above
it. An answer that was full with a beam above the ceiling needed no SID below it: a search of any width finds
the same beams above the ceiling, in the same order, and the walk over them ends at the same place.
"""

ROUNDING = 1e-4
"""Natural logarithms: more than two scores move when a forward has other company."""


def settled(filled: float | None, ceiling: float | None, whole: bool) -> bool:
    """Whether no wider search changes the answer; False where that is not known.

    filled: the score of the beam with which the answer was full; None where beams ran out before. ceiling: as
    the search says; None where it does not. whole: every live SID was a beam.
    """
    if whole:
        return True
    return filled is not None and ceiling is not None and filled > ceiling + ROUNDING
