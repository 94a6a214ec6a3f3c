"""Word to the outside that somebody has to decide; the decision comes back on another way.

What must stay true: a message leaves only over TLS or to this machine, is never redirected, and is signed together
with its id and time; attempts and time are bounded; a message that nobody took raises, so that no call waits for a
person who was never told.

Body: CloudEvents 1.0 in structured JSON mode (https://github.com/cloudevents/spec, ``json-format.md``). Signature:
Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks, ``spec/standard-webhooks.md``):
HMAC-SHA256 over ``id.timestamp.body``, base64, headers ``webhook-id``, ``webhook-timestamp``, ``webhook-signature``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from agentguard.approval.describing import describe
from agentguard.approval.text import own
from agentguard.domain.approvals import ApprovalRequest, Verdict
from agentguard.domain.usage import NANO
from agentguard.errors import ApprovalError, ConfigurationError

NOT_DELIVERED = "AG645"
BAD_SETTING = "AG647"
EVENT_TYPE = "dev.agentguard.approval.requested"
TOLERANCE_S = 300
"""Age in seconds beyond which a receiver should not believe a message (Standard Webhooks: "a few minutes")."""


def _key(secret: str) -> bytes:
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret[6:], validate=True)
        except binascii.Error:
            raise ConfigurationError(
                "what follows whsec_ in a webhook secret must be base64", code=BAD_SETTING
            ) from None
    else:
        key = secret.encode()
    if len(key) < 16:
        raise ConfigurationError("a webhook secret needs at least 16 bytes", code=BAD_SETTING)
    return key


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of ``webhook-signature`` for a message.

    Args:
        secret: ``whsec_`` and base64, or any text; at least 16 bytes.
        message_id: Value of ``webhook-id``.
        timestamp_s: Value of ``webhook-timestamp``, seconds since the epoch.
        body: The message.
    """
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()


