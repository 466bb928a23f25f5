"""The error tree of the runtime, and the one place that says how each error looks over HTTP.

Start-up errors end a process with one clear line; request errors travel over the wire as
(code, message, param) and leave the router as an HTTP status with a JSON body.
"""

from typing import ClassVar


class XgrError(Exception):
    """Base of every error that is not our own bug. The message says what happened and what to change."""


class StartupError(XgrError):
    """A process cannot start: one line on stderr, exit code 2."""


class ConfigError(StartupError):
    """A flag, an environment variable or a configuration file is wrong."""


class ModelError(StartupError):
    """A checkpoint is missing, damaged, or needs more than plain causal softmax attention."""


class CatalogError(StartupError):
    """A catalog cannot be read, or does not fit the checkpoint."""


class StoreError(CatalogError):
    """A store of catalogs cannot be read or written. Nothing of what was asked for has happened."""


class Fatal(BaseException):
    """Nothing runs in this process any more: it ends, and its requests are tried elsewhere.

    No `Exception`, so that whoever ends one request for what went wrong with it lets this pass.
    """


class RequestError(XgrError):
    """A request ended without a result. `status` is its HTTP status, `code` its name on the wire.

    `retryable` tells a client that the same request may succeed later, `elsewhere` the router that it may
    succeed now, on another pair of workers.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False
    elsewhere: ClassVar[bool] = False
    retry_after: float  # seconds after which a retry may succeed; zero if that is not known

    def __init__(self, message: str, param: str | None = None, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InternalError(RequestError):
    """HTTP 500. A bug of ours: logged with its stack, answered without details."""


class BadRequest(RequestError):
    """HTTP 400. A field is wrong; `param` names it."""

    status, code, kind = 400, "invalid_value", "invalid_request_error"


class MissingKey(RequestError):
    """HTTP 401. The deployment wants an API key and the request has none."""

    status, code, kind = 401, "missing_api_key", "authentication_error"


class WrongKey(RequestError):
    """HTTP 403. The API key is not the deployment's."""

    status, code, kind = 403, "wrong_api_key", "permission_error"


class ForeignPage(RequestError):
    """HTTP 403. A loopback server without a key was asked by a web page, or under a name not its own."""

    status, code, kind = 403, "foreign_page", "permission_error"


class NotFound(RequestError):
    """HTTP 404. No such route, no such live request, or no such worker."""

    status, code, kind = 404, "not_found", "invalid_request_error"


class UnknownModel(RequestError):
    """HTTP 404. No model of that name is served here."""

    status, code, kind = 404, "model_not_found", "invalid_request_error"


class MethodNotAllowed(RequestError):
    """HTTP 405. The route exists, for another method."""

    status, code, kind = 405, "method_not_allowed", "invalid_request_error"


class DuplicateRequest(RequestError):
    """HTTP 409. A live request carries the same `rid`."""

    status, code, kind = 409, "duplicate_rid", "invalid_request_error"


class DuplicateWorker(RequestError):
    """HTTP 409. The address is that of a worker with another role."""

    status, code, kind = 409, "duplicate_worker", "invalid_request_error"


class OtherVersion(RequestError):
    """HTTP 409. The catalog has another version than the one that a change expects."""

    status, code, kind = 409, "other_version", "invalid_request_error"


class FixedCatalog(RequestError):
    """HTTP 409. The deployment serves one catalog, which nothing changes."""

    status, code, kind = 409, "fixed_catalog", "invalid_request_error"


class RequestTimeout(RequestError):
    """HTTP 408. The client sent its request too slowly."""

    status, code, kind, retryable = 408, "request_timeout", "timeout_error", True


class HeadTooLarge(RequestError):
    """HTTP 431. Request line and headers are larger than the deployment accepts."""

    status, code, kind = 431, "headers_too_large", "invalid_request_error"


class BodyTooLarge(RequestError):
    """HTTP 413. The body is larger than the deployment accepts."""

    status, code, kind = 413, "body_too_large", "invalid_request_error"


class WrongMediaType(RequestError):
    """HTTP 415. The body is not declared as JSON, or is encoded."""

    status, code, kind = 415, "wrong_media_type", "invalid_request_error"


class Cancelled(RequestError):
    """HTTP 499. The client went away, or asked for the abort."""

    status, code, kind = 499, "cancelled", "cancelled"


class InvalidLogits(RequestError):
    """HTTP 500. The model returned NaN or infinity for this request; its batch mates are unharmed."""

    status, code = 500, "invalid_logits"


class CrashedWorkers(RequestError):
    """HTTP 500. Workers died while they had this request, as many as one request may cost."""

    status, code = 500, "crashed_workers"


class WorkerLost(RequestError):
    """HTTP 502. A worker died or failed and no retry was left; `param` names the stage."""

    status, code, retryable, elsewhere = 502, "worker_lost", True, True


class Overloaded(RequestError):
    """HTTP 503 with Retry-After. A queue is full, or what waits leaves no time for this request."""

    status, code, kind, retryable, elsewhere = 503, "overloaded", "overloaded_error", True, True


class Preempted(RequestError):
    """Batch work had to make room for online work: the router tries it again, clients never see it."""

    status, code, kind, retryable, elsewhere = 503, "preempted", "overloaded_error", True, True


class NoWorkers(RequestError):
    """HTTP 503 with Retry-After. No compatible pair of workers is ready."""

    status, code, kind, retryable = 503, "no_workers", "overloaded_error", True


class Unhealthy(RequestError):
    """HTTP 503 with Retry-After. The deployment's own small request was not answered."""

    status, code, kind, retryable = 503, "unhealthy", "overloaded_error", True


class StoreUnavailable(RequestError):
    """HTTP 503 with Retry-After. The catalog's store cannot be read or written; nothing has changed."""

    status, code, retryable = 503, "store_unavailable", True


class Draining(RequestError):
    """HTTP 503 with Retry-After. The deployment is stopping and takes no new requests."""

    status, code, kind, retryable = 503, "draining", "overloaded_error", True


class DeadlineExceeded(RequestError):
    """HTTP 504. The deadline passed; the work is cancelled everywhere."""

    status, code, kind, retryable = 504, "deadline_exceeded", "timeout_error", True


def _leaves(cls: type[RequestError]) -> list[type[RequestError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _leaves(sub))]


BY_CODE: dict[str, type[RequestError]] = {cls.code: cls for cls in _leaves(RequestError)}


def request_error(code: str, message: str, param: str | None = None) -> RequestError:
    """The error that `code` names; an unknown code (a newer peer) becomes `InternalError`."""
    return BY_CODE.get(code, InternalError)(message, param)
