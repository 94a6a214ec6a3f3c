"""The facade: one gateway object that a service owns, and the handles of its runs."""

from agentguard.gateway.door import ToolGateway
from agentguard.gateway.metering import LlmReservation
from agentguard.gateway.running import Run
from agentguard.gateway.sharing import SharedState

__all__ = ["LlmReservation", "Run", "SharedState", "ToolGateway"]
