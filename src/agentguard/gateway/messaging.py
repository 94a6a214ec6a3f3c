"""Signed messages of a run: what one agent may believe that another has said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentguard._drive.ports import draw
from agentguard.domain.context import RunContext
from agentguard.domain.operations import GetRun, PutState
from agentguard.domain.runs import RunRecord
from agentguard.domain.usage import NANO
from agentguard.errors import ConfigurationError, MessageError, StoreConflict
from agentguard.naming import check_id
from agentguard.runs.messages import SignedMessage, is_authentic, signature

if TYPE_CHECKING:
    from agentguard.gateway.door import ToolGateway

MAX_AGE_S = 3600.0
"""Messages older than this are not accepted, unless asked for."""

_AHEAD_S = 60.0


class Messages:
    """Signs messages of one run's agent, and verifies those that are meant for it."""

    def __init__(self, gateway: ToolGateway, context: RunContext) -> None:
        self._gateway = gateway
        self._context = context

    def _key(self) -> bytes:
        key = self._gateway.message_key
        if key is None:
            raise ConfigurationError("AG140 messages need a key: ToolGateway(..., message_key=...).", code="AG140")
        return key

    def sign(self, body: Any, *, to: str) -> SignedMessage:
        """Make a message of this run's agent to the agent ``to``.

        Args:
            body: A JSON value.
            to: Name of the agent it is meant for.

        Raises:
            MessageError: The body is not a JSON value.
            ConfigurationError: The gateway has no message key, or ``to`` is no name.
        """
        context = self._context
        message = SignedMessage(
            context.tenant, context.agent, context.run_id, check_id("agent", to), body, self._gateway._now_ns(), draw()
        )
        return replace(message, signature=signature(self._key(), message))

    def _checked(self, message: SignedMessage, max_age_s: float) -> GetRun:
        context = self._context
        if not is_authentic(self._key(), message):
            raise MessageError("The message is not authentic: its signature is not of this service.")
        if message.tenant != context.tenant:
            raise MessageError("The message belongs to another tenant.")
        if message.recipient != context.agent:
            raise MessageError(f"The message is meant for another agent than {context.agent}.")
        age = (self._gateway._now_ns() - message.sent_at) / NANO
        if age > max_age_s or age < -_AHEAD_S:
            raise MessageError("The message is too old, or from the future.")
        return GetRun(message.tenant, message.run_id)

    def _known(self, message: SignedMessage, record: RunRecord | None) -> PutState:
        if record is None or record.context.agent != message.sender:
            raise MessageError("The message does not come from the run that it names.")
        context = self._context
        return PutState(context.tenant, context.run_id, f"message/{message.nonce}", message.sender, 0, context.agent)

    def verify(self, message: SignedMessage | str | bytes, *, max_age_s: float = MAX_AGE_S) -> Any:
        """Return the body of a message that was signed by this service, for this run's agent, and not seen before.

        Raises:
            MessageError: It was changed, forged, meant for somebody else, too old, or verified before by an agent
                of this task.
        """
        read = message if isinstance(message, SignedMessage) else SignedMessage.from_json(message)
        record = self._gateway._perform(self._checked(read, max_age_s))
        try:
            self._gateway._perform(self._known(read, record))
        except StoreConflict as error:
            raise MessageError("The message was received before.") from error
        return read.body

    async def averify(self, message: SignedMessage | str | bytes, *, max_age_s: float = MAX_AGE_S) -> Any:
        """The same for async code."""
        read = message if isinstance(message, SignedMessage) else SignedMessage.from_json(message)
        record = await self._gateway._aperform(self._checked(read, max_age_s))
        try:
            await self._gateway._aperform(self._known(read, record))
        except StoreConflict as error:
            raise MessageError("The message was received before.") from error
        return read.body
