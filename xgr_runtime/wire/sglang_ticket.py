"""The ticket with which the router sends a prompt to a stock SGLang server.

SGLang's HTTP route knows nothing of attempts and data links, but hands `bootstrap_host`, a string of the
client's choice, to the server's KV transfer backend. So the ticket travels there.
"""

import base64
import binascii

import msgspec

from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.messages import AttemptId, Name, PromptTokens, Seconds

_PREFIX = "xgr1."
_MAX_CHARS = 4096


class SglangTicket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which attempt a prompt belongs to and where its KV goes."""

    id: AttemptId
    data_address: Name
    prompt_tokens: PromptTokens
    timeout: Seconds  # left

    def to_text(self) -> str:
        """ASCII letters, digits and `.-_` only: SGLang joins it to a port with a colon."""
        return _PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> "SglangTicket":
        """Raises `BadRequest` when it is none."""
        if not text.startswith(_PREFIX) or len(text) > _MAX_CHARS:
            raise BadRequest(
                "bootstrap_host carries no ticket: requests to this server come from an xgr router"
            )
        body = text.removeprefix(_PREFIX)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars="-_", validate=True)
            return msgspec.msgpack.decode(raw, type=cls)
        except (binascii.Error, ValueError, RecursionError, msgspec.DecodeError) as error:
            raise BadRequest(f"the ticket in bootstrap_host cannot be read: {error}") from None


def request_id(id: AttemptId) -> str:
    """What SGLang calls this attempt. It aborts by prefix, so no id may begin with another one."""
    return f"xgr-{id.router:x}-{id.request}-{id.attempt}."