def is_authentic(secret: str, headers: Mapping[str, str], body: bytes, *, now_s: float) -> bool:
    """Whether a received message was signed with ``secret`` within the last (or next) :data:`TOLERANCE_S` seconds.

    Args:
        secret: As the sender has it.
        headers: Headers of the request, with names in any case.
        body: The bytes as received, before any parsing.
        now_s: The receiver's time, seconds since the epoch.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    stamp = lower.get("webhook-timestamp", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 15) or abs(now_s - int(stamp)) > TOLERANCE_S:
        return False
    expected = sign(secret, lower.get("webhook-id", ""), int(stamp), body)
    given = lower.get("webhook-signature", "").split()
    return any(hmac.compare_digest(expected.encode(), one.encode("utf-8", "replace")) for one in given)


def _is_plain(url: str) -> bool:
    if not (url.isascii() and url.isprintable()) or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # reading the port checks it
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns // NANO, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class WebhookApprover:
    """Posts a signed notification and leaves the decision to whoever receives it.

    ``decide`` always answers ``None``: the call is suspended, and the receiver decides through
    ``gateway.approvals`` or the command line.

    Args:
        url: Where to post; ``https``, or ``http`` to this machine.
        secret: Shared with the receiver: ``whsec_`` and base64, or any text of at least 16 bytes.
        attempts: Posts in total; network errors, 429 and 5xx answers are tried again.
        timeout_s: Longest silence of the receiver in one attempt, in seconds.
        deadline_s: No attempt begins later than this many seconds after the first.
        wait_s: Wait before the second attempt, in seconds; doubles each time.
        source: ``source`` attribute of the event.
        include_arguments: Send the arguments along; without them the receiver looks them up by id.
        allow_http: Permit ``http`` to other machines, where everybody on the way can read along.
        clock: Seconds since the epoch, for the signature.
        sleep: Called between attempts.

    Raises:
        ConfigurationError: ``AG647``; URL or secret cannot be used.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        attempts: int = 3,
        timeout_s: float = 5.0,
        deadline_s: float = 15.0,
        wait_s: float = 0.2,
        source: str = "agentguard",
        include_arguments: bool = True,
        allow_http: bool = False,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        parts = urlsplit(url) if _is_plain(url) else None
        if parts is None:
            raise ConfigurationError("the webhook needs a URL such as https://example.org/hook", code=BAD_SETTING)
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError("the webhook's URL must not hold a user or a password", code=BAD_SETTING)
        host = parts.hostname or ""
        self._local = _is_loopback(host)
        if parts.scheme == "http" and not self._local and not allow_http:
            raise ConfigurationError(
                f"http://{host} would send approvals in the clear; use https, or allow_http=True in a closed network",
                code=BAD_SETTING,
            )
        _key(secret)
        self._url = url
        self._shown = f"{parts.scheme}://{parts.netloc}"  # path and query may hold a token of their own
        self._secret = secret
        self._attempts = max(attempts, 1)
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._wait_s = wait_s
        self._source = source
        self._include = include_arguments
        self._clock = clock
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"WebhookApprover({self._shown})"

    def event(self, request: ApprovalRequest) -> dict[str, Any]:
        """The CloudEvent for a request."""
        data: dict[str, Any] = {
            "approval_id": request.id,
            "tenant": request.tenant,
            "environment": request.environment,
            "agent": request.agent,
            "user": request.user,
            "run_id": request.run_id,
            "call_id": request.call_id,
            "tool": request.tool,
            "risk": request.risk,
            "effect": request.effect,
            "rules": list(request.rules),
            "reasons": list(request.reasons),
            "budget_effect": dict(request.budget_effect),
            "roles": [list(roles) for roles in request.terms.role_sets],
            "quorum": request.terms.quorum,
            "digest": request.digest,
            "expires_at": _time(request.expires_at),
        }
        if self._include:
            data["arguments"] = own(request.arguments)
            data["proposed"] = own(request.proposed)
            data["text"] = describe(request)
        return {
            "specversion": "1.0",
            "id": request.id,
            "source": self._source,
            "type": EVENT_TYPE,
            "subject": request.tool,
            "time": _time(request.created_at),
            "datacontenttype": "application/json",
            "data": data,
        }

    def decide(self, request: ApprovalRequest) -> Verdict | None:
        """Post the notification; the answer is always "not yet".

        Raises:
            ApprovalError: ``AG645``; nobody took it.
        """
        body = json.dumps(self.event(request), allow_nan=False).encode()
        begun = time.monotonic()
        problem = ""
        for attempt in range(1, self._attempts + 1):
            if attempt > 1:
                self._sleep(self._wait_s * 2.0 ** (attempt - 2))
            left = self._deadline_s - (time.monotonic() - begun)
            if left <= 0:
                problem += f", gave up after {self._deadline_s:g} s"
                break
            problem, again = self._post(request.id, body, min(self._timeout_s, left))
            if not problem:
                return None
            if not again:
                break
        raise ApprovalError(
            f"the approval webhook {self._shown} did not take {request.id}: {problem}. The request is pending and "
            "can be decided through gateway.approvals; the call is refused because nobody was told",
            code=NOT_DELIVERED,
        )

    def _post(self, message_id: str, body: bytes, timeout_s: float) -> tuple[str, bool]:
        """Post once; answer what went wrong (``""``: nothing) and whether another attempt may help."""
        import http.client
        import urllib.error
        import urllib.request

        class Unmoved(urllib.request.HTTPRedirectHandler):
            """A redirect would carry the message to a place that nobody configured."""

            def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:  # noqa: ARG002
                return None

        handlers: list[urllib.request.BaseHandler] = [Unmoved()]
        if self._local:
            handlers.append(urllib.request.ProxyHandler({}))
        stamp = int(self._clock())
        post = urllib.request.Request(  # noqa: S310 - the scheme was checked at construction
            self._url,
            data=body,
            method="POST",
            headers={
                "Content-Type": "application/cloudevents+json; charset=utf-8",
                "User-Agent": "agentguard",
                "webhook-id": message_id,
                "webhook-timestamp": str(stamp),
                "webhook-signature": sign(self._secret, message_id, stamp, body),
            },
        )
        try:
            with urllib.request.build_opener(*handlers).open(post, timeout=timeout_s):
                return "", False  # urllib raises for every status but 2xx
        except urllib.error.HTTPError as error:
            with error:
                return f"status {error.code}", error.code == 429 or error.code >= 500
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            return f"{type(reason).__name__}", True


class AsyncWebhookApprover:
    """The twin of :class:`WebhookApprover` for the event loop; takes the same arguments."""

    def __init__(self, url: str, secret: str, **settings: Any) -> None:
        self._blocking = WebhookApprover(url, secret, **settings)

    def __repr__(self) -> str:
        return f"Async{self._blocking!r}"

    async def decide(self, request: ApprovalRequest) -> Verdict | None:
        """Post the notification from a thread; the answer is always "not yet".

        Raises:
            ApprovalError: ``AG645``; nobody took it.
        """
        import asyncio

        return await asyncio.to_thread(self._blocking.decide, request)
