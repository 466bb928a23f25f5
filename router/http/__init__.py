"""The HTTP edge: validates requests into jobs, shapes outcomes into answers. Sockets belong to the caller."""

from router.http.app import make_app
from router.http.settings import HttpSettings

__all__ = ["HttpSettings", "make_app"]
