"""A store, a clock and the usual operations in short, so that a check reads as what it asserts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar

from agentguard.approval.binding import canonical_arguments
from agentguard.audit.verifying import verify_chain
from agentguard.domain.approvals import ApproverIdentity, Verdict
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import ApprovalTerms, StopReason
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.operations import (
    Admission,
    ApprovalDemand,
    Begin,
    EndRun,
    Finish,
    Finished,
    GetRun,
    OpenRun,
    Operation,
    Proceed,
    ReadAudit,
    ReadBudgets,
    RunOpened,
    Vote,
)
from agentguard.domain.runs import RunRecord
from agentguard.domain.usage import NANO, Amounts, BudgetLine, Meter
from agentguard.errors import AgentGuardError
from agentguard.protocols import Clock, Store
from agentguard.testing.clocks import FakeClock

T = TypeVar("T")
E = TypeVar("E", bound=AgentGuardError)

MakeStore: TypeAlias = Callable[[Clock], Store]
"""Makes an empty store that tells the time with the given clock."""

Colour: TypeAlias = Callable[[Store, Operation[Any]], Any]
"""One of the two ways to carry out an operation."""

LEASE_S = 60
ONE: Amounts = (("steps", 1), ("tool_calls", 1))
RUN_METER = Meter("run|r1", "run", "run r1")


class Check(Protocol):
    """One part of the contract; raises ``AssertionError`` when the store does not keep it."""

    def __call__(self, make_store: MakeStore, colour: Colour = ..., /) -> None:
        """Make a store and try it."""
        ...


def blocking(store: Store, operation: Operation[Any]) -> Any:
    """Carry out an operation as threads do."""
    return store.perform(operation)


def awaiting(store: Store, operation: Operation[Any]) -> Any:
    """Carry out an operation as event loops do."""
    return asyncio.run(_await(store, operation))


async def _await(store: Store, operation: Operation[Any]) -> Any:
    return await store.aperform(operation)


class Scene:
    """An empty store with a clock that stands still; closes the store when left.

    Args:
        make_store: Makes the store.
        colour: How to carry out operations.
    """

    def __init__(self, make_store: MakeStore, colour: Colour) -> None:
        self.clock = FakeClock()
        self.store = make_store(self.clock)
        self._colour = colour
        self._drawn = 0

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()

    def do(self, operation: Operation[T]) -> T:
        """Carry out one operation."""
        answer: T = self._colour(self.store, operation)
        return answer

    def fails(self, kind: type[E], operation: Operation[Any], code: str = "") -> E:
        """Carry out an operation that must raise ``kind``; returns the error."""
        try:
            answer = self.do(operation)
        except kind as error:
            assert not code or error.code == code, f"the code is {error.code}, not {code}: {error}"
            assert str(error), "an error must say what happened"
            return error
        raise AssertionError(f"{operation} must raise {kind.__name__}, and answered {answer}")

    # --- runs ------------------------------------------------------------------------------------

    def open(
        self,
        run_id: str = "r1",
        *,
        tenant: str = "acme",
        agent: str = "bot",
        meters: tuple[Meter, ...] = (RUN_METER,),
        seconds: float | None = None,
        working_seconds: float | None = None,
        parent: str | None = None,
        user: str | None = "ann",
        labels: tuple[str, ...] = (),
        session: str | None = None,
        contract: Contract | None = None,
    ) -> RunOpened:
        """Open a run."""
        context = RunContext(
            run_id,
            agent,
            tenant,
            "prod",
            user,
            roles=("support",),
            session=session,
            parent=parent,
            labels=labels,
            scope=(("email.*", "order.*"), ("*",)),
        )
        working = None if working_seconds is None else round(working_seconds * NANO)
        record = RunRecord(context, contract or Contract(), meters, "running", labels, 0, 0, working_limit_ns=working)
        limit = None if seconds is None else round(seconds * NANO)
        return self.do(OpenRun(record, limit, Event("run.opened", {"agent": agent, "run": run_id})))

    def run(self, run_id: str = "r1", tenant: str = "acme") -> RunRecord:
        """The run as the store knows it."""
        record = self.do(GetRun(tenant, run_id))
        assert record is not None, f"run {run_id} is missing"
        return record

    def end(self, run_id: str = "r1", *, tenant: str = "acme", result: Mapping[str, Any] | None = None) -> RunOpened:
        """End a run well."""
        event = Event("run.completed", {"run": run_id})
        return self.do(EndRun(tenant, run_id, "completed", StopReason.COMPLETED, result or {"result": 1}, event))

    # --- calls -----------------------------------------------------------------------------------

    def intent(self, call: str = "c1", run_id: str = "r1", *, tenant: str = "acme", **changes: Any) -> Begin:
        """The operation that begins a call; ``changes`` are fields of :class:`Begin`."""
        fields: dict[str, Any] = {
            "tenant": tenant,
            "run_id": run_id,
            "agent": "bot",
            "user": "ann",
            "environment": "prod",
            "call_id": call,
            "key": f"{run_id}/{call}",
            "tool": "email.send",
            "effect": "write",
            "fingerprint": "f" * 64,
            "policy_digest": "p" * 64,
            "run_version": None,
            "meters": (RUN_METER,),
            "amounts": ONE,
            "lease_ns": LEASE_S * NANO,
            "event": Event("call.intent", {"call": call, "tool": "email.send"}, b'{"to":"bob"}'),
            **changes,
        }
        return Begin(**fields)

    def begin(self, call: str = "c1", run_id: str = "r1", **changes: Any) -> Admission:
        """Begin a call."""
        return self.do(self.intent(call, run_id, **changes))

    def start(self, call: str = "c1", run_id: str = "r1", **changes: Any) -> Proceed:
        """Begin a call that must be admitted."""
        answer = self.begin(call, run_id, **changes)
        assert isinstance(answer, Proceed), f"the call must be admitted, and the store answered {answer}"
        return answer

    def finish(self, admitted: Proceed, call: str = "c1", run_id: str = "r1", **changes: Any) -> Finished:
        """Finish a call that was started; it used what it reserved unless ``amounts`` says otherwise."""
        fields: dict[str, Any] = {
            "tenant": "acme",
            "run_id": run_id,
            "key": f"{run_id}/{call}",
            "fence": admitted.fence,
            "status": "succeeded",
            "amounts": ONE,
            "outcome": '{"value":7}',
            "event": Event("call.outcome", {"call": call, "tool": "email.send"}, b'{"value":7}'),
            **changes,
        }
        return self.do(Finish(**fields))

    # --- approvals -------------------------------------------------------------------------------

    def demand(self, arguments: Mapping[str, Any] | None = None, **terms: Any) -> ApprovalDemand:
        """What a call that needs approval brings along; ``terms`` are fields of :class:`ApprovalTerms`."""
        self._drawn += 1
        fields: dict[str, Any] = {"role_sets": (("lead",),), "expires_s": 600.0, **terms}
        shown = {"to": "bob", "amount": 1.5} if arguments is None else arguments
        return ApprovalDemand(
            terms=ApprovalTerms(**fields),
            arguments=shown,
            proposed=shown,
            canonical=canonical_arguments(shown),
            tool_digest="d" * 64,
            risk="high",
            effect="write",
            rules=("ask (policy.yaml:3)",),
            reasons=("Emails to customers need a lead.",),
            id=f"ap_{self._drawn:032x}",
            nonce=f"{self._drawn:032x}",
        )

    def vote(self, approval_id: str, by: str | ApproverIdentity = "lea", kind: str = "approve", **changes: Any) -> Vote:
        """The operation with which an approver who is a lead answers; ``changes`` are fields of ``Verdict``."""
        who = ApproverIdentity(by, ("lead",)) if isinstance(by, str) else by
        fields: dict[str, Any] = {"kind": kind, "by": who, **changes}
        return Vote(approval_id, Verdict(**fields))

    # --- reading ---------------------------------------------------------------------------------

    def line(self, meter: Meter, dimension: str = "tool_calls") -> BudgetLine:
        """One line of a budget."""
        lines = [line for line in self.do(ReadBudgets((meter,))) if line.dimension == dimension]
        if lines:
            return lines[0]
        return BudgetLine(meter.label, meter.scope, dimension, 0, 0, meter.limits.get(dimension), meter.account)

    def chain(self, run_id: str = "r1", tenant: str = "acme") -> list[AuditRecord]:
        """All audit records of a run, after its chain was verified."""
        run = self.run(run_id, tenant)
        records: list[AuditRecord] = []
        while True:
            more = self.do(ReadAudit(tenant, run_id, len(records), 7))
            records += more
            if len(more) < 7:
                break
        report = verify_chain(
            records, head=run.audit_head, count=run.audit_seq, tenant=tenant, run=run_id, ended=run.ended_at is not None
        )
        assert report.ok, f"the audit chain of {run_id} does not verify: {'; '.join(map(str, report.problems))}"
        return records
