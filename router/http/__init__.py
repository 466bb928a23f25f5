"""The HTTP edge: bounds connections, validates requests into jobs, shapes outcomes into answers.

Sockets belong to the caller.
"""

from router.http.app import make_app
from router.http.connections import server_config
from router.http.counting import ConnectionLimits
from router.http.settings import HttpSettings

__all__ = ["ConnectionLimits", "HttpSettings", "make_app", "server_config"]
