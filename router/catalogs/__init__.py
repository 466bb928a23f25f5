"""How a catalog that changes reaches the workers and comes into use.

`publishing.py` is what the HTTP edge calls. Behind it `publisher.py` takes one change after the other:
`writer.py` makes it in a thread and keeps it in the store, `spreading.py` offers it to decode workers, and
once all that are usable hold it, requests use it, which `arriving.py` sees to. `shelf.py` is what they are
offered, `servable.py` what is refused.
"""

from router.catalogs.publishing import Prepared, Published, Publishing

__all__ = ["Prepared", "Published", "Publishing"]
