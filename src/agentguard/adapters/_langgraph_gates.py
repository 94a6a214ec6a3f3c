"""Which tools of graphs, agents and tools would run past the gateway.

What must stay true: nothing is run and nothing is changed; what cannot be looked into is not called governed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool
from langgraph.pregel import Pregel

from agentguard.adapters._continuing import current
from agentguard.adapters._langgraph_calls import acarry_out, carry_out
from agentguard.adapters._langgraph_tools import GatewayTool
from agentguard.adapters._reaching import mentioned

if TYPE_CHECKING:
    from agentguard.gateway import Run


class Gate:
    """The gateway in front of the tools of an agent or a tool node.

    Args:
        run: The run that governs, or ``None`` for the current one.
        watched: Watch what the tools do meanwhile.
    """

    def __init__(self, run: Run | None, watched: bool) -> None:
        self.run = run
        self.watched = watched

    def wrap_tool_call(self, request: Any, execute: Callable[[Any], Any]) -> Any:
        """Bring a tool call to the gateway."""
        return carry_out(current(self.run), request, execute, watched=self.watched)

    async def awrap_tool_call(self, request: Any, execute: Callable[[Any], Awaitable[Any]]) -> Any:
        """The same for async code."""
        return await acarry_out(current(self.run), request, execute, watched=self.watched)


def _is_gated(node: Any) -> bool:
    todo: list[Any] = [getattr(node, "_wrap_tool_call", None), getattr(node, "_awrap_tool_call", None)]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        owner = getattr(one, "__self__", None)
        if isinstance(owner, Gate):
            return True
        todo.append(getattr(one, "__wrapped__", None))
        if isinstance(one, FunctionType | partial):
            todo += [m for m in mentioned(one) if isinstance(m, FunctionType | MethodType | partial)]
    return False


def _graph_nodes(graph: Pregel[Any, Any, Any, Any]) -> Iterator[tuple[str, Any]]:
    builder = getattr(graph, "builder", None)
    for name, spec in (builder.nodes if builder is not None else {}).items():
        yield name, getattr(spec, "runnable", spec)


def ungoverned(*graphs: Any) -> tuple[str, ...]:
    """Tools in reach of graphs, agents and tools that would run past the gateway, each with its place.

    Found are tool nodes without the gateway, tools that a node or another tool mentions by itself, and the same in
    graphs that those mention (closures, globals, defaults, attributes).
    """
    found: list[str] = []
    seen: set[tuple[str, int]] = set()
    todo: list[tuple[str, Any]] = [(getattr(g, "name", None) or type(g).__name__, g) for g in graphs]
    while todo:
        place, one = todo.pop(0)
        key = (place if isinstance(one, BaseTool) else "", id(one))
        if key in seen:
            continue
        seen.add(key)
        if isinstance(one, Pregel):
            todo += [(f"{place}.{name}", node) for name, node in _graph_nodes(one)]
        elif isinstance(getattr(one, "tools_by_name", None), Mapping):  # a tool node, of LangGraph or LangChain
            if not _is_gated(one):
                found += [f"{place}: {name}" for name, t in one.tools_by_name.items() if not isinstance(t, GatewayTool)]
            todo += [(f"{place}.{name}", f) for name, t in one.tools_by_name.items() for f in _functions(t)]
        elif isinstance(one, BaseTool):
            if not isinstance(one, GatewayTool):
                found.append(f"{place}: {one.name}")
                todo += [(f"{place}.{one.name}", f) for f in _functions(one)]
        elif isinstance(one, FunctionType | MethodType | partial):
            if not (getattr(one, "__module__", "") or "").startswith(("langchain", "langgraph", "agentguard")):
                todo += [(place, m) for m in mentioned(one)]
        else:
            functions = [getattr(one, key, None) for key in ("func", "afunc", "bound")]
            if any(functions) and type(one).__module__.startswith("langgraph"):
                todo += [(place, f) for f in functions if f is not None]
    return tuple(dict.fromkeys(found))


def _functions(tool: BaseTool) -> list[Any]:
    return [f for f in (getattr(tool, "func", None), getattr(tool, "coroutine", None)) if f is not None]
