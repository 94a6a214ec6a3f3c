"""State that the agents of one task share: versioned, compare-and-set, with who changed what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from agentguard.canonical import dumps
from agentguard.domain.context import RunContext
from agentguard.domain.operations import GetState, ListState, PutState
from agentguard.domain.runs import StateEntry
from agentguard.errors import ConfigurationError
from agentguard.naming import check_id

if TYPE_CHECKING:
    from agentguard.gateway.door import ToolGateway


class SharedState:
    """Versioned key-value state of one task: every write names the version it replaces.

    Several agents that work on one task see one truth: a write that is based on an old version is a
    ``StoreConflict``, never a silent overwrite. Who changed what is in the audit trail.
    """

    def __init__(self, gateway: ToolGateway, context: RunContext) -> None:
        self._gateway = gateway
        self._context = context

    def _get(self, key: str) -> GetState:
        check_id("state key", key)
        return GetState(self._context.tenant, self._context.run_id, key)

    def get(self, key: str) -> StateEntry | None:
        """The value with its version, or ``None``."""
        return self._gateway._perform(self._get(key))

    async def aget(self, key: str) -> StateEntry | None:
        """The same for async code."""
        return await self._gateway._aperform(self._get(key))

    def items(self) -> tuple[StateEntry, ...]:
        """Everything, sorted by key."""
        return self._gateway._perform(ListState(self._context.tenant, self._context.run_id))

    async def aitems(self) -> tuple[StateEntry, ...]:
        """The same for async code."""
        return await self._gateway._aperform(ListState(self._context.tenant, self._context.run_id))

    def _put(self, key: str, value: Any, expected: int) -> PutState:
        check_id("state key", key)
        if isinstance(expected, bool) or not isinstance(expected, int) or expected < 0:
            raise ConfigurationError("AG133 expected must be the version you read, or 0 for a new key.", code="AG133")
        try:
            plain = from_json(dumps(value))
        except ValueError as error:
            raise ConfigurationError(f"AG133 state {key!r} is not a JSON value: {error}", code="AG133") from error
        context = self._context
        return PutState(context.tenant, context.run_id, key, plain, expected, context.agent)

    def put(self, key: str, value: Any, *, expected: int) -> StateEntry:
        """Write a key.

        Args:
            key: Name.
            value: JSON value.
            expected: Version that was read; 0 when the key must not exist yet.

        Raises:
            StoreConflict: Somebody else wrote in between.
        """
        return self._gateway._perform(self._put(key, value, expected))

    async def aput(self, key: str, value: Any, *, expected: int) -> StateEntry:
        """The same for async code."""
        return await self._gateway._aperform(self._put(key, value, expected))
