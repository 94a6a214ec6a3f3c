"""Messages between agents: who said what to whom, signed.

HMAC-SHA256 (RFC 2104) over the length-prefixed parts of a message with a key that only the service has. What must
stay true: a signature covers every field, so that none can be exchanged; nothing here knows the time or a store,
so freshness and single use are the caller's to check.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from typing import Any

from agentguard.canonical import joined, tagged
from agentguard.errors import ConfigurationError, MessageError

MIN_KEY = 32
"""Shortest key in bytes: as long as the digest (RFC 2104 section 3)."""

_DOMAIN = b"agentguard message v1\n"
_FIELDS = ("body", "nonce", "recipient", "run_id", "sender", "sent_at", "signature", "tenant")


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A message from one agent to another.

    Attributes:
        tenant: Owner of both runs.
        sender: Agent that says it.
        run_id: Run of the sender.
        recipient: Agent it is meant for.
        body: What is said, a JSON value.
        sent_at: ns since the epoch.
        nonce: 32 hex digits; a message counts once.
        signature: HMAC-SHA256 (hex) over everything above.
    """

    tenant: str
    sender: str
    run_id: str
    recipient: str
    body: Any
    sent_at: int
    nonce: str
    signature: str = ""

    def to_json(self) -> str:
        """The message as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> SignedMessage:
        """Read a message.

        Raises:
            MessageError: The text is no message.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MessageError("This is no message: the text is not JSON.") from error
        if not isinstance(value, dict) or tuple(sorted(value)) != _FIELDS:
            raise MessageError(f"This is no message: it must have exactly the fields {', '.join(_FIELDS)}.")
        for name in _FIELDS:
            wanted = int if name == "sent_at" else object if name == "body" else str
            if not isinstance(value[name], wanted) or (isinstance(value[name], bool) and name == "sent_at"):
                raise MessageError(f"This is no message: {name} has the wrong type.")
        return cls(**value)


def check_key(key: object) -> bytes:
    """The key, if it is one.

    Raises:
        ConfigurationError: It is not at least 32 bytes.
    """
    if not isinstance(key, bytes) or len(key) < MIN_KEY:
        raise ConfigurationError(
            f"AG140 message_key must be at least {MIN_KEY} random bytes, for example secrets.token_bytes(32).",
            code="AG140",
        )
    return key


def signature(key: bytes, message: SignedMessage) -> str:
    """The signature that ``message`` must have.

    Raises:
        MessageError: The body is not a JSON value.
    """
    try:
        body = tagged(message.body)
    except ValueError as error:
        raise MessageError(f"The body of a message must be a JSON value: {error}") from error
    head = joined(
        message.tenant, message.sender, message.run_id, message.recipient, str(message.sent_at), message.nonce
    )
    return hmac.new(key, _DOMAIN + head.encode("utf-8", "surrogatepass") + b"\n" + body, hashlib.sha256).hexdigest()


def is_authentic(key: bytes, message: SignedMessage) -> bool:
    """Whether the signature of ``message`` is the right one; compared in constant time."""
    try:
        wanted = signature(key, message)
    except MessageError:
        return False
    return hmac.compare_digest(wanted.encode(), message.signature.encode("utf-8", "surrogatepass"))
