"""Which run governs the code that is executing now.

The gateway sets :data:`CURRENT` when a run is entered and resets it when the run is left; governed functions
read it and hand their call over. Nothing here falls back to an ungoverned call: no caller means a refusal.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol


class Caller(Protocol):
    """Carries out a governed call; the gateway's run is one.

    Called by every governed function with the ``Tool`` it was made from (bound, for methods; ``Any`` here, because
    the module of tools imports this one) and its arguments by parameter name, neither validated nor decided. Returns the tool's result, or raises a
    ``CallRefused``, ``ApprovalPending`` or ``CallFailed``.
    """

    def call_tool(self, tool: Any, arguments: dict[str, Any]) -> Any:
        """Carry out the call and return the tool's result."""
        ...

    async def acall_tool(self, tool: Any, arguments: dict[str, Any]) -> Any:
        """Carry out the call without blocking the event loop and return the tool's result."""
        ...


CURRENT: ContextVar[Caller | None] = ContextVar("agentguard_current_run", default=None)
"""The run of the code that is executing, or ``None`` outside every run."""
