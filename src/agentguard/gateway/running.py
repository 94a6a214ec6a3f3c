"""The live handle of a run: where tool calls, model calls and steps of one task are made."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import Token
from dataclasses import dataclass, replace
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic_core import from_json, to_json

from agentguard._flow.rulebook import Job, RunView
from agentguard.budget import ledger
from agentguard.budget.budget import Budget, meters_for
from agentguard.canonical import dumps
from agentguard.domain.calls import Completed, Outcome, Refused, Suspended
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import StopReason
from agentguard.domain.events import Event, EventKind
from agentguard.domain.operations import (
    Append,
    EndRun,
    GetRun,
    GetState,
    ListApprovals,
    ListCalls,
    ListState,
    OpenRun,
    Operation,
    PutState,
    ReadAccount,
    Reserve,
    Reserved,
    RunOpened,
    Settle,
)
from agentguard.domain.runs import ActionTaken, ApprovalFilter, RunRecord, StateEntry, StepKind
from agentguard.domain.usage import (
    COST,
    COUNTER_PREFIX,
    INPUT_TOKENS,
    NANO,
    OUTPUT_TOKENS,
    STEPS,
    TOKENS,
    TOOL_CALLS,
    TOOL_PREFIX,
    Amounts,
    Usage,
)
from agentguard.errors import (
    ApprovalPending,
    CallFailed,
    CallRefused,
    ConfigurationError,
    OutputContractError,
    RunError,
    StoreConflict,
)
from agentguard.gateway.raising import refusal, value_of
from agentguard.naming import check_id
from agentguard.resilience.keys import call_key
from agentguard.runs.report import RunReport
from agentguard.tools.current import CURRENT
from agentguard.units import nano_usd

if TYPE_CHECKING:
    from agentguard.domain.runs import RunStatus
    from agentguard.gateway.door import ToolGateway
    from agentguard.tools.tool import Tool

UNPRICED = COUNTER_PREFIX + "unpriced_model_calls"
MODEL_LEASE_S = 900.0


class Run:
    """One task of one agent, from ``with gateway.run(...) as run:`` until it ends.

    While the run is entered, governed functions that are called (in this thread or task, and in what it
    starts) belong to it. Methods that talk to the store have an ``a``-prefixed twin for async code.

    Attributes:
        context: The frozen identity of the run.
    """

    def __init__(self, gateway: ToolGateway, record: RunRecord, budget: Budget | None, *, opened: bool) -> None:
        self._gateway = gateway
        self._record = record
        self._budget = budget
        self._opened = opened
        self._token: Token[Any] | None = None
        self._ids = itertools.count(1)
        self._nonce = gateway._draw()[:8]
        self._warnings: list[str] = []
        self._ended: RunRecord | None = None
        self._llm_ids = itertools.count(1)
        context = record.context
        prefix = call_key(context.tenant, context.run_id, "")
        self._view = RunView(
            context,
            record.meters,
            prefix[: -len("0:")],
            record.labels,
            record.version,
            budget.max_repeats if budget is not None else None,
        )
        self.context: RunContext = context

    def __repr__(self) -> str:
        return f"<Run {self.context.run_id} of {self.context.agent}>"

    @property
    def run_id(self) -> str:
        """Id of the run, unique within its tenant."""
        return self.context.run_id

    @property
    def labels(self) -> tuple[str, ...]:
        """Data labels of the run as last seen."""
        return self._view.labels

    @property
    def state(self) -> SharedState:
        """State shared by all agents that work on the task (this run, its ancestors and their children)."""
        return SharedState(self._gateway, self.context)

    # --- opening and closing -----------------------------------------------------------------------

    def _opening(self) -> OpenRun:
        context = self.context
        contract = self._record.contract
        facts: dict[str, str | int | bool | None] = {
            "agent": context.agent,
            "environment": context.environment,
            "parent": context.parent,
            "policy": self._gateway.policy_digest,
            "session": context.session,
            "team": context.team,
            "user": context.user,
        }
        body = to_json(
            {
                "constraints": contract.constraints,
                "context": contract.context,
                "output_spec": contract.output_spec,
                "roles": context.roles,
                "scope": context.scope,
                "task": contract.task,
            }
        )
        event = Event("run.opened", facts, self._gateway._clean(body))
        seconds = self._budget.seconds_ns if self._budget is not None else None
        return OpenRun(self._record, seconds, event)

    def _take(self, answer: RunOpened) -> None:
        if answer.refused is not None:
            turned = answer.refused
            raise refusal(Refused(turned.reason, None, "The run was not opened.", False, turned.detail, "", "AG623"))
        self._record = answer.record
        self._view.labels, self._view.version = answer.record.labels, answer.record.version
        self._opened = True

    def open(self) -> Self:
        """Make the run durable. Entering the run does this too.

        Raises:
            RunKilled: A kill switch is on, or the parent run has ended.
            StoreConflict: The run id is taken.
        """
        if not self._opened:
            self._gateway._check_open()
            self._take(self._gateway._perform(self._opening()))
        return self

    async def aopen(self) -> Self:
        """The same for async code."""
        if not self._opened:
            self._gateway._check_open()
            self._take(await self._gateway._aperform(self._opening()))
        return self

    def __enter__(self) -> Self:
        self.open()
        self._token = CURRENT.set(self)
        return self

    async def __aenter__(self) -> Self:
        await self.aopen()
        self._token = CURRENT.set(self)
        return self

    def _leave(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            with suppress(ValueError):  # left in another context than entered: nothing to reset there
                CURRENT.reset(token)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if self._ended is not None:
            return
        record = self._gateway._perform(GetRun(self.context.tenant, self.run_id))
        operation = self._closing(record, error)
        if operation is not None:
            self._close(self._gateway._perform(operation))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if self._ended is not None:
            return

        async def close() -> None:
            record = await self._gateway._aperform(GetRun(self.context.tenant, self.run_id))
            operation = self._closing(record, error)
            if operation is not None:
                self._close(await self._gateway._aperform(operation))

        # A cancelled task must still be able to close its run.
        await asyncio.shield(self._gateway._detach(close()))

    def _closing(self, record: RunRecord | None, error: BaseException | None) -> EndRun | None:
        """How a run that was left without a word ends; ``None`` while it waits for a person."""
        if record is None or record.status in ("completed", "failed", "stopped"):
            self._ended = record
            return None
        if error is None or isinstance(error, ApprovalPending):
            if record.status == "waiting" or error is not None:
                return None
            if self._record.contract.output_spec is not None:
                return self._ending("failed", StopReason.INVALID_OUTPUT, {"warnings": ["no result was delivered"]})
            return self._ending("completed", StopReason.COMPLETED, {})
        if isinstance(error, CallRefused):
            return self._ending("stopped", error.reason, {"error": error.for_people})
        if isinstance(error, CallFailed):
            return self._ending("failed", error.reason, {"error": error.for_people})
        if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)):
            return self._ending("stopped", StopReason.CANCELLED, {"error": type(error).__name__})
        return self._ending("failed", StopReason.INTERNAL_ERROR, {"error": f"{type(error).__name__}: {error}"})

    def _ending(self, status: Any, reason: StopReason, result: Mapping[str, Any]) -> EndRun:
        given = {"warnings": list(self._warnings), **result} if self._warnings else dict(result)
        given = from_json(self._gateway._clean(to_json(given, fallback=repr)))
        facts: dict[str, str | int | bool | None] = {"agent": self.context.agent, "reason": reason.value}
        kinds: dict[str, EventKind] = {"completed": "run.completed", "failed": "run.failed", "stopped": "run.stopped"}
        event = Event(kinds[status], facts, dumps(given))
        return EndRun(self.context.tenant, self.run_id, status, reason, given, event)

    def _close(self, answer: RunOpened) -> None:
        self._ended = answer.record

    # --- tool calls ----------------------------------------------------------------------------------

    def _job(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None,
        call_id: str | None,
        idempotency_key: str | None,
        colour: Any,
        expected: Tool | None = None,
    ) -> Job:
        if call_id is not None:
            check_id("call_id", call_id)
        if idempotency_key is not None:
            check_id("idempotency_key", idempotency_key)
        given = call_id if call_id is not None else f"{self._nonce}-{next(self._ids)}"
        view = self._view
        return Job(
            tool,
            arguments if arguments is not None else {},
            view,
            given,
            call_id is not None,
            self._gateway._now_ns(),
            colour,
            expected,
            idempotency_key,
        )

    def attempt(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        call_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Outcome:
        """Make one governed call and return what became of it; refusals and failures are values here.

        Args:
            tool: Name of a registered tool.
            arguments: Arguments by name.
            call_id: Id of the call in this run. The same id means the same call: the first outcome comes
                back, marked ``replayed``, and a call that waits for approval goes on once it is decided.
            idempotency_key: The same across runs of the tenant, for this tool.

        Raises:
            ConfigurationError: An id is malformed.
        """
        return self._note(self._gateway._govern(self._job(tool, arguments, call_id, idempotency_key, "blocking")))

    async def aattempt(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        call_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Outcome:
        """The same for async code; sync tools run in a worker thread unless declared ``inline``."""
        job = self._job(tool, arguments, call_id, idempotency_key, "awaiting")
        return self._note(await self._gateway._agovern(job))

    def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        call_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Make one governed call and return the tool's result; see :meth:`attempt`.

        Raises:
            CallRefused: The tool did not run.
            ApprovalPending: A person has to decide first.
            CallFailed: The tool was started and did not deliver.
        """
        return value_of(self.attempt(tool, arguments, call_id=call_id, idempotency_key=idempotency_key))

    async def acall(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        call_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """The same for async code."""
        return value_of(await self.aattempt(tool, arguments, call_id=call_id, idempotency_key=idempotency_key))

    def call_tool(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        """Carry out a call of a decorated function (the function itself calls this)."""
        job = self._job(tool.spec.name, arguments, None, None, "blocking", tool)
        return value_of(self._note(self._gateway._govern(job)))

    async def acall_tool(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        """The same for an async function."""
        job = self._job(tool.spec.name, arguments, None, None, "awaiting", tool)
        return value_of(self._note(await self._gateway._agovern(job)))

    def _note(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Completed) and outcome.warnings:
            self._warn(outcome.warnings)
        return outcome

    def _warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            if warning not in self._warnings:
                self._warnings.append(warning)

    def pending(self) -> tuple[Any, ...]:
        """Approval requests of this run that wait for a decision or for being resumed."""
        found = self._gateway._perform(ListApprovals(ApprovalFilter(self.context.tenant, self.run_id, limit=1000)))
        return tuple(r for r in found if r.status in ("pending", "approved"))

    async def apending(self) -> tuple[Any, ...]:
        """The same for async code."""
        found = await self._gateway._aperform(ListApprovals(ApprovalFilter(self.context.tenant, self.run_id, limit=1000)))
        return tuple(r for r in found if r.status in ("pending", "approved"))

    def resume_calls(self) -> dict[str, Outcome]:
        """Call again what waits for a person, with the arguments it was asked for: outcome per ``call_id``.

        Undecided calls come back as ``Suspended``.
        """
        found = self._gateway._perform(ListApprovals(ApprovalFilter(self.context.tenant, self.run_id, limit=1000)))
        calls = {c.approval_id: c for c in self._gateway._perform(ListCalls(self.context.tenant, self.run_id))}
        waiting = [r for r in found if r.id in calls and calls[r.id].status == "pending"]
        return {r.call_id: self.attempt(r.tool, r.proposed, **self._same(r)) for r in waiting}

    async def aresume_calls(self) -> dict[str, Outcome]:
        """The same for async code."""
        found = await self._gateway._aperform(ListApprovals(ApprovalFilter(self.context.tenant, self.run_id, limit=1000)))
        calls = {c.approval_id: c for c in await self._gateway._aperform(ListCalls(self.context.tenant, self.run_id))}
        waiting = [r for r in found if r.id in calls and calls[r.id].status == "pending"]
        return {r.call_id: await self.aattempt(r.tool, r.proposed, **self._same(r)) for r in waiting}

    def _same(self, request: Any) -> dict[str, Any]:
        return {"call_id": request.call_id}

    # --- model calls and steps -----------------------------------------------------------------------

    def _usage_of(
        self, model: str, input_tokens: int, output_tokens: int, cost_usd: Decimal | str | int | None
    ) -> tuple[Amounts, bool]:
        for name, value in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**12:
                raise ConfigurationError(f"AG406 {name}: {value!r:.40} is not a number of tokens.", code="AG406")
        if cost_usd is not None:
            if isinstance(cost_usd, (bool, float)):
                raise ConfigurationError(
                    f'AG406 cost_usd: write {cost_usd!r:.40} as an exact decimal such as "0.0012".', code="AG406"
                )
            try:
                cost: int | None = nano_usd(cost_usd)
            except (ValueError, TypeError) as error:
                raise ConfigurationError(f"AG406 cost_usd: {error}", code="AG406") from error
        else:
            prices = self._gateway.prices
            cost = prices.price_nano(model, input_tokens, output_tokens) if prices is not None else None
        amounts = [
            (STEPS, 1),
            (INPUT_TOKENS, input_tokens),
            (OUTPUT_TOKENS, output_tokens),
            (TOKENS, input_tokens + output_tokens),
        ]
        amounts.append((UNPRICED, 1) if cost is None else (COST, cost))
        return tuple(amounts), cost is None

    def _charged(self, kind: EventKind, model: str, amounts: Amounts) -> Event:
        facts: dict[str, str | int | bool | None] = {"model": model[:200]}
        facts.update({name.replace(":", "."): str(amount) for name, amount in amounts})
        return Event(kind, facts)

    def _llm_key(self, call_id: str | None) -> str:
        given = call_id if call_id is not None else f"{self._nonce}-{next(self._llm_ids)}"
        check_id("call_id", given)
        return call_key(self.context.tenant, self.run_id, f"llm/{given}")

    def charge_llm(
        self,
        *,
        model: str,
        input_tokens: int,
        output_tokens: int,
        cost_usd: Decimal | str | int | None = None,
    ) -> tuple[str, ...]:
        """Record what a model call used, in the same budgets as the tool calls.

        What was used is always recorded, also beyond a limit; the next reservation or tool call is then
        refused. The price comes from ``cost_usd`` or the gateway's price list; an unknown price is counted
        as unknown.

        Args:
            model: Model name, as in the price list.
            input_tokens: Tokens sent, cached ones included.
            output_tokens: Tokens received, reasoning included.
            cost_usd: Exact price of the call, if known.

        Returns:
            Warnings: thresholds and limits crossed by this.
        """
        amounts, _ = self._usage_of(model, input_tokens, output_tokens, cost_usd)
        operation = Reserve(
            self.context.tenant,
            self.run_id,
            self._llm_key(None),
            self._view.meters,
            amounts,
            0,
            self.context.agent,
            self.context.user,
            self._charged("llm.charged", model, amounts),
            enforce=False,
        )
        return self._settled(self._gateway._perform(operation))

    async def acharge_llm(
        self,
        *,
        model: str,
        input_tokens: int,
        output_tokens: int,
        cost_usd: Decimal | str | int | None = None,
    ) -> tuple[str, ...]:
        """The same for async code."""
        amounts, _ = self._usage_of(model, input_tokens, output_tokens, cost_usd)
        operation = Reserve(
            self.context.tenant,
            self.run_id,
            self._llm_key(None),
            self._view.meters,
            amounts,
            0,
            self.context.agent,
            self.context.user,
            self._charged("llm.charged", model, amounts),
            enforce=False,
        )
        return self._settled(await self._gateway._aperform(operation))

    def _settled(self, answer: Reserved) -> tuple[str, ...]:
        notes = [f"budget of {w.label}: {100 * w.used // w.limit} % of {w.dimension} used" for w in answer.warnings]
        telemetry = self._gateway.telemetry
        for warning in answer.warnings:
            telemetry.budget(warning.dimension, warning.label.split()[0], warning.used, warning.limit)
        for short in answer.over:
            telemetry.budget(short.dimension, short.scope, short.used, short.limit)
        notes += [f"over the limit: {ledger.describe(short)}" for short in answer.over]
        self._warn(notes)
        return tuple(notes)

    def _reserving(self, model: str, input_tokens: int, max_output_tokens: int) -> Reserve:
        amounts, _ = self._usage_of(model, input_tokens, max_output_tokens, None)
        kept = tuple((name, amount) for name, amount in amounts if name != UNPRICED)
        return Reserve(
            self.context.tenant,
            self.run_id,
            self._llm_key(None),
            self._view.meters,
            kept,
            int(MODEL_LEASE_S * NANO),
            self.context.agent,
            self.context.user,
            self._charged("llm.reserved", model, kept),
        )

    def _reserved(self, model: str, operation: Reserve, answer: Reserved) -> LlmReservation:
        if answer.reason is not None:
            message = "A budget is used up. No further model call is made."
            raise refusal(Refused(answer.reason, None, message, False, answer.detail, "", "AG620"))
        return LlmReservation(self, model, operation.key)

    def reserve_llm(self, *, model: str, input_tokens: int = 1, max_output_tokens: int = 1) -> LlmReservation:
        """Hold tokens and cost before a model call, so that it is not made when the budget cannot pay it.

        Args:
            model: Model name, as in the price list.
            input_tokens: Estimate of the tokens to be sent.
            max_output_tokens: Most tokens that can come back.

        Raises:
            BudgetExceeded: A limit is in the way.
            RunKilled: A kill switch is on, or the run has ended.
        """
        operation = self._reserving(model, input_tokens, max_output_tokens)
        return self._reserved(model, operation, self._gateway._perform(operation))

    async def areserve_llm(self, *, model: str, input_tokens: int = 1, max_output_tokens: int = 1) -> LlmReservation:
        """The same for async code."""
        operation = self._reserving(model, input_tokens, max_output_tokens)
        return self._reserved(model, operation, await self._gateway._aperform(operation))

    def _counting(self, counter: str, amount: int) -> tuple[Reserve, Settle]:
        check_id("counter", counter)
        if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
            raise ConfigurationError(f"AG406 counter {counter}: {amount!r:.40} is not a whole number.", code="AG406")
        key = self._llm_key(None)
        amounts = ((COUNTER_PREFIX + counter, amount),)
        context = self.context
        meters = self._view.meters
        hold = Reserve(context.tenant, self.run_id, key, meters, amounts, NANO * 60, context.agent, context.user)
        facts: dict[str, str | int | bool | None] = {"amount": str(amount), "counter": counter, "step": "count"}
        return hold, Settle(context.tenant, self.run_id, key, meters, amounts, Event("step", facts))

    def count(self, counter: str, amount: int = 1) -> None:
        """Use ``amount`` of a custom counter.

        Raises:
            BudgetExceeded: Its limit is reached; nothing was counted.
        """
        hold, settle = self._counting(counter, amount)
        self._reserved("", hold, self._gateway._perform(hold))
        self._settled(self._gateway._perform(settle))

    async def acount(self, counter: str, amount: int = 1) -> None:
        """The same for async code."""
        hold, settle = self._counting(counter, amount)
        self._reserved("", hold, await self._gateway._aperform(hold))
        self._settled(await self._gateway._aperform(settle))

    def _stepping(self, kind: StepKind, name: str, given: Any, outcome: Any) -> tuple[Reserve, Settle]:
        key = self._llm_key(None)
        context = self.context
        amounts = ((STEPS, 1),)
        meters = self._view.meters
        hold = Reserve(context.tenant, self.run_id, key, meters, amounts, NANO * 60, context.agent, context.user)
        body = self._gateway._clean(to_json({"input": given, "output": outcome}, fallback=repr))
        event = Event("step", {"agent": context.agent, "name": name[:128], "step": kind}, body)
        return hold, Settle(context.tenant, self.run_id, key, meters, amounts, event)

    def step(self, kind: StepKind, name: str = "", *, input: Any = None, output: Any = None) -> None:
        """Record an explicit step of the agent (a plan, a validation, a decision) and count it.

        Raises:
            BudgetExceeded: The limit of steps is reached; nothing was recorded.
        """
        hold, settle = self._stepping(_step_kind(kind), name, input, output)
        self._reserved("", hold, self._gateway._perform(hold))
        self._settled(self._gateway._perform(settle))

    async def astep(self, kind: StepKind, name: str = "", *, input: Any = None, output: Any = None) -> None:
        """The same for async code."""
        hold, settle = self._stepping(_step_kind(kind), name, input, output)
        self._reserved("", hold, await self._gateway._aperform(hold))
        self._settled(await self._gateway._aperform(settle))

    # --- sub-agents ------------------------------------------------------------------------------------

    def spawn(
        self,
        *,
        agent: str,
        budget: Budget | None = None,
        scope: Sequence[str] | None = None,
        task: str | None = None,
        run_id: str | None = None,
        output_spec: Mapping[str, Any] | None = None,
    ) -> Run:
        """Make a child run for a sub-agent: it can only have less than this run.

        It acts for the same tenant, environment and user; its tools are this run's, narrowed by ``scope``;
        everything it uses is charged here too; labels of what it reads come back here.

        Args:
            agent: Name of the sub-agent.
            budget: Its own limits, on top of this run's.
            scope: Tool names or globs it is narrowed to.
            task: Its task, in words.
            run_id: Its id; made when ``None``.
            output_spec: JSON Schema of its result.
        """
        narrowing = self.context.scope
        if scope is not None:
            if isinstance(scope, str):
                raise ConfigurationError("AG131 scope must be a list of tool names or globs.", code="AG131")
            narrowing = (*(narrowing or ()), tuple(scope))
        parents = tuple(m for m in self._view.meters if m.scope == "run")
        return self._gateway._new_run(
            agent=agent,
            tenant=self.context.tenant,
            environment=self.context.environment,
            user=self.context.user,
            roles=self.context.roles,
            session=self.context.session,
            team=self.context.team,
            task=task,
            budget=budget,
            labels=self.labels,
            scope=narrowing,
            run_id=run_id,
            parent=self.context.run_id,
            contract=Contract(task, None, None, dict(output_spec) if output_spec else None),
            inherited=parents,
        )

    # --- usage, end, report ------------------------------------------------------------------------------

    def _usage(self, used: Mapping[str, int], record: RunRecord) -> Usage:
        end = record.ended_at or self._gateway._now_ns()
        wall = max(end - record.started_at, 0)
        paused = record.paused_ns
        if record.paused_at is not None and record.ended_at is None:
            paused += max(end - record.paused_at, 0)
        return Usage(
            steps=used.get(STEPS, 0),
            tool_calls=used.get(TOOL_CALLS, 0),
            input_tokens=used.get(INPUT_TOKENS, 0),
            output_tokens=used.get(OUTPUT_TOKENS, 0),
            tokens=used.get(TOKENS, 0),
            cost_usd=Decimal(used.get(COST, 0)) / NANO,
            unpriced_calls=used.get(UNPRICED, 0),
            seconds=wall / NANO,
            working_seconds=max(wall - paused, 0) / NANO,
            per_tool={k[len(TOOL_PREFIX) :]: v for k, v in sorted(used.items()) if k.startswith(TOOL_PREFIX)},
            counters={
                k[len(COUNTER_PREFIX) :]: v
                for k, v in sorted(used.items())
                if k.startswith(COUNTER_PREFIX) and k != UNPRICED
            },
        )

    @property
    def usage(self) -> Usage:
        """What this run and its children have used so far, read from the store."""
        used = self._gateway._perform(ReadAccount(self._view.meters[0].account))
        return self._usage(used, self._found(self._gateway._perform(self._reading())))

    async def ausage(self) -> Usage:
        """The same for async code."""
        used = await self._gateway._aperform(ReadAccount(self._view.meters[0].account))
        return self._usage(used, self._found(await self._gateway._aperform(self._reading())))

    def _reading(self) -> GetRun:
        return GetRun(self.context.tenant, self.run_id)

    def _found(self, record: RunRecord | None) -> RunRecord:
        if record is None:
            raise RunError(f"Run {self.run_id} is not in the store; was it opened?")
        return record

    def _completing(self, result: Any, evidence: Sequence[Any], warnings: Sequence[str]) -> EndRun:
        try:
            value = from_json(to_json(result))
            proofs = from_json(to_json(list(evidence)))
        except Exception as error:
            raise OutputContractError(f"The result cannot be written as JSON: {error}") from error
        spec = self._record.contract.output_spec
        if spec is not None:
            problems = self._gateway._contract_problems(spec, value)
            if problems:
                raise OutputContractError(
                    f"The result does not satisfy the output spec of run {self.run_id}: {'; '.join(problems)}"
                )
        self._warn(list(warnings))
        return self._ending("completed", StopReason.COMPLETED, {"result": value, "evidence": proofs})

    def complete(self, result: Any = None, *, evidence: Sequence[Any] = (), warnings: Sequence[str] = ()) -> None:
        """End the run with a result.

        Raises:
            OutputContractError: The result does not satisfy the run's output spec; the run goes on.
            StoreConflict: The run has ended otherwise.
        """
        self._close(self._gateway._perform(self._completing(result, evidence, warnings)))

    async def acomplete(
        self, result: Any = None, *, evidence: Sequence[Any] = (), warnings: Sequence[str] = ()
    ) -> None:
        """The same for async code."""
        self._close(await self._gateway._aperform(self._completing(result, evidence, warnings)))

    def fail(self, error: BaseException | str, *, reason: StopReason = StopReason.INTERNAL_ERROR) -> None:
        """End the run as failed."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._close(self._gateway._perform(self._ending("failed", reason, {"error": text})))

    async def afail(self, error: BaseException | str, *, reason: StopReason = StopReason.INTERNAL_ERROR) -> None:
        """The same for async code."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._close(await self._gateway._aperform(self._ending("failed", reason, {"error": text})))

    def stop(self, reason: StopReason = StopReason.CANCELLED, *, note: str = "") -> None:
        """End the run before its task is done."""
        self._close(self._gateway._perform(self._ending("stopped", reason, {"note": note} if note else {})))

    async def astop(self, reason: StopReason = StopReason.CANCELLED, *, note: str = "") -> None:
        """The same for async code."""
        answer = await self._gateway._aperform(self._ending("stopped", reason, {"note": note} if note else {}))
        self._close(answer)

    @property
    def report(self) -> RunReport:
        """What the agent delivered so far, and how; see :class:`~agentguard.RunReport`."""
        perform = self._gateway._perform
        record = self._found(perform(self._reading()))
        calls = perform(ListCalls(self.context.tenant, self.run_id))
        used = perform(ReadAccount(self._view.meters[0].account))
        return self._reporting(record, calls, used)

    async def areport(self) -> RunReport:
        """The same for async code."""
        perform = self._gateway._aperform
        record = self._found(await perform(self._reading()))
        calls = await perform(ListCalls(self.context.tenant, self.run_id))
        used = await perform(ReadAccount(self._view.meters[0].account))
        return self._reporting(record, calls, used)

    def _reporting(self, record: RunRecord, calls: Any, used: Mapping[str, int]) -> RunReport:
        result = record.result or {}
        reason = record.stop_reason
        if reason is None and record.status == "waiting":
            reason = StopReason.APPROVAL_PENDING
        warnings = list(result.get("warnings", ()))
        warnings += [w for w in self._warnings if w not in warnings]
        return RunReport(
            run_id=self.run_id,
            status=record.status,
            stop_reason=reason,
            result=result.get("result"),
            evidence=tuple(result.get("evidence", ())),
            actions_taken=tuple(ActionTaken(c.call_id, c.tool, c.status, i) for i, c in enumerate(calls, 1)),
            warnings=tuple(warnings),
            usage=self._usage(used, record),
            task=record.contract.task,
            audit_head=record.audit_head,
            details={k: v for k, v in result.items() if k in ("error", "note")},
        )


_STEPS = frozenset(
    {
        "plan",
        "tool_call",
        "model_call",
        "validate",
        "decide",
        "human_approval",
        "retry",
        "fallback",
        "complete",
        "fail",
    }
)


def _step_kind(kind: str) -> Any:
    if kind not in _STEPS:
        raise ConfigurationError(f"AG132 {kind!r:.40} is no kind of step; use one of {', '.join(sorted(_STEPS))}.")
    return kind


@dataclass(slots=True)
class LlmReservation:
    """Tokens and cost held for one model call; settle it with what was used, or release it.

    As a context manager it releases what was not settled.
    """

    run: Run
    model: str
    key: str
    done: bool = False

    def _settling(self, amounts: Amounts) -> Settle:
        if self.done:
            raise RunError("This reservation was settled or released before.")
        self.done = True
        run = self.run
        context = run.context
        event = run._charged("llm.charged", self.model, amounts)
        return Settle(context.tenant, context.run_id, self.key, run._view.meters, amounts, event)

    def settle(
        self, *, input_tokens: int, output_tokens: int, cost_usd: Decimal | str | int | None = None
    ) -> tuple[str, ...]:
        """Replace the hold by what the call used; see :meth:`Run.charge_llm`."""
        amounts, _ = self.run._usage_of(self.model, input_tokens, output_tokens, cost_usd)
        return self.run._settled(self.run._gateway._perform(self._settling(amounts)))

    async def asettle(
        self, *, input_tokens: int, output_tokens: int, cost_usd: Decimal | str | int | None = None
    ) -> tuple[str, ...]:
        """The same for async code."""
        amounts, _ = self.run._usage_of(self.model, input_tokens, output_tokens, cost_usd)
        return self.run._settled(await self.run._gateway._aperform(self._settling(amounts)))

    def release(self) -> None:
        """Give the hold back: the call was not made."""
        self.run._settled(self.run._gateway._perform(self._settling(())))

    async def arelease(self) -> None:
        """The same for async code."""
        self.run._settled(await self.run._gateway._aperform(self._settling(())))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.done:
            self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.done:
            await self.arelease()


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
