"""The HTTP edge: bounds connections, validates requests into jobs, shapes outcomes into answers.

Sockets belong to the caller.
"""

from router.http.app import make_app
from router.http.server.connections import server_config
from router.http.server.counting import ConnectionLimits
from router.http.settings import HttpSettings

__all__ = ["ConnectionLimits", "HttpSettings", "make_app", "server_config"]
