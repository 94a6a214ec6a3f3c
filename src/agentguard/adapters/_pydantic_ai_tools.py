"""What tools a PydanticAI agent has, and which agents its tools can reach.

What must stay true: a tool is read with the name and the schema that the model would see; what cannot be read is an
error or is named, never left out in silence.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from pydantic_ai import NativeOutput, PromptedOutput, RunContext, TextOutput, Tool, ToolOutput
from pydantic_ai.agent import AbstractAgent, WrapperAgent
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset, FunctionToolset
from pydantic_ai.usage import RunUsage

from agentguard.adapters._continuing import Definition, origin_of
from agentguard.adapters._reaching import mentioned
from agentguard.errors import ConfigurationError

DECLARED = "agentguard"
"""Key of a tool's metadata under which its author may declare settings as in ``@tool``."""


def function_of(tool: Any) -> object:
    """The function behind a tool of a toolset, where it can be found."""
    while (inner := getattr(tool, "source_tool", None)) is not None:
        tool = inner
    if isinstance(tool.toolset, FunctionToolset):
        known = tool.toolset.tools.get(tool.tool_def.name)
        if known is not None:
            return origin_of(known.function)
    return None


def definition_of(name: str, tool: Any) -> Definition:
    """A tool of a toolset as it is shown to the model."""
    function = function_of(tool)
    metadata = tool.tool_def.metadata
    declared = metadata.get(DECLARED) if function is not None and isinstance(metadata, Mapping) else None
    return Definition(
        name,
        tool.tool_def.description or "",
        tool.tool_def.parameters_json_schema,
        function,
        declared if isinstance(declared, Mapping) else {},
    )


def _choices(output_type: Any) -> Iterator[Any]:
    if isinstance(output_type, Sequence) and not isinstance(output_type, str):
        for one in output_type:
            yield from _choices(one)
    elif isinstance(output_type, NativeOutput | PromptedOutput):
        yield from _choices(output_type.outputs)
    elif isinstance(output_type, ToolOutput):
        yield from _choices(output_type.output)
    elif isinstance(output_type, TextOutput):
        yield output_type.output_function
    else:
        yield output_type


def output_functions(agent: AbstractAgent[Any, Any]) -> list[Callable[..., Any]]:
    """Functions that an agent runs on its last answer."""
    found = _choices(agent.output_type)
    return [f for f in found if isinstance(f, FunctionType | MethodType | partial)]


def _output_definition(function: Callable[..., Any]) -> Definition:
    made: Tool[Any] = Tool(function)
    return Definition(made.name, made.description or "", made.function_schema.json_schema, origin_of(function))


async def adefinitions(agents: Iterable[AbstractAgent[Any, Any]], deps: Any) -> list[Definition]:
    """The tools of agents, MCP servers and dynamic toolsets included, and their output functions."""
    found: list[Definition] = []
    for agent in agents:
        context: RunContext[Any] = RunContext(deps=deps, model=TestModel(), usage=RunUsage(), agent=agent)
        toolset = await CombinedToolset(list(agent.toolsets)).for_run(context)
        async with toolset:
            toolset = await toolset.for_run_step(context)
            tools = await toolset.get_tools(context)
            found += [definition_of(n, t) for n, t in tools.items() if t.tool_def.kind in ("function", "unapproved")]
        found += map(_output_definition, output_functions(agent))
    return found


def definitions(agents: Sequence[AbstractAgent[Any, Any]], deps: Any) -> list[Definition]:
    """The same for sync code, in a thread of its own, so that it works whether or not an event loop runs here."""
    found: list[Definition] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.extend(asyncio.run(adefinitions(agents, deps)))
        except BaseException as error:  # raised again where it is wanted
            failed.append(error)

    thread = threading.Thread(target=work, name="agentguard-reading-tools")
    thread.start()
    thread.join()
    if failed:
        if not isinstance(failed[0], Exception) or isinstance(failed[0], ConfigurationError):
            raise failed[0]
        raise ConfigurationError(
            f"AG693 the agent's tools cannot be read here: {type(failed[0]).__name__}: {failed[0]}. Read them with "
            "`await atools_of(agent, deps=...)` where the agent runs.",
            code="AG693",
        ) from failed[0]
    return found


# --- agents that can be reached ----------------------------------------------------------------------------------


def _functions(agent: AbstractAgent[Any, Any]) -> list[Callable[..., Any]]:
    found: list[Callable[..., Any]] = list(output_functions(agent))

    def visit(toolset: AbstractToolset[Any]) -> None:
        if isinstance(toolset, FunctionToolset):
            found.extend(tool.function for tool in toolset.tools.values())
        else:
            made = getattr(toolset, "toolset_func", None)  # a dynamic toolset
            if callable(made):
                found.append(made)

    for toolset in agent.toolsets:
        toolset.apply(visit)
    return found


def reachable(*agents: AbstractAgent[Any, Any]) -> list[AbstractAgent[Any, Any]]:
    """Agents, and those that their tools mention: in closures, globals, defaults, attributes, and one level of lists.

    An agent that a tool makes while it runs, or fetches from elsewhere, is not found.
    """
    found: list[AbstractAgent[Any, Any]] = []
    seen: set[int] = set()
    todo: list[Any] = list(agents)
    while todo:
        one = todo.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, AbstractAgent):
            found.append(one)
            if isinstance(one, WrapperAgent):
                todo.append(one.wrapped)
            todo += _functions(one)
        elif isinstance(one, FunctionType | MethodType | partial):
            module = getattr(one, "__module__", "") or ""
            if not module.startswith(("pydantic_ai", "agentguard")):
                todo += mentioned(one)
        elif isinstance(one, Mapping):
            todo += [v for v in one.values() if isinstance(v, AbstractAgent)]
        elif isinstance(one, list | tuple | set | frozenset):
            todo += [v for v in one if isinstance(v, AbstractAgent)]
    return found
