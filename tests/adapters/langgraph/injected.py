"""A tool with injected parameters; its annotations are no strings, which old versions of LangGraph cannot read."""

from typing import Annotated, Any

from langchain.tools import InjectedState
from langchain_core.tools import BaseTool, InjectedToolCallId, tool


def looking(got: list[Any]) -> BaseTool:
    @tool
    def look(
        query: str, state: Annotated[dict[str, Any], InjectedState], call: Annotated[str, InjectedToolCallId]
    ) -> str:
        """Look around."""
        got.append((query, len(state["messages"]), call))
        return "found"

    return look
