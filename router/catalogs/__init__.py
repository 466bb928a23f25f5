"""How a catalog that changes reaches the workers and comes into use.

`publishing.py` is what the HTTP edge calls.
"""

from router.catalogs.publishing import (
    CatalogStatus,
    HeldVersion,
    Prepared,
    Published,
    Publishing,
    UnderWay,
)

__all__ = ["CatalogStatus", "HeldVersion", "Prepared", "Published", "Publishing", "UnderWay"]
