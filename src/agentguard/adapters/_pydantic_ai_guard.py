"""The capability that puts an agent of PydanticAI behind the gateway: its tools, output functions, model requests.

What must stay true: it sits next to the tool and the model, so that nothing can change a call after it was decided;
a request whose hold is refused is not sent; whatever goes wrong in here keeps the tool from running.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.exceptions import ModelHTTPError, ModelRetry, ToolFailed
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.output import OutputContext
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset
from pydantic_core import to_jsonable_python

from agentguard.adapters._continuing import Continuation, Definition, athrough, call_id_of, current, tool_name
from agentguard.adapters._metering import Estimate, Metered, ahold
from agentguard.adapters._pydantic_ai_calls import Door, Output, handed_back, refusal_text
from agentguard.adapters._screening import Screen
from agentguard.adapters._wire import estimate_tokens
from agentguard.domain.calls import Suspended
from agentguard.errors import ApprovalPending, ConfigurationError
from agentguard.gateway.running import Run


class AgentGuard(AbstractCapability[Any]):
    """Puts the tools, output functions and model requests of an agent behind the gateway.

    Give it to a run of an agent (``capabilities=[AgentGuard(run)]``), or to the agent when it is made
    (``Agent(capabilities=[AgentGuard()])``); without ``run`` the run that is current when the agent runs counts,
    which is how agents inside tools get theirs.

    Args:
        run: The run that governs, or ``None`` for the current one.

    Attributes:
        id: One per agent run; one given to the run replaces the agent's own.
    """

    id: str | None = "agentguard"

    def __init__(self, run: Run | None = None) -> None:
        super().__init__()
        self.id = "agentguard"
        self.run = run
        self._behind: dict[str, AbstractToolset[Any]] = {}
        self._meter: Metered | None = None
        self._output: Output | None = None

    # Two runs are two capabilities, whatever their fields say.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """None: a run cannot be written into an agent's specification."""
        return None

    def get_ordering(self) -> CapabilityOrdering:
        """Next to the tool and the model: nothing can change a call after it has been decided."""
        return CapabilityOrdering(position="innermost")

    async def for_run(self, ctx: RunContext[Any]) -> AgentGuard:
        """The capability of one run of the agent."""
        return AgentGuard(current(self.run))

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        """The agent's tools with the gateway in front."""
        return Door(toolset, current(self.run), self._behind)

    # --- tools

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        """Leave out what the run may not see, and what would run outside of the agent."""
        run = current(self.run)
        seen = run._gateway.visible(run)
        return [t for t in tool_defs if tool_name(run, t.name) in seen and t.kind != "external"]

    async def before_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any]
    ) -> dict[str, Any]:
        """Refuse tools that another capability has put in front of the gateway."""
        tools = ctx.tool_manager.tools if ctx.tool_manager is not None else None
        tool = tools.get(call.tool_name) if tools is not None else None
        if tool is None or self._behind.get(call.tool_name) is not tool.toolset:
            raise ToolFailed(refusal_text("This tool cannot be governed, so it was not run."))
        return args

    # --- output functions

    async def before_output_process(self, ctx: RunContext[Any], *, output_context: OutputContext, output: Any) -> Any:
        """Refuse what another capability has changed after the gateway has decided."""
        if self._output is not None and not self._output.permits(output):
            raise ConfigurationError(
                "AG691 another capability changed the output after it was decided. It was not processed; change outputs "
                "in validation hooks.",
                code="AG691",
            )
        return output

    async def wrap_output_process(
        self,
        ctx: RunContext[Any],
        *,
        output_context: OutputContext,
        output: Any,
        handler: Callable[[Any], Awaitable[Any]],
    ) -> Any:
        """Output functions are tools: they run through the gateway, and never on partial output."""
        if not output_context.has_function:
            return await handler(output)
        if ctx.partial_output:
            raise ModelRetry("Output functions run on complete output only.")
        run = current(self.run)
        this = Output.of(output_context, output)

        async def proceed(effective: dict[str, Any]) -> Any:
            self._output = this
            try:
                result = await handler(this.own(effective))
            finally:
                self._output = None
            return next_.keep(to_jsonable_python(result, serialize_unknown=True), result)

        next_ = Continuation(tool_name(run, this.name), Definition(this.name, "", {}), proceed)
        call = output_context.tool_call
        outcome = await athrough(run, next_, this.json, call_id_of(run, call.tool_call_id if call else None))
        if isinstance(outcome, Suspended):
            raise ApprovalPending(outcome)
        try:
            return handed_back(outcome, next_)
        except ToolFailed as failed:  # a refused output is answered like a wrong one
            raise ModelRetry(str(failed)) from failed

    # --- model requests

    def _screened(self, request: ModelRequestContext) -> ModelRequestContext:
        parameters = request.model_request_parameters
        if not parameters.native_tools:
            return request
        screen = Screen(current(self.run))
        kept = [t for t in parameters.native_tools if screen.hosted(t.kind, to_jsonable_python(t, fallback=repr))]
        return replace(request, model_request_parameters=replace(parameters, native_tools=kept))

    async def _hold(self, request: ModelRequestContext) -> None:
        settings: Mapping[str, Any] = request.model_settings or {}
        most = settings.get("max_tokens")
        said = [(getattr(p, "content", None), getattr(p, "args", None)) for m in request.messages for p in m.parts]
        shown = [
            (t.name, t.description, t.parameters_json_schema) for t in request.model_request_parameters.function_tools
        ]
        sent = estimate_tokens(to_jsonable_python([said, shown], fallback=repr, bytes_mode="base64"))
        name = request.model.model_name or "unknown"
        self._meter = await ahold(current(self.run), Estimate(name, sent, most if isinstance(most, int) else 1))

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Take hosted tools out and hold the budget; what cannot be paid is not sent.

        Raises:
            BudgetExceeded: A limit is in the way.
            RunKilled: A kill switch is on, or the run has ended.
        """
        request_context = self._screened(request_context)
        await self._hold(request_context)
        return request_context

    async def prepare_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """The same before every further attempt that another capability asks for."""
        request_context = self._screened(request_context)
        if self._meter is None:
            await self._hold(request_context)
        return request_context

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        """Charge what the provider reports."""
        await self._charge(response)
        return response

    async def _charge(self, response: ModelResponse) -> None:
        meter, self._meter = self._meter, None
        if meter is not None:
            if response.usage.has_values():
                meter.report(response.usage.input_tokens, response.usage.output_tokens)
            await meter.asettle()

    async def wrap_model_request(
        self,
        ctx: RunContext[Any],
        *,
        request_context: ModelRequestContext,
        handler: Callable[[ModelRequestContext], Awaitable[ModelResponse]],
    ) -> ModelResponse:
        """Give back or keep the hold of a request that came to nothing."""
        try:
            response = await handler(request_context)
            await self._charge(response)  # old versions call the hook after a request only when this one has ended
            return response
        except ModelHTTPError:  # the provider says that it did not do the work
            meter, self._meter = self._meter, None
            if meter is not None:
                await meter.arelease()
            raise
        finally:
            meter, self._meter = self._meter, None
            if meter is not None:
                await meter.asettle()
