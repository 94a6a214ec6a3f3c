"""The live handle of a run: where tool calls, model calls and steps of one task are made.

What must stay true: however a run is left, its body's own exception is what the caller sees; a run that waits
for a person stays open; what was used is recorded even when the caller is cancelled meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import Token
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

from pydantic_core import from_json, to_json

from agentguard._flow.rulebook import Job, RunView
from agentguard.budget import ledger
from agentguard.budget.budget import Budget
from agentguard.canonical import NotCanonical, dumps
from agentguard.domain.approvals import ApprovalRequest
from agentguard.domain.calls import Completed, Outcome, Refused
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import StopReason
from agentguard.domain.events import AuditRecord, Event, EventKind
from agentguard.domain.operations import (
    EndRun,
    GetRun,
    ListApprovals,
    ListCalls,
    OpenRun,
    ReadAccount,
    ReadAudit,
    Reserve,
    Reserved,
    RunOpened,
    Settle,
)
from agentguard.domain.runs import ActionTaken, ApprovalFilter, RunRecord, StepKind
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
    SinkError,
    StoreConflict,
    StoreError,
)
from agentguard.gateway.messaging import Messages
from agentguard.gateway.metering import MODEL_LEASE_S, UNPRICED, LlmReservation, charged, model_usage, shown
from agentguard.gateway.raising import refusal, value_of
from agentguard.gateway.sharing import SharedState
from agentguard.naming import check_id
from agentguard.resilience.keys import call_key, idempotency_key_of
from agentguard.runs.lifecycle import RUN_ENDED
from agentguard.runs.report import RunReport
from agentguard.tools.current import CURRENT

if TYPE_CHECKING:
    from agentguard.domain.operations import Operation
    from agentguard.gateway.door import Steps, ToolGateway
    from agentguard.tools.tool import Tool

__all__ = ["UNPRICED", "LlmReservation", "Run", "SharedState"]

log = logging.getLogger("agentguard")

_KINDS: Final = frozenset(get_args(StepKind))
_ENDINGS: Final[Mapping[str, EventKind]] = {
    "completed": "run.completed",
    "failed": "run.failed",
    "stopped": "run.stopped",
}
_SHORT_LEASE_NS: Final = 60 * NANO
_PAGE: Final = 1000
_ANSWERS: Final = frozenset(("call.outcome", "call.refused", "call.replayed", "call.resolved"))
_USED_UP: Final = frozenset(
    (
        StopReason.BUDGET_STEPS,
        StopReason.BUDGET_TOOL_CALLS,
        StopReason.BUDGET_TOKENS,
        StopReason.BUDGET_COST,
        StopReason.BUDGET_TIME,
        StopReason.BUDGET_COUNTER,
        StopReason.LOOP_DETECTED,
    )
)


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
        self._opening_lock = threading.Lock()
        self._opening_task: asyncio.Task[None] | None = None
        self._tokens: list[Token[Any]] = []
        self._ids = itertools.count(1)
        self._nonce = gateway._draw()[:8]
        self._warnings: list[str] = []
        self._ended: RunRecord | None = None
        self._spent: StopReason | None = None
        self._llm_ids = itertools.count(1)
        context = record.context
        prefix = call_key(context.tenant, context.run_id, "")
        self._view = RunView(
            context, record.meters, prefix[: -len("0:")], (record.labels, record.version), record.max_repeats
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
    def messages(self) -> Messages:
        """Signed messages to and from other agents."""
        return Messages(self._gateway, self.context)

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
        body = {
            "constraints": contract.constraints,
            "context": contract.context,
            "output_spec": contract.output_spec,
            "roles": context.roles,
            "scope": context.scope,
            "task": contract.task,
        }
        event = Event("run.opened", facts, self._gateway._body(body))
        seconds = self._budget.seconds_ns if self._budget is not None else None
        return OpenRun(self._record, seconds, event)

    def _take(self, answer: RunOpened) -> None:
        if answer.refused is not None:
            turned = answer.refused
            raise refusal(Refused(turned.reason, None, "The run was not opened.", False, turned.detail, "", "AG623"))
        self._record = answer.record
        self._view.learn(answer.record.labels, answer.record.version)
        self._opened = True

    def open(self) -> Self:
        """Make the run durable; once is enough. Entering the run does this too.

        Raises:
            RunKilled: A kill switch is on, or the parent run has ended.
            StoreConflict: The run id is taken.
        """
        with self._opening_lock:
            if not self._opened:
                self._take(self._gateway._perform(self._opening()))
        return self

    async def aopen(self) -> Self:
        """The same for async code."""
        if not self._opened:
            task = self._opening_task
            if task is None or task.done():
                task = self._opening_task = self._gateway._detach(self._open_once())
            await asyncio.shield(task)
        return self

    async def _open_once(self) -> None:
        self._take(await self._gateway._aperform(self._opening()))

    def __enter__(self) -> Self:
        self.open()
        self._tokens.append(CURRENT.set(self))
        return self

    async def __aenter__(self) -> Self:
        try:
            await self.aopen()
        except asyncio.CancelledError as error:
            self._gateway._detach(self._never_entered(error))
            raise
        self._tokens.append(CURRENT.set(self))
        return self

    async def _never_entered(self, error: BaseException) -> None:
        """End a run whose opening could not be called back: nobody is there to leave it."""
        if self._opening_task is not None:
            await asyncio.wait([self._opening_task])
        if self._opened and not self._tokens:
            await self._gateway._athrough(self._leaving(error))

    def _leave(self) -> bool:
        """Step out of the run; ``True`` when nobody is inside any more."""
        with self._opening_lock:
            for token in reversed(self._tokens):
                try:
                    CURRENT.reset(token)
                except ValueError:  # of another thread or task that has entered this run, too
                    continue
                self._tokens.remove(token)
                break
            else:
                # Left in another context than entered (a generator that was broken off): no run, so no call.
                if CURRENT.get() is self:
                    CURRENT.set(None)
                del self._tokens[-1:]
            return not self._tokens

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leave() and self._ended is None:
            self._gateway._through(self._leaving(error))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leave() and self._ended is None:
            await self._gateway._athrough(self._leaving(error))

    def _leaving(self, error: BaseException | None) -> Steps[None]:
        """End a run that was left without a word. What went wrong inside is never hidden by what goes wrong here."""
        try:
            record = self._found((yield from self._reading()))
            if record.status in RUN_ENDED:
                self._ended = record
                return
            how = self._how_it_ends(record, error)
            if how is not None:
                try:
                    self._close((yield from self._ending(*how)))
                except StoreConflict:  # somebody else has ended it in between
                    self._ended = self._found((yield from self._reading()))
        except Exception as failure:
            if error is None:
                raise
            log.error("run %s could not be ended: %s", self.run_id, type(failure).__name__)

    def _how_it_ends(
        self, record: RunRecord, error: BaseException | None
    ) -> tuple[Literal["completed", "failed", "stopped"], StopReason, dict[str, Any]] | None:
        """Status, reason and result of a run that is left; ``None`` while it waits for a person."""
        if error is None:
            if record.status == "waiting":
                return None
            if self._spent is not None:
                return "stopped", self._spent, {"note": "The run was left after a budget had refused to go on."}
            if record.contract.output_spec is not None:
                return "failed", StopReason.INVALID_OUTPUT, {"error": "No result was delivered."}
            return "completed", StopReason.COMPLETED, {}
        causes = list(_leaves(error))
        telling = [c for c in causes if not _pends(c) and not isinstance(c, asyncio.CancelledError)]
        if not telling and any(map(_pends, causes)):
            return None
        cause = telling[0] if telling else causes[0]
        if isinstance(cause, CallRefused):
            return "stopped", cause.reason, {"error": cause.for_people}
        if isinstance(cause, CallFailed):
            return "failed", cause.reason, {"error": cause.for_people}
        if not isinstance(cause, Exception):  # cancelled, interrupted, the process exits
            return "stopped", StopReason.CANCELLED, {"error": type(cause).__name__}
        reason = StopReason.INTERNAL_ERROR
        for kind, known in _REASONS.items():
            if isinstance(cause, kind):
                reason = known
        return "failed", reason, {"error": f"{type(cause).__name__}: {cause}"}

    def _ending(
        self, status: Literal["completed", "failed", "stopped"], reason: StopReason, result: Mapping[str, Any]
    ) -> EndRun:
        given = {"warnings": list(self._warnings), **result} if self._warnings else dict(result)
        kept = self._gateway._kept(given)
        facts: dict[str, str | int | bool | None] = {"agent": self.context.agent, "reason": reason.value}
        event = Event(_ENDINGS[status], facts, dumps(kept) if self._gateway._house.keep_bodies else b"")
        return EndRun(self.context.tenant, self.run_id, status, reason, kept, event)

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
        explicit = call_id is not None
        if explicit:
            check_id("call_id", call_id)
        if idempotency_key is not None:
            check_id("idempotency_key", idempotency_key)
        return Job(
            tool,
            arguments if arguments is not None else {},
            self._view,
            call_id if call_id is not None else f"{self._nonce}-{next(self._ids)}",
            explicit,
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
        return self._value(self._gateway._govern(self._job(tool, arguments, call_id, idempotency_key, "blocking")))

    async def acall(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        call_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """The same for async code."""
        job = self._job(tool, arguments, call_id, idempotency_key, "awaiting")
        return self._value(await self._gateway._agovern(job))

    def call_tool(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        """Carry out a call of a decorated function (the function itself calls this)."""
        job = self._job(tool.spec.name, arguments, None, None, "blocking", tool)
        return self._value(self._gateway._govern(job))

    async def acall_tool(self, tool: Tool, arguments: dict[str, Any]) -> Any:
        """The same for an async function."""
        job = self._job(tool.spec.name, arguments, None, None, "awaiting", tool)
        return self._value(await self._gateway._agovern(job))

    def _value(self, outcome: Outcome) -> Any:
        if type(outcome) is Completed and not outcome.warnings:
            self._spent = None
            return outcome.value
        return value_of(self._note(outcome))

    def _note(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Completed):
            self._spent = None
            if outcome.warnings:
                self._warn(outcome.warnings)
        elif isinstance(outcome, Refused) and outcome.reason in _USED_UP:
            self._spent = outcome.reason
        return outcome

    def _warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            kept = self._gateway._text(warning)
            if kept not in self._warnings:
                self._warnings.append(kept)

    def _asked(self) -> Steps[tuple[ApprovalRequest, ...]]:
        wanted = ApprovalFilter(self.context.tenant, self.run_id, limit=_PAGE)
        found = yield from ListApprovals(wanted)
        return tuple(r for r in found if r.status in ("pending", "approved"))

    def pending(self) -> tuple[ApprovalRequest, ...]:
        """Approval requests of this run that wait for a decision or for being resumed."""
        return self._gateway._through(self._asked())

    async def apending(self) -> tuple[ApprovalRequest, ...]:
        """The same for async code."""
        return await self._gateway._athrough(self._asked())

    def _waiting(self) -> Steps[tuple[ApprovalRequest, ...]]:
        """The requests behind the calls that wait, rejected and expired ones included."""
        found = yield from ListApprovals(ApprovalFilter(self.context.tenant, self.run_id, limit=_PAGE))
        calls = yield from ListCalls(self.context.tenant, self.run_id)
        waiting = {call.approval_id for call in calls if call.status == "pending"}
        return tuple(request for request in found if request.id in waiting)

    def _issuing(self, call_ids: Iterable[str]) -> Steps[frozenset[str]]:
        wanted = frozenset(call_ids)
        calls = yield from ListCalls(self.context.tenant, self.run_id)
        found = {c.call_id for c in calls if c.status in ("succeeded", "failed", "ambiguous")} & wanted
        after = 0
        while found != wanted and (page := (yield from ReadAudit(self.context.tenant, self.run_id, after, _PAGE))):
            for record in page:
                line = from_json(record.line)
                if line["kind"] in _ANSWERS and line["facts"].get("call") in wanted:
                    found.add(line["facts"]["call"])
            after = page[-1].seq
        return frozenset(found)

    def issued(self, call_ids: Iterable[str]) -> frozenset[str]:
        """Which of these calls the gateway has answered in this run, refusals included.

        Adapters ask before they let tool results of a conversation from elsewhere reach a model.
        """
        return self._gateway._through(self._issuing(call_ids))

    async def aissued(self, call_ids: Iterable[str]) -> frozenset[str]:
        """The same for async code."""
        return await self._gateway._athrough(self._issuing(call_ids))

    def resume_calls(self) -> dict[str, Outcome]:
        """Call again what waits for a person, with the arguments it was asked for: outcome per ``call_id``.

        Undecided calls come back as ``Suspended``.
        """
        waiting = self._gateway._through(self._waiting())
        return {r.call_id: self._note(self._gateway._govern(self._again(r, "blocking"))) for r in waiting}

    async def aresume_calls(self) -> dict[str, Outcome]:
        """The same for async code."""
        waiting = await self._gateway._athrough(self._waiting())
        return {r.call_id: self._note(await self._gateway._agovern(self._again(r, "awaiting"))) for r in waiting}

    def _again(self, request: ApprovalRequest, colour: Literal["blocking", "awaiting"]) -> Job:
        """The same call once more: the same key is what makes it the same."""
        job = self._job(request.tool, request.proposed, request.call_id, None, colour)
        job.idempotency_key = idempotency_key_of(request.call_key)
        return job

    # --- model calls and steps -----------------------------------------------------------------------

    def _llm_key(self) -> str:
        return call_key(self.context.tenant, self.run_id, f"llm/{self._nonce}-{next(self._llm_ids)}")

    def _charging(
        self, model: str, input_tokens: int, output_tokens: int, cost_usd: Decimal | str | int | None
    ) -> Steps[tuple[str, ...]]:
        amounts = model_usage(self._gateway.prices, model, input_tokens, output_tokens, cost_usd)
        context = self.context
        answer = yield from Reserve(
            context.tenant,
            self.run_id,
            self._llm_key(),
            self._view.meters,
            amounts,
            0,
            context.agent,
            context.user,
            charged("llm.charged", model, amounts),
            enforce=False,
        )
        return self._settled(answer, model, amounts)

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

        Raises:
            ConfigurationError: A number is no number of tokens, or the cost is not exact.
        """
        return self._gateway._through(self._charging(model, input_tokens, output_tokens, cost_usd))

    async def acharge_llm(
        self,
        *,
        model: str,
        input_tokens: int,
        output_tokens: int,
        cost_usd: Decimal | str | int | None = None,
    ) -> tuple[str, ...]:
        """The same for async code; completes even when the caller is cancelled."""
        return await self._gateway._athrough(self._charging(model, input_tokens, output_tokens, cost_usd))

    def _settled(self, answer: Reserved, model: str = "", amounts: Amounts = ()) -> tuple[str, ...]:
        notes = [f"budget of {w.label}: {100 * w.used // w.limit} % of {w.dimension} used" for w in answer.warnings]
        notes += [f"over the limit: {ledger.describe(short)}" for short in answer.over]
        self._warn(notes)
        telemetry = self._gateway.telemetry
        for warning in answer.warnings:
            telemetry.budget(warning.dimension, warning.label.split()[0], warning.used, warning.limit)
        for short in answer.over:
            telemetry.budget(short.dimension, short.scope, short.used, short.limit)
        for dimension, amount in amounts:
            if dimension == COST and amount:
                telemetry.cost(amount / NANO, model=model)
        return tuple(notes)

    def _reserving(self, model: str, input_tokens: int, max_output_tokens: int) -> Reserve:
        amounts = model_usage(self._gateway.prices, model, input_tokens, max_output_tokens)
        kept = tuple((name, amount) for name, amount in amounts if name != UNPRICED)
        return Reserve(
            self.context.tenant,
            self.run_id,
            self._llm_key(),
            self._view.meters,
            kept,
            int(MODEL_LEASE_S * NANO),
            self.context.agent,
            self.context.user,
            charged("llm.reserved", model, kept),
        )

    def _held(self, answer: Reserved) -> None:
        self._spent = answer.reason if answer.reason in _USED_UP else None
        if answer.reason is not None:
            message = "A budget is used up. No further model call is made."
            raise refusal(Refused(answer.reason, None, message, False, answer.detail, "", "AG620"))
        self._settled(answer)

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
        self._held(self._gateway._perform(operation))
        return LlmReservation(self, model, operation.key)

    async def areserve_llm(self, *, model: str, input_tokens: int = 1, max_output_tokens: int = 1) -> LlmReservation:
        """The same for async code."""
        operation = self._reserving(model, input_tokens, max_output_tokens)
        try:
            answer = await self._gateway._aperform(operation)
        except asyncio.CancelledError:
            # Nobody gets the handle, so nobody would give the hold back.
            self._gateway._detach(self._gateway._aperform(replace_by_nothing(operation)))
            raise
        self._held(answer)
        return LlmReservation(self, model, operation.key)

    def _counting(self, counter: str, amount: int) -> Steps[None]:
        check_id("counter", counter)
        if COUNTER_PREFIX + counter == UNPRICED:
            raise ConfigurationError(f"AG406 counter {counter} is counted by charge_llm.", code="AG406")
        if isinstance(amount, bool) or not isinstance(amount, int) or not 0 <= amount < 2**62:
            raise ConfigurationError(f"AG406 counter {counter}: {amount!r:.40} is not a whole number.", code="AG406")
        facts: dict[str, str | int | bool | None] = {"amount": str(amount), "counter": counter, "step": "count"}
        yield from self._using(((COUNTER_PREFIX + counter, amount),), Event("step", facts))

    def _using(self, amounts: tuple[tuple[str, int], ...], event: Event) -> Steps[None]:
        """Hold and use at once, or refuse."""
        context, meters, key = self.context, self._view.meters, self._llm_key()
        self._held(
            (
                yield from Reserve(
                    context.tenant, self.run_id, key, meters, amounts, _SHORT_LEASE_NS, context.agent, context.user
                )
            )
        )
        self._settled((yield from Settle(context.tenant, self.run_id, key, meters, amounts, event)))

    def count(self, counter: str, amount: int = 1) -> None:
        """Use ``amount`` of a custom counter.

        Raises:
            BudgetExceeded: Its limit is reached; nothing was counted.
        """
        self._gateway._through(self._counting(counter, amount))

    async def acount(self, counter: str, amount: int = 1) -> None:
        """The same for async code."""
        await self._gateway._athrough(self._counting(counter, amount))

    def _stepping(self, kind: StepKind, name: str, given: Any, outcome: Any) -> Steps[None]:
        if kind not in _KINDS:
            raise ConfigurationError(
                f"AG132 {kind!r:.40} is no kind of step; use one of {', '.join(sorted(_KINDS))}.", code="AG132"
            )
        body = self._gateway._body({"input": given, "output": outcome})
        facts: dict[str, str | int | bool | None] = {
            "agent": self.context.agent,
            "name": shown(self._gateway._text(str(name)), 128),
            "step": kind,
        }
        yield from self._using(((STEPS, 1),), Event("step", facts, body))

    def step(self, kind: StepKind, name: str = "", *, input: Any = None, output: Any = None) -> None:
        """Record an explicit step of the agent (a plan, a validation, a decision) and count it.

        Raises:
            BudgetExceeded: The limit of steps is reached; nothing was recorded.
        """
        self._gateway._through(self._stepping(kind, name, input, output))

    async def astep(self, kind: StepKind, name: str = "", *, input: Any = None, output: Any = None) -> None:
        """The same for async code."""
        await self._gateway._athrough(self._stepping(kind, name, input, output))

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
        if record.paused_at is not None:
            paused += max(end - record.paused_at, 0)
        whole, rest = divmod(used.get(COST, 0), NANO)
        return Usage(
            steps=used.get(STEPS, 0),
            tool_calls=used.get(TOOL_CALLS, 0),
            input_tokens=used.get(INPUT_TOKENS, 0),
            output_tokens=used.get(OUTPUT_TOKENS, 0),
            tokens=used.get(TOKENS, 0),
            cost_usd=Decimal(f"{whole}.{rest:09d}".rstrip("0").rstrip(".")),  # no context of the host's can round it
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

    def _using_so_far(self) -> Steps[Usage]:
        record = self._found((yield from self._reading()))
        used = yield from ReadAccount(self._view.meters[0].account)
        return self._usage(used, record)

    @property
    def usage(self) -> Usage:
        """What this run and its children have used so far, read from the store."""
        return self._gateway._through(self._using_so_far())

    async def ausage(self) -> Usage:
        """The same for async code."""
        return await self._gateway._athrough(self._using_so_far())

    def _reading(self) -> GetRun:
        return GetRun(self.context.tenant, self.run_id)

    def _found(self, record: RunRecord | None) -> RunRecord:
        if record is None:
            raise RunError(f"Run {self.run_id} is not in the store; was it opened?")
        return record

    def _completing(self, result: Any, evidence: Sequence[Any], warnings: Sequence[str]) -> EndRun:
        if isinstance(warnings, str):
            raise ConfigurationError("AG131 warnings is a list of texts, not one text.", code="AG131")
        try:
            value = from_json(to_json(result))
            proofs = from_json(to_json(list(evidence)))
            dumps([value, proofs])
        except (NotCanonical, ValueError, TypeError) as error:
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

    def _failing(self, error: BaseException | str, reason: StopReason) -> EndRun:
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return self._ending("failed", StopReason(reason), {"error": text})

    def _stopping(self, reason: StopReason, note: str) -> EndRun:
        return self._ending("stopped", StopReason(reason), {"note": note} if note else {})

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
        self._close(self._gateway._perform(self._failing(error, reason)))

    async def afail(self, error: BaseException | str, *, reason: StopReason = StopReason.INTERNAL_ERROR) -> None:
        """The same for async code."""
        self._close(await self._gateway._aperform(self._failing(error, reason)))

    def stop(self, reason: StopReason = StopReason.CANCELLED, *, note: str = "") -> None:
        """End the run before its task is done."""
        self._close(self._gateway._perform(self._stopping(reason, note)))

    async def astop(self, reason: StopReason = StopReason.CANCELLED, *, note: str = "") -> None:
        """The same for async code."""
        self._close(await self._gateway._aperform(self._stopping(reason, note)))

    @property
    def report(self) -> RunReport:
        """What the agent delivered so far, and how; see :class:`~agentguard.RunReport`."""
        return self._gateway._through(self._reporting())

    async def areport(self) -> RunReport:
        """The same for async code."""
        return await self._gateway._athrough(self._reporting())

    def _reporting(self) -> Steps[RunReport]:
        record = self._found((yield from self._reading()))
        calls = yield from ListCalls(self.context.tenant, self.run_id)
        used = yield from ReadAccount(self._view.meters[0].account)
        result = record.result or {}
        warnings = list(result.get("warnings", ()))
        places: dict[str, int] = {}
        after = 0
        while page := (yield from ReadAudit(self.context.tenant, self.run_id, after, _PAGE)):
            for one in page:
                _place(one, places, warnings)
            after = page[-1].seq
        warnings += [w for w in self._warnings if w not in warnings]
        reason = record.stop_reason
        if reason is None and record.status == "waiting":
            reason = StopReason.APPROVAL_PENDING
        return RunReport(
            run_id=self.run_id,
            status=record.status,
            stop_reason=reason,
            result=result.get("result"),
            evidence=tuple(result.get("evidence", ())),
            actions_taken=tuple(ActionTaken(c.call_id, c.tool, c.status, places.get(c.key, 0)) for c in calls),
            warnings=tuple(warnings),
            usage=self._usage(used, record),
            task=record.contract.task,
            audit_head=record.audit_head,
            details={k: v for k, v in result.items() if k in ("error", "note")},
        )


_REASONS: Final[Mapping[type[Exception], StopReason]] = {
    OutputContractError: StopReason.INVALID_OUTPUT,
    SinkError: StopReason.AUDIT_UNAVAILABLE,
    StoreError: StopReason.STORE_UNAVAILABLE,
}


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group, or the one exception."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


def _pends(error: BaseException) -> bool:
    """Whether a person has to decide before this can go on."""
    return isinstance(error, ApprovalPending) or (
        isinstance(error, CallRefused) and error.reason is StopReason.APPROVAL_PENDING
    )


def _place(record: AuditRecord, places: dict[str, int], warnings: list[str]) -> None:
    """Note where a call stands in the trail, and thresholds that other handles of the run have crossed."""
    line = record.line
    if b'"kind":"call.intent"' in line or b'"kind":"approval.requested"' in line:
        places[from_json(line)["facts"]["key"]] = record.seq
    elif b'"kind":"budget.warning"' in line:
        facts = from_json(line)["facts"]
        share = 100 * int(facts["used"]) // int(facts["limit"])
        note = f"budget of {facts['budget']}: {share} % of {facts['dimension']} used"
        if note not in warnings:
            warnings.append(note)


def replace_by_nothing(hold: Reserve) -> Operation[Reserved]:
    """Give a hold back, or forestall it when it has not arrived yet."""
    return Settle(hold.tenant, hold.run_id, hold.key, hold.meters, ())
