"""The facade: one gateway object that a service owns, and the handles of its runs."""

from agentguard.gateway.door import ToolGateway
from agentguard.gateway.running import LlmReservation, Run, SharedState

__all__ = ["LlmReservation", "Run", "SharedState", "ToolGateway"]
