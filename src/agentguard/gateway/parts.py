"""The parts of a gateway that people and tools work with: approvals, runs, switches, budgets, audit.

Each method has an ``a``-prefixed twin for async code. ``tenant=None`` looks across tenants and is meant for
operators; a service that serves tenants passes theirs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import to_json

from agentguard.audit.anchoring import Head, anchor
from agentguard.audit.exporting import export_lines
from agentguard.audit.verifying import ChainReport, verify_chain
from agentguard.budget.budget import meters_for
from agentguard.canonical import dumps
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity, GrantScope, Verdict
from agentguard.domain.calls import CallRecord
from agentguard.domain.context import RunContext
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import (
    GetApproval,
    GetRun,
    Kill,
    ListApprovals,
    ListCalls,
    ListRuns,
    ListSwitches,
    ReadAudit,
    ReadBudgets,
    ResolveCall,
    Restore,
    Vote,
)
from agentguard.domain.runs import ApprovalFilter, RunFilter, RunRecord, Switch
from agentguard.domain.usage import NANO, BudgetLine
from agentguard.errors import ApprovalError, ConfigurationError, RunError
from agentguard.naming import check_id
from agentguard.tools.schema import ArgumentsInvalid

if TYPE_CHECKING:
    from agentguard.gateway.door import Steps, ToolGateway

_PAGE = 1000
_ALL_RUNS = 1_000_000


def _identity(by: ApproverIdentity | None) -> ApproverIdentity:
    if not isinstance(by, ApproverIdentity):
        raise ApprovalError(
            "by= must be an ApproverIdentity(name, roles) from your own authenticated channel.", code="AG639"
        )
    return by


class Approvals:
    """Requests that wait for a person, and the answers."""

    def __init__(self, gateway: ToolGateway) -> None:
        self._gateway = gateway

    def list(self, **filters: Any) -> tuple[ApprovalRequest, ...]:
        """Requests that match all filters, oldest first.

        Args:
            **filters: ``tenant``, ``run_id``, ``status``, ``tool``, ``role``, ``limit``.
        """
        return self._gateway._perform(ListApprovals(_filter(ApprovalFilter, filters)))

    async def alist(self, **filters: Any) -> tuple[ApprovalRequest, ...]:
        """The same for async code."""
        return await self._gateway._aperform(ListApprovals(_filter(ApprovalFilter, filters)))

    def get(self, id: str, *, tenant: str | None = None) -> ApprovalRequest:
        """One request.

        Raises:
            ApprovalError: There is no such request.
        """
        return _need_approval(id, self._gateway._perform(GetApproval(id, tenant)))

    async def aget(self, id: str, *, tenant: str | None = None) -> ApprovalRequest:
        """The same for async code."""
        return _need_approval(id, await self._gateway._aperform(GetApproval(id, tenant)))

    def approve(
        self,
        id: str,
        *,
        by: ApproverIdentity,
        arguments: Mapping[str, Any] | None = None,
        note: str | None = None,
        scope: GrantScope = "call",
        until_ns: int | None = None,
        tenant: str | None = None,
    ) -> ApprovalRequest:
        """Approve a request; the call runs when it is made again with the same ``call_id``.

        Args:
            id: The request.
            by: Who approves, from an authenticated channel.
            arguments: Run these instead of what was shown; they are validated and decided again.
            note: Why.
            scope: ``call`` (only this one), ``arguments`` (the same arguments in this run), ``run`` (the tool
                in this run) or ``until`` (the tool for this agent until ``until_ns``).
            until_ns: End of an ``until`` approval, ns since the epoch.
            tenant: Only if the request belongs to this tenant.

        Raises:
            ApprovalError: The approval does not count (decided, expired, wrong role, requester, ...).
        """
        verdict = Verdict("approve", _identity(by), arguments, note, scope, until_ns)
        if arguments is not None:
            verdict = self._completed(verdict, self.get(id, tenant=tenant))
        return self._told(self._gateway._perform(Vote(id, verdict, tenant)))

    async def aapprove(
        self,
        id: str,
        *,
        by: ApproverIdentity,
        arguments: Mapping[str, Any] | None = None,
        note: str | None = None,
        scope: GrantScope = "call",
        until_ns: int | None = None,
        tenant: str | None = None,
    ) -> ApprovalRequest:
        """The same for async code."""
        verdict = Verdict("approve", _identity(by), arguments, note, scope, until_ns)
        if arguments is not None:
            verdict = self._completed(verdict, await self.aget(id, tenant=tenant))
        return self._told(await self._gateway._aperform(Vote(id, verdict, tenant)))

    def _told(self, request: ApprovalRequest) -> ApprovalRequest:
        if request.status != "pending" and request.decided_at is not None:
            waited = (request.decided_at - request.created_at) / NANO
            self._gateway.telemetry.approval_ended(request.tool, request.status, waited)
        return request

    def _completed(self, verdict: Verdict, request: ApprovalRequest) -> Verdict:
        """Edited arguments as they will take effect: checked against the tool's schema, defaults filled in.

        A process that does not have the tool (an operator's console) records them as they are given; then
        they must be complete, since exactly what was approved may run.
        """
        tool = self._gateway.registry.get(request.tool)
        if tool is None or verdict.arguments is None:
            return verdict
        try:
            effective = tool.validate(verdict.arguments).effective
        except ArgumentsInvalid as error:
            raise ApprovalError(
                f"The edited arguments do not fit {request.tool}: {error.detail}", code="AG637"
            ) from error
        return replace(verdict, arguments=effective)

    def reject(
        self, id: str, *, by: ApproverIdentity, reason: str | None = None, tenant: str | None = None
    ) -> ApprovalRequest:
        """Reject a request for good; ``reason`` is shown to the model.

        Raises:
            ApprovalError: The rejection does not count.
        """
        return self._told(self._gateway._perform(Vote(id, Verdict("reject", _identity(by), reason=reason), tenant)))

    async def areject(
        self, id: str, *, by: ApproverIdentity, reason: str | None = None, tenant: str | None = None
    ) -> ApprovalRequest:
        """The same for async code."""
        return self._told(
            await self._gateway._aperform(Vote(id, Verdict("reject", _identity(by), reason=reason), tenant))
        )

    def escalate(
        self, id: str, *, to: str | tuple[str, ...], by: ApproverIdentity, tenant: str | None = None
    ) -> ApprovalRequest:
        """Let further roles decide too.

        Raises:
            ApprovalError: The escalation does not count.
        """
        roles = (to,) if isinstance(to, str) else tuple(to)
        return self._told(self._gateway._perform(Vote(id, Verdict("escalate", _identity(by), to=roles), tenant)))

    async def aescalate(
        self, id: str, *, to: str | tuple[str, ...], by: ApproverIdentity, tenant: str | None = None
    ) -> ApprovalRequest:
        """The same for async code."""
        roles = (to,) if isinstance(to, str) else tuple(to)
        return self._told(await self._gateway._aperform(Vote(id, Verdict("escalate", _identity(by), to=roles), tenant)))

    def terminate(
        self, id: str, *, by: ApproverIdentity, reason: str | None = None, tenant: str | None = None
    ) -> ApprovalRequest:
        """Reject the request and stop its run.

        Raises:
            ApprovalError: The answer does not count.
        """
        return self._told(self._gateway._perform(Vote(id, Verdict("terminate", _identity(by), reason=reason), tenant)))

    async def aterminate(
        self, id: str, *, by: ApproverIdentity, reason: str | None = None, tenant: str | None = None
    ) -> ApprovalRequest:
        """The same for async code."""
        return self._told(
            await self._gateway._aperform(Vote(id, Verdict("terminate", _identity(by), reason=reason), tenant))
        )


def _filter(kind: type[Any], given: Mapping[str, Any]) -> Any:
    try:
        return kind(**given)
    except TypeError as error:
        known = ", ".join(f for f in kind.__slots__ if f != "extra")
        raise ConfigurationError(f"AG135 unknown filter; use {known} ({error}).", code="AG135") from error


def _need_approval(id: str, found: ApprovalRequest | None) -> ApprovalRequest:
    if found is None:
        raise ApprovalError(f"There is no approval request {id!r:.80}.", code="AG631")
    return found


class Runs:
    """Every run there is, and what became of its calls."""

    def __init__(self, gateway: ToolGateway) -> None:
        self._gateway = gateway

    def list(self, **filters: Any) -> tuple[RunRecord, ...]:
        """Runs that match all filters, newest first.

        Args:
            **filters: ``tenant``, ``agent``, ``user``, ``session``, ``status``, ``limit``.
        """
        return self._gateway._perform(ListRuns(_filter(RunFilter, filters)))

    async def alist(self, **filters: Any) -> tuple[RunRecord, ...]:
        """The same for async code."""
        return await self._gateway._aperform(ListRuns(_filter(RunFilter, filters)))

    def get(self, run_id: str, *, tenant: str | None = None) -> RunRecord:
        """One run.

        Raises:
            RunError: There is no such run, or several tenants have one of that id and no tenant was given.
        """
        return _need_run(run_id, self._gateway._perform(GetRun(tenant, run_id)))

    async def aget(self, run_id: str, *, tenant: str | None = None) -> RunRecord:
        """The same for async code."""
        return _need_run(run_id, await self._gateway._aperform(GetRun(tenant, run_id)))

    def calls(self, run_id: str, *, tenant: str | None = None) -> tuple[CallRecord, ...]:
        """The calls of a run that were admitted or wait for a person, oldest first."""
        record = self.get(run_id, tenant=tenant)
        return self._gateway._perform(ListCalls(record.context.tenant, run_id))

    async def acalls(self, run_id: str, *, tenant: str | None = None) -> tuple[CallRecord, ...]:
        """The same for async code."""
        record = await self.aget(run_id, tenant=tenant)
        return await self._gateway._aperform(ListCalls(record.context.tenant, run_id))

    def timeline(self, run_id: str, *, tenant: str | None = None) -> Iterator[AuditRecord]:
        """Everything that happened in a run, in order: its audit chain."""
        return self._gateway.audit.records(run_id, tenant=tenant)

    def resolve(
        self,
        run_id: str,
        call_id: str,
        *,
        status: Literal["succeeded", "failed", "refused"],
        value: Any = None,
        by: str,
        reason: str = "",
        tenant: str | None = None,
    ) -> CallRecord:
        """Say what became of an ambiguous call: a person has looked.

        Args:
            run_id: The run.
            call_id: The call.
            status: ``succeeded`` (it took effect; ``value`` is its result), ``failed`` (it did not, and must
                not be repeated) or ``refused`` (it did not, and may be made again).
            value: Result for ``succeeded``.
            by: Who looked.
            reason: What was found.
            tenant: Tenant of the run.

        Raises:
            RunError: There is no such call.
            StoreConflict: The call is not ambiguous.
        """
        call = _need_call(run_id, call_id, self.calls(run_id, tenant=tenant))
        return self._gateway._perform(_resolving(call, status, value, by, reason))

    async def aresolve(
        self,
        run_id: str,
        call_id: str,
        *,
        status: Literal["succeeded", "failed", "refused"],
        value: Any = None,
        by: str,
        reason: str = "",
        tenant: str | None = None,
    ) -> CallRecord:
        """The same for async code."""
        call = _need_call(run_id, call_id, await self.acalls(run_id, tenant=tenant))
        return await self._gateway._aperform(_resolving(call, status, value, by, reason))


def _need_run(run_id: str, found: RunRecord | None) -> RunRecord:
    if found is None:
        raise RunError(f"There is no run {run_id!r:.80} (or several tenants have one: pass tenant=).")
    return found


def _need_call(run_id: str, call_id: str, calls: tuple[CallRecord, ...]) -> CallRecord:
    for call in calls:
        if call.call_id == call_id:
            return call
    raise RunError(f"Run {run_id} has no call {call_id!r:.80}.")


def _resolving(call: CallRecord, status: Any, value: Any, by: str, reason: str) -> ResolveCall:
    if status not in ("succeeded", "failed", "refused"):
        raise ConfigurationError(
            f"AG136 status must be succeeded, failed or refused, not {status!r:.40}.", code="AG136"
        )
    if value is not None and status != "succeeded":
        raise ConfigurationError(f"AG136 a call that has {status} has no value.", code="AG136")
    _reasoned(by, reason)
    stored = None
    if status == "succeeded":
        try:
            stored = '{"value":' + dumps(value).decode() + "}"
        except ValueError as error:
            raise ConfigurationError(f"AG136 the value is not a JSON value: {error}", code="AG136") from error
    elif status == "failed":
        kept = {"message": reason, "model": "The tool failed.", "reason": "tool_error", "type": "Resolved"}
        stored = to_json(kept).decode()
    return ResolveCall(call.tenant, call.key, status, stored, by, reason)


class Switches:
    """Kill switches: what is stopped now, by whom and why."""

    def __init__(self, gateway: ToolGateway) -> None:
        self._gateway = gateway

    def kill(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        user: str | None = None,
        tool: str | None = None,
        run: str | None = None,
        everything: bool = False,
        reason: str,
        by: str,
    ) -> Switch:
        """Stop everything, a tenant, an agent, a user, a tool or a run: no new call of it starts.

        ``agent``, ``user`` and ``tool`` without a tenant stop them in every tenant. A run is looked up; with its
        tenant, one that is not open yet can be stopped as well.

        Raises:
            ConfigurationError: Not exactly one thing is named.
            RunError: There is no such run, or several tenants have one of that id.
        """
        _reasoned(by, reason)
        return self._gateway._through(self._killing(_target(tenant, agent, user, tool, run, everything), reason, by))

    def _killing(self, target: tuple[str, str, str], reason: str, by: str) -> Steps[Switch]:
        scope, owner, value = yield from self._located(target)
        return (yield from Kill(scope, owner, value, reason, by))

    def _restoring(self, target: tuple[str, str, str], by: str) -> Steps[bool]:
        scope, owner, value = yield from self._located(target)
        return (yield from Restore(scope, owner, value, by))

    def _located(self, target: tuple[str, str, str]) -> Steps[tuple[str, str, str]]:
        """A run's switch stands under its tenant; under any other it would stop nothing."""
        scope, owner, value = target
        if scope == "run" and not owner:
            owner = _need_run(value, (yield from GetRun(None, value))).context.tenant
        return scope, owner, value

    async def akill(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        user: str | None = None,
        tool: str | None = None,
        run: str | None = None,
        everything: bool = False,
        reason: str,
        by: str,
    ) -> Switch:
        """The same for async code."""
        _reasoned(by, reason)
        target = _target(tenant, agent, user, tool, run, everything)
        return await self._gateway._athrough(self._killing(target, reason, by))

    def restore(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        user: str | None = None,
        tool: str | None = None,
        run: str | None = None,
        everything: bool = False,
        by: str,
    ) -> bool:
        """Turn a kill switch off; ``False`` when it was not on."""
        _reasoned(by)
        return self._gateway._through(self._restoring(_target(tenant, agent, user, tool, run, everything), by))

    async def arestore(
        self,
        *,
        tenant: str | None = None,
        agent: str | None = None,
        user: str | None = None,
        tool: str | None = None,
        run: str | None = None,
        everything: bool = False,
        by: str,
    ) -> bool:
        """The same for async code."""
        _reasoned(by)
        target = _target(tenant, agent, user, tool, run, everything)
        return await self._gateway._athrough(self._restoring(target, by))

    def list(self, *, tenant: str | None = None) -> tuple[Switch, ...]:
        """The switches that are on."""
        return self._gateway._perform(ListSwitches(tenant))

    async def alist(self, *, tenant: str | None = None) -> tuple[Switch, ...]:
        """The same for async code."""
        return await self._gateway._aperform(ListSwitches(tenant))


def _target(
    tenant: str | None, agent: str | None, user: str | None, tool: str | None, run: str | None, everything: bool
) -> tuple[str, str, str]:
    named = [(k, v) for k, v in (("agent", agent), ("user", user), ("tool", tool), ("run", run)) if v is not None]
    if everything:
        if named or tenant is not None:
            raise ConfigurationError("AG137 everything=True stops everything; name nothing else.", code="AG137")
        return "everything", "", ""
    if len(named) > 1 or (not named and tenant is None):
        raise ConfigurationError(
            "AG137 name exactly one of everything, tenant, agent, user, tool or run (a tenant may go with the others).",
            code="AG137",
        )
    if tenant is not None:
        check_id("tenant", tenant)
    if not named:
        return "tenant", tenant or "", ""
    scope, value = named[0]
    return scope, tenant or "", check_id("run_id" if scope == "run" else scope, value)


def _reasoned(by: object, reason: object = "") -> None:
    """Who and why go into the record of what was stopped; nobody is no answer."""
    if not isinstance(by, str) or not by.strip() or not by.isprintable() or len(by) > 256:
        raise ConfigurationError("AG137 by= must say who does this.", code="AG137")
    if not isinstance(reason, str):
        raise ConfigurationError("AG137 reason= must be text.", code="AG137")


class Budgets:
    """What has been used of the budgets."""

    def __init__(self, gateway: ToolGateway) -> None:
        self._gateway = gateway

    def read(self, run_id: str | None = None, *, tenant: str | None = None, **who: str) -> tuple[BudgetLine, ...]:
        """Usage and limits of the accounts of a run, or of the shared budgets of a tenant.

        Args:
            run_id: A run, or ``None``.
            tenant: Tenant of the run (needed when several have one of that id), or of the shared budgets
                (``default`` when there is none).
            **who: ``agent``, ``user``, ``session``, ``team`` for shared budgets of those scopes.

        Raises:
            RunError: There is no such run.
            ConfigurationError: An unknown filter.
        """
        return self._gateway._through(self._reading(run_id, tenant, who))

    async def aread(
        self, run_id: str | None = None, *, tenant: str | None = None, **who: str
    ) -> tuple[BudgetLine, ...]:
        """The same for async code."""
        return await self._gateway._athrough(self._reading(run_id, tenant, who))

    def _reading(self, run_id: str | None, tenant: str | None, who: Mapping[str, str]) -> Steps[tuple[BudgetLine, ...]]:
        unknown = set(who) - {"agent", "user", "session", "team"}
        if unknown or (run_id is not None and who):
            raise ConfigurationError(
                f"AG135 unknown filter {sorted(unknown or who)}; use agent, user, session, team, or a run id alone.",
                code="AG135",
            )
        if run_id is not None:
            record = _need_run(run_id, (yield from GetRun(tenant, run_id)))
            return (yield from ReadBudgets(record.meters))
        context = RunContext(
            run_id="",
            agent=who.get("agent") or "-",
            tenant=tenant or "default",
            user=who.get("user"),
            session=who.get("session"),
            team=who.get("team"),
        )
        # Without an agent, the budgets of agents are not asked for.
        _, *meters = meters_for(context, None, self._gateway.shared_budgets)
        return (yield from ReadBudgets(tuple(m for m in meters if m.scope != "agent" or who.get("agent"))))


class Audit:
    """The audit trail: one hash chain per run."""

    def __init__(self, gateway: ToolGateway) -> None:
        self._gateway = gateway

    def records(self, run_id: str, *, tenant: str | None = None) -> Iterator[AuditRecord]:
        """The records of a run, in order."""
        owner = self._gateway.runs.get(run_id, tenant=tenant).context.tenant
        after = 0
        while page := self._gateway._perform(ReadAudit(owner, run_id, after, _PAGE)):
            yield from page
            after = page[-1].seq

    async def arecords(self, run_id: str, *, tenant: str | None = None) -> AsyncIterator[AuditRecord]:
        """The same for async code."""
        owner = (await self._gateway.runs.aget(run_id, tenant=tenant)).context.tenant
        after = 0
        while page := await self._gateway._aperform(ReadAudit(owner, run_id, after, _PAGE)):
            for record in page:
                yield record
            after = page[-1].seq

    def verify(self, run_id: str, *, tenant: str | None = None) -> ChainReport:
        """Check the chain of a run against its recorded head."""
        run = self._gateway.runs.get(run_id, tenant=tenant)
        records = self.records(run_id, tenant=run.context.tenant)
        return verify_chain(
            records,
            head=run.audit_head,
            count=run.audit_seq,
            tenant=run.context.tenant,
            run=run_id,
            ended=run.ended_at is not None,
        )

    def anchor(self, *, tenant: str | None = None) -> str:
        """One digest over the heads of all chains. Whoever keeps it can prove later that nothing was changed."""
        runs = self._gateway.runs.list(tenant=tenant, limit=_ALL_RUNS)
        return anchor((r.context.tenant, r.context.run_id, r.audit_seq, r.audit_head) for r in runs)

    def export(self, run_id: str | None = None, *, tenant: str | None = None) -> Iterator[bytes]:
        """Lines of an export that ``agentguard audit verify`` checks offline: of one run, or of all."""
        runs = (
            self._gateway.runs.list(tenant=tenant, limit=_ALL_RUNS)
            if run_id is None
            else (self._gateway.runs.get(run_id, tenant=tenant),)
        )
        return export_lines(
            (
                Head(r.context.tenant, r.context.run_id, r.audit_seq, r.audit_head),
                self.records(r.context.run_id, tenant=r.context.tenant),
            )
            for r in reversed(runs)
        )
