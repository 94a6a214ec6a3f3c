"""Any sequence of operations has the same answers from every store: the memory store is the specification."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentguard.approval.binding import canonical_arguments
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity, Verdict
from agentguard.domain.context import Contract, RunContext
from agentguard.domain.decisions import ApprovalTerms, StopReason
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.operations import (
    Append,
    ApprovalDemand,
    Begin,
    EndRun,
    Finish,
    GetApproval,
    GetCall,
    GetRun,
    GetState,
    Kill,
    ListApprovals,
    ListCalls,
    ListRuns,
    ListState,
    ListSwitches,
    OpenRun,
    Operation,
    PutState,
    ReadAudit,
    ReadBudgets,
    Reserve,
    ResolveCall,
    Restore,
    Settle,
    Vote,
)
from agentguard.domain.runs import ApprovalFilter, RunFilter, RunRecord
from agentguard.domain.usage import NANO, Meter
from agentguard.errors import AgentGuardError
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import FakeClock

TENANTS = st.sampled_from(["acme", "beta"])
RUNS = st.sampled_from(["r1", "r2", "r3"])
CALLS = st.sampled_from(["c1", "c2", "c3", "c4"])
TOOLS = st.sampled_from(["email.send", "order.read"])


def meters_of(tenant: str, run_id: str) -> tuple[Meter, ...]:
    return (
        Meter(f"{tenant}|run|{run_id}", "run", f"run {run_id}", {"tool_calls": 4, "cost_usd": 20}, None, 0.5),
        Meter(f"{tenant}|day", "tenant", "per day", {"tool_calls": 6}, "day", 0.8),
        Meter("everything", "everything", "all", {}, "minute"),
    )


def demand_of(number: int, to: str) -> ApprovalDemand:
    terms = ApprovalTerms((("lead",),), quorum=1 + number % 2, expires_s=90.0, separate=False)
    arguments = {"to": to}
    return ApprovalDemand(
        terms, arguments, arguments, canonical_arguments(arguments), "d" * 64, "high", "write", ("r",), ("why",),
        f"ap_{number:032x}", f"{number:032x}",
    )  # fmt: skip


def comparable(value: Any) -> Any:
    """An answer without what is drawn at random: salts, and the hashes that depend on them."""
    if isinstance(value, AuditRecord):
        line = json.loads(value.line)
        return ("record", value.tenant, value.run_id, value.seq, line["kind"], line["at"], line["facts"], value.body)
    if isinstance(value, RunRecord):
        return dataclasses.replace(value, audit_head="")
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, ApprovalRequest)):
        return (type(value).__name__, *(comparable(getattr(value, f.name)) for f in dataclasses.fields(value)))
    if isinstance(value, (tuple, list)):
        return [comparable(item) for item in value]
    return value


class Stores(RuleBasedStateMachine):
    """Each rule asks all stores the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.oracle = MemoryStore(self.clock)
        self.sqlite = SqliteStore(Path(self.folder.name) / "s.db", clock=self.clock)
        self.other = SqliteStore(Path(self.folder.name) / "s.db", clock=self.clock)
        self.asked = 0
        self.approvals = 0

    def teardown(self) -> None:
        for store in (self.oracle, self.sqlite, self.other):
            store.close()
        self.folder.cleanup()

    def ask(self, operation: Operation[Any]) -> Any:
        self.asked += 1
        answers: list[Any] = []
        # Two connections in turn, so that what one believes to know is tested against what the other has written.
        for store in (self.oracle, self.sqlite if self.asked % 3 else self.other):
            try:
                answers.append(store.perform(operation))
            except AgentGuardError as error:
                answers.append((type(error).__name__, getattr(error, "code", ""), str(error)))
        assert comparable(answers[0]) == comparable(answers[1]), operation
        return answers[0]

    @rule(tenant=TENANTS, run_id=RUNS, parent=st.none() | RUNS, timed=st.booleans())
    def open(self, tenant: str, run_id: str, parent: str | None, timed: bool) -> None:
        context = RunContext(run_id, "bot", tenant, "prod", "ann", parent=parent if parent != run_id else None)
        record = RunRecord(
            context, Contract("t", {"a": [1, 2.5]}), meters_of(tenant, run_id), "running", ("seen",), 0, 0,
            working_limit_ns=100 * NANO if timed else None,
        )  # fmt: skip
        self.ask(OpenRun(record, 300 * NANO if timed else None, Event("run.opened", {"run": run_id})))

    @rule(
        tenant=TENANTS, run_id=RUNS, call=CALLS, tool=TOOLS, shared=st.booleans(), rerun=st.booleans(),
        fingerprint=st.sampled_from(["", "a" * 64, "b" * 64]), cap=st.none() | st.just(1),
        asks=st.none() | st.sampled_from(["bob", "eve"]), repeats=st.none() | st.just(2),
        version=st.none() | st.integers(0, 1), edit=st.booleans(),
    )  # fmt: skip
    def begin(
        self, tenant: str, run_id: str, call: str, tool: str, shared: bool, rerun: bool, fingerprint: str,
        cap: int | None, asks: str | None, repeats: int | None, version: int | None, edit: bool,
    ) -> None:  # fmt: skip
        demand = None
        if asks is not None:
            self.approvals += 1
            demand = demand_of(self.approvals, asks)
        key = call if shared else f"{run_id}/{call}"
        edit_of = f"ap_{max(self.approvals - 1, 1):032x}" if edit and asks else None
        self.ask(
            Begin(
                tenant, run_id, "bot", "ann", "prod", call, key, tool, "write", fingerprint, "p" * 64, version,
                meters_of(tenant, run_id), (("tool_calls", 1), ("cost_usd", 3), (f"tool:{tool}", 1)), 40 * NANO,
                cap, demand, repeats, Event("call.intent", {"call": call}, b"{}"), rerun, edit_of,
            )
        )  # fmt: skip

    @rule(
        tenant=TENANTS, run_id=RUNS, call=CALLS, shared=st.booleans(), fence=st.integers(1, 3),
        status=st.sampled_from(["succeeded", "failed", "ambiguous", "refused"]), cost=st.sampled_from([0, 3, 25]),
        labels=st.sampled_from([(), ("pii",), ("pii", "x")]),
    )  # fmt: skip
    def finish(
        self, tenant: str, run_id: str, call: str, shared: bool, fence: int, status: Any, cost: int,
        labels: tuple[str, ...],
    ) -> None:  # fmt: skip
        key = call if shared else f"{run_id}/{call}"
        amounts = () if status == "refused" else (("tool_calls", 1), ("cost_usd", cost))
        event = Event("call.outcome", {"call": call}, b"{}")
        self.ask(Finish(tenant, run_id, key, fence, status, amounts, '{"v":1}', labels, event))

    @rule(
        tenant=TENANTS, run_id=RUNS, call=CALLS, shared=st.booleans(), status=st.sampled_from(["succeeded", "refused"])
    )
    def resolve(self, tenant: str, run_id: str, call: str, shared: bool, status: Any) -> None:
        self.ask(ResolveCall(tenant, call if shared else f"{run_id}/{call}", status, "{}", "ann", "why"))

    @rule(tenant=TENANTS, run_id=RUNS, key=CALLS, enforce=st.booleans(), cost=st.sampled_from([1, 9, 21]))
    def reserve(self, tenant: str, run_id: str, key: str, enforce: bool, cost: int) -> None:
        meters = meters_of(tenant, run_id)
        self.ask(
            Reserve(tenant, run_id, f"llm/{key}", meters, (("cost_usd", cost),), 40 * NANO, "bot", enforce=enforce)
        )

    @rule(tenant=TENANTS, run_id=RUNS, key=CALLS, cost=st.sampled_from([1, 9, 21]))
    def settle(self, tenant: str, run_id: str, key: str, cost: int) -> None:
        event = Event("llm.charged", {"key": key})
        self.ask(Settle(tenant, run_id, f"llm/{key}", meters_of(tenant, run_id), (("cost_usd", cost),), event))

    @rule(
        back=st.integers(0, 3), kind=st.sampled_from(["approve", "approve", "reject", "escalate", "terminate"]),
        by=st.sampled_from(["lea", "tom"]), scope=st.sampled_from(["call", "run", "arguments", "until"]),
        edited=st.none() | st.just({"to": "eve"}), tenant=st.none() | TENANTS,
    )  # fmt: skip
    def vote(self, back: int, kind: Any, by: str, scope: Any, edited: Any, tenant: str | None) -> None:
        until = self.clock.now_ns() + 60 * NANO if scope == "until" else None
        verdict = Verdict(kind, ApproverIdentity(by, ("lead",)), edited, "because", scope, until, ("boss",))
        self.ask(Vote(f"ap_{max(self.approvals - back, 0):032x}", verdict, tenant))

    @rule(tenant=TENANTS, run_id=RUNS, well=st.booleans())
    def end(self, tenant: str, run_id: str, well: bool) -> None:
        if well:
            self.ask(EndRun(tenant, run_id, "completed", StopReason.COMPLETED, {"r": [1]}, Event("run.completed", {})))
        else:
            self.ask(EndRun(tenant, run_id, "stopped", StopReason.KILLED, {}, Event("run.stopped", {})))

    @rule(tenant=TENANTS, run_id=RUNS, key=st.sampled_from(["a", "b"]), expected=st.integers(0, 2))
    def put(self, tenant: str, run_id: str, key: str, expected: int) -> None:
        self.ask(PutState(tenant, run_id, key, {"n": [expected, None]}, expected, "bot"))

    @rule(
        scope=st.sampled_from(["everything", "tenant", "agent", "tool", "run"]), tenant=TENANTS, run_id=RUNS,
        on=st.booleans(),
    )  # fmt: skip
    def switch(self, scope: str, tenant: str, run_id: str, on: bool) -> None:
        value = {"agent": "bot", "tool": "email.send", "run": run_id}.get(scope, "")
        owner = "" if scope == "everything" else tenant
        self.ask(Kill(scope, owner, value, "why", "olga") if on else Restore(scope, owner, value, "olga"))

    @rule(tenant=TENANTS, run_id=RUNS)
    def append(self, tenant: str, run_id: str) -> None:
        self.ask(Append(tenant, run_id, Event("step", {"n": self.asked}, b"body")))

    @rule(seconds=st.sampled_from([1, 39, 40, 61, 4000, 90_000]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def reopen(self) -> None:
        self.sqlite.close()
        self.sqlite = SqliteStore(Path(self.folder.name) / "s.db", clock=self.clock)

    @rule(tenant=TENANTS, run_id=RUNS, call=CALLS, status=st.sampled_from([None, "pending", "expired", "approved"]))
    def read(self, tenant: str, run_id: str, call: str, status: str | None) -> None:
        for operation in (
            GetRun(None, run_id), GetCall(tenant, f"{run_id}/{call}"), ListCalls(tenant, run_id),
            ListState(tenant, run_id), GetState(tenant, run_id, "a"), ListSwitches(tenant),
            ListApprovals(ApprovalFilter(tenant=tenant, status=status)), ListRuns(RunFilter(tenant=tenant, limit=2)),
            GetApproval(f"ap_{self.approvals:032x}", tenant), ReadAudit(tenant, run_id, 2, 3),
        ):  # fmt: skip
            self.ask(operation)

    @invariant()
    def agree(self) -> None:
        for tenant in ("acme", "beta"):
            for run_id in ("r1", "r2"):
                self.ask(GetRun(tenant, run_id))
            self.ask(ReadBudgets(meters_of(tenant, "r1")))


TestStores = Stores.TestCase
TestStores.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
