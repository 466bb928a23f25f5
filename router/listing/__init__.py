"""Which items an answer lists of the beams that a search found, and whether a wider search could change it.

Pure: rows, scores and values in, rows out.
"""

from router.listing.asked import PLAIN, Diversity, Listing
from router.listing.choice import Listed, by_beam, choose, sample_key, shuffled
from router.listing.settled import settled
from router.listing.values import Values, fields

__all__ = [
    "PLAIN",
    "Diversity",
    "Listed",
    "Listing",
    "Values",
    "by_beam",
    "choose",
    "fields",
    "sample_key",
    "settled",
    "shuffled",
]
