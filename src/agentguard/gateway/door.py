"""``ToolGateway``: the one object a service owns, and the only way to run a registered tool."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

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
from agentguard.domain.calls import Completed, Outcome, Refused, Suspended
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import Decision, Mode, StopReason
from agentguard.domain.operations import GetRun, Operation
from agentguard.domain.runs import RunRecord
from agentguard.domain.usage import Meter
from agentguard.errors import ConfigurationError, NoActiveRun, RunError, SinkError, StoreUnavailable
from agentguard.gateway.parts import Approvals, Audit, Budgets, Runs, Switches
from agentguard.gateway.raising import value_of
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
from agentguard.stores import open_store
from agentguard.stores.timing import SystemClock
from agentguard.tools.current import CURRENT
from agentguard.tools.registry import ToolRegistry
from agentguard.tools.schema import ArgumentsInvalid
from agentguard.tracing import CallSpan, Telemetry

T = TypeVar("T")

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
        max_workers: Threads at most for sync tools with a timeout and sync tools called from async code.

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
        max_workers: int = 64,
    ) -> None:
        self._closed = False
        self.registry: ToolRegistry = tools if isinstance(tools, ToolRegistry) else ToolRegistry.of(*tools)
        self.policies: tuple[Policy, ...] = _layers(policy)
        self.shared_budgets: tuple[Budget, ...] = _budgets(budgets)
        self._run_budget = next((b for b in self.shared_budgets if b.scope == "run"), None)
        for sink in sinks:
            if not callable(getattr(sink, "write", None)) or not isinstance(getattr(sink, "required", None), bool):
                raise ConfigurationError(
                    f"AG138 {type(sink).__name__} is no sink: it needs write(records), close() and required.",
                    code="AG138",
                )
        if approver is not None and not callable(getattr(approver, "decide", None)):
            raise ConfigurationError(f"AG138 {type(approver).__name__} is no approver: it needs decide(request).")
        if max_repeats is not None and (isinstance(max_repeats, bool) or max_repeats < 1):
            raise ConfigurationError("AG402 max_repeats must be a whole number above 0, or None.", code="AG402")
        self.prices = prices
        self._listeners = tuple(listeners)
        self.telemetry = telemetry if telemetry is not None else Telemetry()
        secrets = KnownSecrets()
        rules = compile_layers(self.policies, self.registry)
        self._owns_store = isinstance(store, str)
        opened = open_store(store) if isinstance(store, str) else store
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
            plans={tool.spec.name: plan(tool) for tool in self.registry},
            rules=rules,
            secrets=secrets,
            redactor=redactor,
            has_approver=approver is not None,
            has_sinks=bool(sinks),
            max_repeats=max_repeats,
            keep_bodies=keep_bodies,
        )
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
        registry = tools if isinstance(tools, ToolRegistry) else ToolRegistry.of(*tools)
        if read.has_tools:
            registry = registry.with_document(read.document, bodies=bodies)
        elif bodies:
            registry = registry.with_settings({}, bodies=bodies)
        given = dict(settings)
        if read.store is not None:
            given.setdefault("store", _located(read.store, folder))
        given.setdefault("budgets", read.budgets)
        if read.loops_set:
            given.setdefault("max_repeats", read.max_repeats)
        if read.sinks:
            given.setdefault("sinks", read.sinks)
        if read.credentials is not None:
            given.setdefault("credentials", read.credentials)
        return cls(registry, (read.policy, *layers), **given)

    def __repr__(self) -> str:
        return f"<ToolGateway: {len(self.registry)} tools, policy {self.policy_digest[:12]}>"

    @property
    def policy_digest(self) -> str:
        """SHA-256 (hex) over all policy layers in force."""
        return self._house.rules.digest

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
        if budget is not None and budget.scope != "run":
            raise ConfigurationError("AG403 the budget of a run has scope run; give others to the gateway.", code="AG403")
        own = self._run_budget if budget is None else budget.narrowed(self._run_budget)
        if contract.output_spec is not None:
            self._contract_problems(contract.output_spec, None)
        try:
            to_json([contract.context, contract.constraints, contract.output_spec])
        except Exception as error:
            raise ConfigurationError(f"AG139 context and constraints must be JSON values: {error}") from error
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
        return Run(self, record, self._run_budget, opened=True)

    # --- calls ---------------------------------------------------------------------------------------

    def _current(self, run: Run | None) -> Run:
        if run is not None:
            return run
        current = CURRENT.get()
        if isinstance(current, Run):
            return current
        detail = "There is no active run: use `with gateway.run(...)`, or pass run=."
        raise NoActiveRun(
            Refused(StopReason.NO_ACTIVE_RUN, None, "The action was not carried out.", False, detail, "", "AG625")
        )

    def call(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, run: Run | None = None, **ids: str
    ) -> Any:
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
            return Decision("deny", reasons=(reason,), policy_digest=self.policy_digest, message="There is no such tool.")
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
        seen = self._house.rules.visible
        now = self._now_ns()
        labels = labels or context.labels
        return self.registry.only([t.spec.name for t in self.registry if seen(t.spec.name, context, labels, now)])

    def _govern(self, job: Job) -> Outcome:
        if self._closed:
            return _closed(job)
        with self._calling(job) as span:
            outcome = drive(govern(self._house, job), self._ports)
            self._finished(span, job, outcome)
        self._tell(job, outcome)
        return outcome

    async def _agovern(self, job: Job) -> Outcome:
        if self._closed:
            return _closed(job)
        with self._calling(job) as span:
            outcome = await adrive(govern(self._house, job), self._ports)
            self._finished(span, job, outcome)
        self._tell(job, outcome)
        return outcome

    def _calling(self, job: Job) -> CallSpan:
        known = self._house.plans.get(job.tool)
        description = known.tool.spec.description if known is not None else ""
        return self.telemetry.calling(job.tool, job.run.context, job.call_id, description)

    def _finished(self, span: CallSpan, job: Job, outcome: Outcome) -> None:
        if span.idle:
            return
        content = self.telemetry.wants_content
        span.finish(
            outcome,
            job.decision,
            seq=job.seq,
            key=job.key,
            approval_id=job.approval_id,
            approval_state="consumed" if job.approval_id and isinstance(outcome, Completed) else None,
            arguments_json=job.arguments_json.decode() if content and job.arguments_json else None,
            result_json=job.result_json.decode() if content and job.result_json else None,
        )
        if isinstance(outcome, Suspended):
            self.telemetry.approval_requested(job.tool)

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
        records = getattr(answer, "records", ())
        if records and self._house.has_sinks:
            self._ports.publish(records)
        return answer

    async def _aperform(self, operation: Operation[T]) -> T:
        self._check_open()
        if self._ports.instant:
            answer = self._ports.store.perform(operation)
        else:
            answer = await asyncio.shield(asyncio.ensure_future(self._ports.store.aperform(operation)))
        records = getattr(answer, "records", ())
        if records and self._house.has_sinks:
            await self._ports.apublish(records)
        return answer

    def _detach(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._ports.detach(work)

    def _clean(self, body: bytes) -> bytes:
        """A record's body without known secrets and without what the host's redactor removes."""
        if self._house.secrets:
            body = self._house.secrets.redact_bytes(body)
        if self._house.redactor is not None:
            body = to_json(self._house.redactor.redact(from_json(body)))
        return body if self._house.keep_bodies else b""

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


def _layers(policy: Policy | Sequence[Policy] | None) -> tuple[Policy, ...]:
    if policy is None:
        return (Policy(),)
    if isinstance(policy, Policy):
        return (policy,)
    if isinstance(policy, (str, bytes, os.PathLike)):
        raise ConfigurationError("AG138 policy must be a Policy; use Policy.from_yaml(path).", code="AG138")
    layers = tuple(policy)
    if not all(isinstance(layer, Policy) for layer in layers):
        raise ConfigurationError("AG138 policy must be a Policy or a sequence of them.", code="AG138")
    return layers or (Policy(),)


def _budgets(budgets: Budget | Iterable[Budget]) -> tuple[Budget, ...]:
    given = (budgets,) if isinstance(budgets, Budget) else tuple(budgets)
    if not all(isinstance(budget, Budget) for budget in given):
        raise ConfigurationError("AG138 budgets must be Budget objects.", code="AG138")
    return merged(given)


def _located(url: str, folder: Path) -> str:
    """A relative SQLite path in a file starts in the file's own folder, wherever the process was started."""
    prefix = "sqlite:///"
    if not url.startswith(prefix) or url.startswith(prefix + "/") or url == prefix:
        return url
    return prefix + str(folder / url[len(prefix) :])
