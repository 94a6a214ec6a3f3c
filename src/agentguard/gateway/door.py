"""``ToolGateway``: the one object a service owns, and the only way to run a registered tool."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from pydantic_core import from_json, to_json

from agentguard import config
from agentguard._drive.awaiting import adrive
from agentguard._drive.blocking import drive
from agentguard._drive.ports import Ports, draw
from agentguard._drive.workers import Workers
from agentguard._flow.govern import govern
from agentguard._flow.refusing import refused
from agentguard._flow.rulebook import House, Job, plan
from agentguard.audit.redaction import KnownSecrets
from agentguard.budget.budget import Budget, merged, meters_for
from agentguard.canonical import dumps
from agentguard.domain.calls import Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import Decision, StopReason
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import (
    Effect,
    GetRun,
    OpenRun,
    Operation,
    PutState,
    ReadAudit,
    ResolveCall,
    Vote,
)
from agentguard.domain.runs import RunRecord
from agentguard.domain.usage import NANO, Meter
from agentguard.errors import ConfigurationError, NoActiveRun, RunError, SinkError, StoreUnavailable
from agentguard.gateway.observing import Stopwatch, TimedRules
from agentguard.gateway.parts import Approvals, Audit, Budgets, Runs, Switches
from agentguard.gateway.running import Run
from agentguard.naming import check_id
from agentguard.policy.compiling import compile_layers
from agentguard.policy.policies import Policy
from agentguard.protocols import (
    Approver,
    AsyncApprover,
    AsyncCredentialProvider,
    Clock,
    CredentialProvider,
    CredentialRequest,
    Listener,
    PriceList,
    Redactor,
    Sink,
    Store,
)
from agentguard.resilience.credentials import as_provider
from agentguard.runs.messages import check_key
from agentguard.stores import open_store
from agentguard.stores.memory import MemoryStore
from agentguard.stores.timing import SystemClock
from agentguard.tools.current import CURRENT
from agentguard.tools.locking import Lock
from agentguard.tools.registry import ToolRegistry
from agentguard.tools.schema import ArgumentsInvalid
from agentguard.tracing import CallSpan, Telemetry

T = TypeVar("T")
Steps: TypeAlias = Generator[Effect[Any], Any, T]
"""Several store operations in order, written once for both colours: ``answer = yield from GetRun(...)``."""

log = logging.getLogger("agentguard")

MAX_REPEATS = 20
"""Identical consecutive calls of a model in one run before they count as a loop, unless configured."""


class ToolGateway:
    """The door: every call of a registered tool goes through one of these.

    Default deny: what no rule allows does not run. One gateway serves sync and async callers, threads and
    tasks; build one per process and close it at the end.

    Args:
        tools: Decorated functions, bound methods of them, ``Tool`` objects, or a ``ToolRegistry``.
        policy: One policy, or layers, outermost first. ``None`` denies everything.
        store: Store URL (``memory:``, ``sqlite:///agentguard.db``) or a store object.
        budgets: Budgets beside those that runs bring along.
        approver: Decides inline; without one, calls that need approval are suspended.
        credentials: Provider, mapping or function that hands out secrets; see ``agentguard.Credentials``.
        sinks: Receive every audit record.
        redactor: Removes what must not be recorded, after known secrets have been removed.
        prices: Prices of model calls, a ``Prices`` table or anything with ``price_nano``.
        listeners: Are told about every outcome.
        telemetry: OpenTelemetry settings; by default spans and metrics go to the configured providers, if any.
        clock: Replaces the machine's clock (tests).
        max_repeats: Identical consecutive calls with a ``call_id`` (that is, made by a model) before they
            count as a loop; ``None`` switches this off.
        keep_bodies: Keep arguments and results beside the audit chain; ``False`` keeps digests and facts only.
        message_key: At least 32 random bytes to sign messages between agents with.
        max_workers: Threads at most for sync tools with a timeout and sync tools called from async code.
        lock: Path of an ``agentguard.lock``: tools that changed or appeared since it was written are hidden from
            models, and their calls are refused.

    Raises:
        ConfigurationError: Something does not fit together.
        ToolDefinitionError: A tool cannot be registered.
        PolicyError: A policy does not fit the registered tools.
    """

    def __init__(
        self,
        tools: Iterable[Any] | ToolRegistry = (),
        policy: Policy | Sequence[Policy] | None = None,
        *,
        store: str | Store = "memory:",
        budgets: Budget | Iterable[Budget] = (),
        approver: Approver | AsyncApprover | None = None,
        credentials: CredentialProvider
        | AsyncCredentialProvider
        | Mapping[str, Any]
        | Callable[[CredentialRequest], Any]
        | None = None,
        sinks: Sequence[Sink] = (),
        redactor: Redactor | None = None,
        prices: PriceList | None = None,
        listeners: Sequence[Listener] = (),
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
        max_repeats: int | None = MAX_REPEATS,
        keep_bodies: bool = True,
        message_key: bytes | None = None,
        max_workers: int = 64,
        lock: str | os.PathLike[str] | None = None,
    ) -> None:
        self._closed = False
        self.message_key = None if message_key is None else check_key(message_key)
        sinks = _several("sinks", sinks)
        listeners = _several("listeners", listeners)
        self.registry: ToolRegistry = _registry(tools)
        self.policies: tuple[Policy, ...] = _layers(policy)
        self.shared_budgets: tuple[Budget, ...] = _budgets(budgets)
        self._run_budget = next((b for b in self.shared_budgets if b.scope == "run"), None)
        for sink in sinks:
            if not callable(getattr(sink, "write", None)) or not isinstance(getattr(sink, "required", None), bool):
                raise ConfigurationError(
                    f"AG138 {type(sink).__name__} is no sink: it needs write(records), close() and required.",
                    code="AG138",
                )
        _needs(approver, "approver", "decide")
        _needs(redactor, "redactor", "redact")
        _needs(prices, "price list", "price_nano")
        _needs(clock, "clock", "now_ns", "monotonic")
        for listener in listeners:
            _needs(listener, "listener", "on_event")
        if not isinstance(store, str):
            _needs(store, "store", "perform", "aperform", "close")
        for kind, number in (("max_repeats", max_repeats), ("max_workers", max_workers)):
            if (number is None and kind == "max_workers") or (
                number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1)
            ):
                raise ConfigurationError(
                    f"AG402 {kind} must be a whole number above 0, not {number!r:.40}.", code="AG402"
                )
        self._check_budgets(*self.shared_budgets)
        self.prices = prices
        self._listeners = tuple(listeners)
        self.telemetry = telemetry if telemetry is not None else Telemetry()
        secrets = KnownSecrets()
        rules = compile_layers(self.policies, self.registry)
        self._locked_out = {} if lock is None else Lock.read(lock).refusals(self.registry)
        self._owns_store = isinstance(store, str)
        opened = open_store(store, clock=clock) if isinstance(store, str) else store
        if isinstance(opened, MemoryStore) and isinstance(store, str) and not sinks:
            opened.seal_later()
        self._ports = Ports(
            opened,
            clock=clock or SystemClock(),
            secrets_in_use=secrets,
            approver=approver,
            credentials=as_provider(credentials),
            sinks=tuple(sinks),
            workers=Workers(max_workers),
        )
        self._house = House(
            registry=self.registry,
            plans={tool.spec.name: plan(tool) for tool in self.registry if tool.spec.name not in self._locked_out},
            rules=rules,
            secrets=secrets,
            redactor=redactor,
            has_approver=approver is not None,
            has_sinks=bool(sinks),
            max_repeats=max_repeats,
            keep_bodies=keep_bodies,
            locked_out=self._locked_out,
        )
        self._rules = rules
        self._watched = dataclasses.replace(self._house, rules=TimedRules(rules))
        self._now_ns = self._ports.clock.now_ns
        self._draw = draw
        self.approvals = Approvals(self)
        self.runs = Runs(self)
        self.switches = Switches(self)
        self.budgets = Budgets(self)
        self.audit = Audit(self)

    @classmethod
    def from_yaml(
        cls,
        path: str | os.PathLike[str],
        tools: Iterable[Any] | ToolRegistry = (),
        *,
        bodies: Mapping[str, Callable[..., Any]] | None = None,
        layers: Sequence[Policy] = (),
        **settings: Any,
    ) -> Self:
        """Build a gateway from a configuration file.

        Args:
            path: ``agentguard.yaml``; relative store paths in it start in its own folder.
            tools: The tools, as for the constructor; the file's ``tools`` section completes or tightens them.
            bodies: Functions for tools that only the file describes, by name.
            layers: Policies below the file's own; they can only narrow.
            **settings: Constructor arguments; they replace what the file says.

        Raises:
            PolicyError: The file does not load; carries every finding with file, line and column.
        """
        return cls._from_settings(config.read(path), Path(path).parent, tools, bodies, layers, settings)

    @classmethod
    def from_string(
        cls,
        text: str,
        tools: Iterable[Any] | ToolRegistry = (),
        *,
        source: str = "<string>",
        bodies: Mapping[str, Callable[..., Any]] | None = None,
        layers: Sequence[Policy] = (),
        **settings: Any,
    ) -> Self:
        """The same from a text."""
        return cls._from_settings(config.read_text(text, source), Path(), tools, bodies, layers, settings)

    @classmethod
    def _from_settings(
        cls,
        read: config.Settings,
        folder: Path,
        tools: Iterable[Any] | ToolRegistry,
        bodies: Mapping[str, Callable[..., Any]] | None,
        layers: Sequence[Policy],
        settings: dict[str, Any],
    ) -> Self:
        registry = _registry(tools)
        if read.has_tools:
            registry = registry.with_document(read.document, bodies=bodies)
        elif bodies:
            registry = registry.with_settings({}, bodies=bodies)
        given = dict(settings)
        if read.store is not None:
            given.setdefault("store", _located(read.store, folder))
        if "budgets" not in given:
            config.check_tools(read.document, registry)
            given["budgets"] = read.budgets
        if read.loops_set:
            given.setdefault("max_repeats", read.max_repeats)
        if read.sinks and "sinks" not in given:
            given["sinks"] = config.open_sinks(read)
        if read.credentials is not None:
            given.setdefault("credentials", read.credentials)
        if "telemetry" not in given:
            given["telemetry"] = Telemetry(log_calls=read.log_calls, log_stop_reasons=read.log_stop_reasons)
        if "store" in settings or read.store is None:
            return cls(registry, (read.policy, *_layers(layers, ())), **given)
        try:
            opened = open_store(given["store"], clock=given.get("clock"))
        except ConfigurationError as error:
            raise config.wrong_store(read.document, error) from error
        try:
            given["store"] = opened
            gateway = cls(registry, (read.policy, *_layers(layers, ())), **given)
        except BaseException:
            opened.close()
            raise
        gateway._owns_store = True
        return gateway

    def __repr__(self) -> str:
        return f"<ToolGateway: {len(self.registry)} tools, policy {self.policy_digest[:12]}>"

    @property
    def policy_digest(self) -> str:
        """SHA-256 (hex) over all policy layers in force."""
        return self._rules.digest

    @property
    def store(self) -> Store:
        """The store."""
        return self._ports.store

    # --- runs --------------------------------------------------------------------------------------

    def run(
        self,
        *,
        agent: str,
        tenant: str = "default",
        environment: str = "default",
        user: str | None = None,
        roles: Iterable[str] = (),
        session: str | None = None,
        team: str | None = None,
        task: str | None = None,
        context: Mapping[str, Any] | None = None,
        constraints: Mapping[str, Any] | None = None,
        output_spec: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
        labels: Iterable[str] = (),
        scope: Iterable[str] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Make a run; use it as ``with gateway.run(...) as run:`` or ``async with``.

        Args:
            agent: Name of the acting agent.
            tenant: Customer or unit that owns the run.
            environment: Deployment boundary, for example ``prod``.
            user: Person on whose behalf the agent acts.
            roles: Roles of that person.
            session: Conversation the run belongs to.
            team: Team that pays for it.
            task: What the agent is asked to do.
            context: Structured facts for the agent, JSON values.
            constraints: Limits the agent should know, JSON values.
            output_spec: JSON Schema that the result must satisfy.
            budget: Limits of this run (scope ``run``); the tighter of these and the gateway's apply.
            labels: Data labels the run starts with.
            scope: Tool names or globs the run is narrowed to.
            run_id: Id of the run; made when ``None``.

        Raises:
            ConfigurationError: An id, a schema or a budget is not usable.
        """
        if isinstance(scope, str) or isinstance(labels, str) or isinstance(roles, str):
            raise ConfigurationError("AG131 scope, labels and roles are lists of names, not one text.", code="AG131")
        contract = Contract(
            task,
            dict(context) if context is not None else None,
            dict(constraints) if constraints is not None else None,
            dict(output_spec) if output_spec is not None else None,
        )
        return self._new_run(
            agent=agent,
            tenant=tenant,
            environment=environment,
            user=user,
            roles=tuple(roles),
            session=session,
            team=team,
            task=task,
            budget=budget,
            labels=tuple(labels),
            scope=None if scope is None else (tuple(scope),),
            run_id=run_id,
            parent=None,
            contract=contract,
            inherited=(),
        )

    def _new_run(
        self,
        *,
        agent: str,
        tenant: str,
        environment: str,
        user: str | None,
        roles: tuple[str, ...],
        session: str | None,
        team: str | None,
        task: str | None,
        budget: Budget | None,
        labels: tuple[str, ...],
        scope: tuple[tuple[str, ...], ...] | None,
        run_id: str | None,
        parent: str | None,
        contract: Contract,
        inherited: tuple[Meter, ...],
    ) -> Run:
        named = (("agent", agent), ("tenant", tenant), ("environment", environment))
        for kind, value in (*named, ("user", user), ("session", session), ("team", team), ("run_id", run_id)):
            if value is not None or kind in ("agent", "tenant", "environment"):
                check_id(kind, value)
        for role in roles:
            check_id("role", role)
        for label in labels:
            check_id("label", label)
        if task is not None and not isinstance(task, str):
            raise ConfigurationError(f"AG131 task is text, not {type(task).__name__}.", code="AG131")
        if budget is not None:
            if not isinstance(budget, Budget):
                raise ConfigurationError(f"AG138 budget must be a Budget, not {type(budget).__name__}.", code="AG138")
            if budget.scope != "run":
                raise ConfigurationError(
                    "AG403 the budget of a run has scope run; give others to the gateway.", code="AG403"
                )
            self._check_budgets(budget)
        own = self._run_budget if budget is None else budget.narrowed(self._run_budget)
        if contract.output_spec is not None:
            self._contract_problems(contract.output_spec, None)
        try:
            dumps([contract.task, contract.context, contract.constraints, contract.output_spec])
        except ValueError as error:
            raise ConfigurationError(
                f"AG139 task, context, constraints and output_spec must be JSON values: {error}", code="AG139"
            ) from error
        context = RunContext(
            run_id=run_id or f"run_{draw()[:20]}",
            agent=agent,
            tenant=tenant,
            environment=environment,
            user=user,
            roles=tuple(sorted(set(roles))),
            session=session,
            team=team,
            parent=parent,
            labels=tuple(sorted(set(labels))),
            scope=scope,
            task=task,
        )
        meters = meters_for(context, own, self.shared_budgets, inherited)
        record = RunRecord(
            context=context,
            contract=contract,
            meters=meters,
            status="running",
            labels=context.labels,
            version=0,
            started_at=self._now_ns(),
            working_limit_ns=own.working_ns if own is not None else None,
            max_repeats=own.max_repeats if own is not None else None,
        )
        return Run(self, record, own, opened=False)

    def resume(self, run_id: str, *, tenant: str | None = None) -> Run:
        """Go on with a run that another handle or process opened: same identity, budgets and calls.

        Args:
            run_id: The run.
            tenant: Its tenant; needed when several tenants have a run of that id.

        Raises:
            RunError: There is no such run.
        """
        self._check_open()
        return self._resumed(run_id, self._perform(GetRun(tenant, run_id)))

    async def aresume(self, run_id: str, *, tenant: str | None = None) -> Run:
        """The same for async code."""
        self._check_open()
        return self._resumed(run_id, await self._aperform(GetRun(tenant, run_id)))

    def _resumed(self, run_id: str, record: RunRecord | None) -> Run:
        if record is None:
            raise RunError(f"There is no run {run_id!r:.80} to resume (or several tenants have one: pass tenant=).")
        return Run(self, record, None, opened=True)

    # --- calls ---------------------------------------------------------------------------------------

    def _current(self, run: Run | None) -> Run:
        if run is not None and not isinstance(run, Run):
            raise ConfigurationError(f"AG131 run must be a Run, not {type(run).__name__}.", code="AG131")
        current = run if run is not None else CURRENT.get()
        if isinstance(current, Run) and current._gateway is self:
            return current
        detail = "There is no active run: use `with gateway.run(...)`, or pass run=."
        if current is not None:
            detail = (
                "The run belongs to another gateway, with another policy; call through that one, or open a run here."
            )
        raise NoActiveRun(
            Refused(StopReason.NO_ACTIVE_RUN, None, "The action was not carried out.", False, detail, "", "AG625")
        )

    def call(self, tool: str, arguments: Mapping[str, Any] | None = None, *, run: Run | None = None, **ids: str) -> Any:
        """Make a governed call in ``run``, or in the current run; see :meth:`Run.call`."""
        return self._current(run).call(tool, arguments, **ids)

    async def acall(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, run: Run | None = None, **ids: str
    ) -> Any:
        """The same for async code."""
        return await self._current(run).acall(tool, arguments, **ids)

    def attempt(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, run: Run | None = None, **ids: str
    ) -> Outcome:
        """Make a governed call and return its outcome; see :meth:`Run.attempt`."""
        return self._current(run).attempt(tool, arguments, **ids)

    async def aattempt(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, run: Run | None = None, **ids: str
    ) -> Outcome:
        """The same for async code."""
        return await self._current(run).aattempt(tool, arguments, **ids)

    def decide(
        self, tool: str, arguments: Mapping[str, Any], context: RunContext, *, labels: Iterable[str] = ()
    ) -> Decision:
        """What the policy says about a call. Nothing runs, nothing is charged, nothing is recorded.

        Args:
            tool: Name of the tool.
            arguments: Arguments by name; validated and completed with defaults first.
            context: Identity to decide for.
            labels: Data labels gained by the run besides ``context.labels``.
        """
        known = self.registry.get(tool)
        if known is None:
            hint = self.registry.did_you_mean(tool)
            reason = f"no tool {tool!r:.140} is registered{f'; {hint}' if hint else ''}"
            return Decision(
                "deny", reasons=(reason,), policy_digest=self.policy_digest, message="There is no such tool."
            )
        if tool in self._locked_out:
            reason = self._locked_out[tool]
            return Decision(
                "deny", reasons=(reason,), policy_digest=self.policy_digest, message="The tool has changed."
            )
        try:
            effective = known.validate(arguments).effective
        except ArgumentsInvalid as error:
            return Decision("deny", reasons=(error.detail,), policy_digest=self.policy_digest, message=error.message)
        return self._house.rules.decide(tool, effective, context, (*context.labels, *labels), self._now_ns())

    def visible(self, context: RunContext | Run) -> ToolRegistry:
        """The tools that a run may see: those of which some call could be allowed or approved."""
        labels: tuple[str, ...] = ()
        if isinstance(context, Run):
            labels, context = context.labels, context.context
        seen = self._rules.visible
        now = self._now_ns()
        labels = labels or context.labels
        names = [name for name in self._house.plans if seen(name, context, labels, now)]
        return self.registry.only(names)

    def _govern(self, job: Job) -> Outcome:
        if self._closed:
            return _closed(job)
        if self.telemetry.listening:
            with self._calling(job) as span, Stopwatch() as watch:
                outcome = drive(govern(self._watched, job), self._ports)
                self._finished(span, job, outcome, watch)
        else:
            outcome = drive(govern(self._house, job), self._ports)
        if self._listeners:
            self._tell(job, outcome)
        return outcome

    def _agovern(self, job: Job) -> Awaitable[Outcome]:
        if self._closed or self._listeners or self.telemetry.listening:
            return self._aobserved(job)
        return adrive(govern(self._house, job), self._ports)

    async def _aobserved(self, job: Job) -> Outcome:
        """The same for somebody who watches."""
        if self._closed:
            return _closed(job)
        if self.telemetry.listening:
            with self._calling(job) as span, Stopwatch() as watch:
                outcome = await adrive(govern(self._watched, job), self._ports)
                self._finished(span, job, outcome, watch)
        else:
            outcome = await adrive(govern(self._house, job), self._ports)
        if self._listeners:
            self._tell(job, outcome)
        return outcome

    def _calling(self, job: Job) -> CallSpan:
        known = self._house.plans.get(job.tool)
        description = known.tool.spec.description if known is not None else ""
        return self.telemetry.calling(job.tool, job.run.context, job.call_id, description)

    def _finished(self, span: CallSpan, job: Job, outcome: Outcome, watch: Stopwatch) -> None:
        if span.idle:
            return
        content = self.telemetry.wants_content
        span.finish(
            outcome,
            job.decision,
            seq=job.seq,
            key=job.key,
            approval_id=job.approval_id,
            decision_s=watch.seconds,
            approval_state="consumed" if job.approval_id and isinstance(outcome, Completed) else None,
            arguments_json=job.arguments_json.decode() if content and job.arguments_json else None,
            result_json=job.result_json.decode() if content and job.result_json else None,
        )
        if isinstance(outcome, Suspended):
            self.telemetry.approval_requested(job.tool)
        known = self._house.plans.get(job.tool)
        if known is not None and known.cost_nano and isinstance(outcome, (Completed, Failed)) and outcome.attempts:
            self.telemetry.cost(known.cost_nano * outcome.attempts / NANO, tool=job.tool)

    def _tell(self, job: Job, outcome: Outcome) -> None:
        if not self._listeners:
            return
        reason = getattr(outcome, "reason", None)
        facts = {
            "agent": job.run.context.agent,
            "call": job.call_id,
            "outcome": type(outcome).__name__.lower(),
            "reason": reason.value if isinstance(reason, StopReason) else None,
            "run": job.run.context.run_id,
            "tenant": job.run.context.tenant,
            "tool": job.tool,
        }
        for listener in self._listeners:
            try:
                listener.on_event("call.outcome", facts)
            except Exception as error:  # a listener is told afterwards; it cannot change anything
                log.error("listener %s failed: %s", type(listener).__name__, type(error).__name__)

    # --- store, sinks, contract ------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("This gateway is closed; build a new one.")

    def _perform(self, operation: Operation[T]) -> T:
        self._check_open()
        answer = self._ports.store.perform(operation)
        if self._house.has_sinks:
            records = self._through(_written(operation, answer))
            if records:
                try:
                    self._ports.publish(records)
                except SinkError:
                    if isinstance(operation, OpenRun):
                        raise
                    # It is done and cannot be refused any more; the driver has counted the gap.
        return answer

    async def _aperform(self, operation: Operation[T]) -> T:
        """The same for async code: a cancelled caller does not take back what is on its way to the store."""
        self._check_open()
        if self._ports.instant and not self._house.has_sinks:
            return self._ports.store.perform(operation)
        return await asyncio.shield(self._ports.detach(self._stored(operation)))

    async def _stored(self, operation: Operation[T]) -> T:
        answer = await self._ports.store.aperform(operation)
        if self._house.has_sinks:
            records = await self._all(_written(operation, answer))
            if records:
                try:
                    await self._ports.apublish(records)
                except SinkError:
                    if isinstance(operation, OpenRun):
                        raise
        return answer

    def _through(self, steps: Steps[T]) -> T:
        """Carry out several store operations in order."""
        try:
            operation = next(steps)
            while True:
                try:
                    answer = self._perform(_operation(operation))
                except Exception as error:
                    operation = steps.throw(error)
                else:
                    operation = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _athrough(self, steps: Steps[T]) -> T:
        """The same for async code, to the end even when the caller is cancelled."""
        return await asyncio.shield(self._ports.detach(self._all(steps)))

    async def _all(self, steps: Steps[T]) -> T:
        try:
            operation = next(steps)
            while True:
                try:
                    answer = await self._aperform(_operation(operation))
                except Exception as error:
                    operation = steps.throw(error)
                else:
                    operation = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self._ports.detach(work)

    def _kept(self, value: Any) -> Any:
        """A JSON value without known secrets and without what the host's redactor removes; it never raises."""
        try:
            data = to_json(value, fallback=repr, inf_nan_mode="strings")
        except ValueError:  # a lone surrogate
            data = json.dumps(value, default=repr, ensure_ascii=False).encode("utf-8", "replace")
        if self._house.secrets:
            data = self._house.secrets.redact_bytes(data)
        plain = from_json(data)
        if self._house.redactor is None:
            return plain
        try:
            return from_json(to_json(self._house.redactor.redact(plain)))
        except Exception as error:  # what happened is recorded all the same, without what was said
            return {"withheld": f"the redactor failed with {type(error).__name__}"}

    def _body(self, value: Any) -> bytes:
        """The body of a record."""
        return to_json(self._kept(value)) if self._house.keep_bodies else b""

    def _text(self, text: str) -> str:
        """Text for a record's facts, without known secrets."""
        return str(self._house.secrets.redact(text)) if self._house.secrets else text

    def _check_budgets(self, *budgets: Budget) -> None:
        """A limit for a tool that does not exist would look like protection and be none."""
        for budget in budgets:
            for name in budget.per_tool:
                if name not in self.registry:
                    hint = self.registry.did_you_mean(name)
                    raise ConfigurationError(
                        f"AG201 per_tool: no tool {name!r:.80} is registered{f'; {hint}' if hint else ''}.",
                        code="AG201",
                    )

    def _contract_problems(self, spec: Mapping[str, Any], value: Any) -> list[str]:
        """Where ``value`` does not satisfy an output spec."""
        from agentguard.tools.given import GivenResult
        from agentguard.tools.schema import OutputInvalid

        try:
            GivenResult(dict(spec), "output_spec").check(value)
        except OutputInvalid as error:
            return [error.detail]
        return []

    # --- end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close sinks and store. Further calls are refused. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for sink in self._ports.sinks:
            try:
                sink.close()
            except Exception as error:  # nothing more will be written; the store has every record
                log.error("sink %s did not close: %s", type(sink).__name__, type(error).__name__)
        if self._owns_store:
            self._ports.store.close()

    async def aclose(self) -> None:
        """Wait for the rest of interrupted calls, then close."""
        await self._ports.settled()
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _closed(job: Job) -> Refused:
    return refused(job, StopReason.GATEWAY_CLOSED, "This gateway is closed; build a new one.", code="AG660")


def _written(operation: Operation[Any], answer: Any) -> Steps[tuple[AuditRecord, ...]]:
    """What an operation has written last into a chain; the sinks fetch what they lack before that."""
    match operation:
        case Vote() | ResolveCall():
            tenant, run_id = answer.tenant, answer.run_id
        case PutState():
            tenant, run_id = operation.tenant, operation.run_id
        case _:
            records: tuple[AuditRecord, ...] = getattr(answer, "records", ())
            return records
    run = yield from GetRun(tenant, run_id)
    return () if run is None else (yield from ReadAudit(tenant, run_id, run.audit_seq - 1, 1))


def _operation(effect: Effect[Any]) -> Operation[Any]:
    if not isinstance(effect, Operation):
        raise TypeError(f"{type(effect).__name__} is no store operation")
    return effect


def _needs(part: object, what: str, *methods: str) -> None:
    """A part of the set-up that is none would fail when it is needed; it is refused when it is given."""
    if part is not None and (isinstance(part, type) or not all(callable(getattr(part, m, None)) for m in methods)):
        kind = part.__name__ if isinstance(part, type) else type(part).__name__
        raise ConfigurationError(f"AG138 {kind} is no {what}: give an object with {', '.join(methods)}.", code="AG138")


def _several(what: str, given: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigurationError(f"AG138 {what} must be a list, not {type(given).__name__}.", code="AG138")
    return tuple(given)


def _registry(tools: Iterable[Any] | ToolRegistry) -> ToolRegistry:
    return tools if isinstance(tools, ToolRegistry) else ToolRegistry.of(*_several("tools", tools))


def _layers(policy: Policy | Sequence[Policy] | None, empty: tuple[Policy, ...] = (Policy(),)) -> tuple[Policy, ...]:
    if policy is None:
        return empty
    if isinstance(policy, Policy):
        return (policy,)
    if isinstance(policy, (str, bytes, os.PathLike)):
        raise ConfigurationError("AG138 policy must be a Policy; use Policy.from_yaml(path).", code="AG138")
    layers = _several("policy", policy)
    if not all(isinstance(layer, Policy) for layer in layers):
        raise ConfigurationError("AG138 policy must be a Policy or a sequence of them.", code="AG138")
    return layers or empty


def _budgets(budgets: Budget | Iterable[Budget]) -> tuple[Budget, ...]:
    given = (budgets,) if isinstance(budgets, Budget) else _several("budgets", budgets)
    if not all(isinstance(budget, Budget) for budget in given):
        raise ConfigurationError("AG138 budgets must be Budget objects.", code="AG138")
    return merged(given)


def _located(url: str, folder: Path) -> str:
    """A relative SQLite path in a file starts in the file's own folder, wherever the process was started."""
    prefix = "sqlite:///"
    if not url.startswith(prefix) or url.startswith(prefix + "/") or url == prefix:
        return url
    return prefix + str(folder / url[len(prefix) :])
