"""One meaning: whatever happens, the PostgreSQL store answers as the memory store does, by either of its ways."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from random import Random
from typing import Any

import pytest

from agentguard.approval.binding import canonical_arguments
from agentguard.audit.verifying import verify_chain
from agentguard.domain.approvals import ApproverIdentity, Verdict
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
    ReadAccount,
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
from agentguard.protocols import Store
from agentguard.stores import postgres
from agentguard.stores._postgres_rows import Wants, foresee
from agentguard.stores.memory import MemoryStore
from agentguard.stores.postgres import PostgresStore
from agentguard.testing import FakeClock
from tests.servers import empty_schema, postgres_schema, postgres_url

__all__ = ["empty_schema", "postgres_schema", "postgres_url"]

RUNS = ("r1", "r2", "r3")
KEYS = ("k1", "k2", "k3", "k4")
SHARED = (
    Meter("t|acme", "tenant", "tenant acme", {"tool_calls": 6, "cost_usd": 40}, None, 0.7),
    Meter("d|acme", "tenant", "tenant acme per minute", {"tool_calls": 3, "steps": 9}, "minute", 0.34),
)
AMOUNTS = ((("steps", 1), ("tool_calls", 1)), (("steps", 1), ("tool_calls", 1), ("cost_usd", 7)), (("tool:mail", 0),))


def meters(run_id: str) -> tuple[Meter, ...]:
    return (Meter(f"run|{run_id}", "run", f"run {run_id}", {"tool_calls": 5, "tool:mail": 2}, None, 1.0), *SHARED)


class Story:
    """Operations that could come from a gateway in trouble, in an order that chance decides."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.fences: dict[str, int] = {}
        self.requests: list[str] = []
        self.number = 0

    def next(self) -> Operation[Any]:
        kinds: list[tuple[int, Callable[[], Operation[Any]]]] = [
            (12, self.begin),
            (12, self.finish),
            (3, self.open),
            (2, self.end),
            (4, self.vote),
            (2, self.turn),
            (3, self.resolve),
            (4, self.reserve),
            (3, self.settle),
            (2, self.put),
            (1, lambda: Append("acme", self.run(), Event("step", {"kind": "plan"}))),
            (3, self.read),
        ]
        return self.chance.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0]()

    def run(self) -> str:
        return self.chance.choice(RUNS)

    def key(self) -> str:
        return self.chance.choice(KEYS)

    def labels(self) -> tuple[str, ...]:
        return self.chance.choice(((), (), (), ("pii",), ("pii", "secret")))

    def event(self, kind: Any) -> Event | None:
        body = self.chance.choice((b"", b'{"a":"\xc3\xa9\\u0000"}'))
        return self.chance.choice((None, Event(kind, {"key": "é\x01", "n": 1, "b": True, "a": None}, body)))

    def open(self) -> OpenRun:
        run_id, parent = self.chance.choice((("r1", None), ("r2", "r1"), ("r3", "r2"), ("r3", None)))
        context = RunContext(run_id, "bot", "acme", "prod", self.chance.choice((None, "ann")), parent=parent)
        working = self.chance.choice((None, None, 500 * NANO))
        record = RunRecord(context, Contract(), meters(run_id), "running", (), 0, 0, working_limit_ns=working)
        limit = self.chance.choice((None, None, 700 * NANO))
        return OpenRun(record, limit, Event("run.opened", {"run": run_id}))

    def end(self) -> EndRun:
        status, reason = self.chance.choice(
            (("completed", StopReason.COMPLETED), ("stopped", StopReason.KILLED), ("failed", StopReason.TOOL_ERROR))
        )
        event = Event(f"run.{status}", {})  # type: ignore[arg-type]
        return EndRun("acme", self.run(), status, reason, {"result": [1]}, event)  # type: ignore[arg-type]

    def begin(self) -> Begin:
        chance, key, run_id = self.chance, self.key(), self.run()
        demand = None
        if chance.random() < 0.2:
            self.number += 1
            shown = {"to": "bob"}
            terms = ApprovalTerms(role_sets=(("lead",),), expires_s=chance.choice((50.0, 600.0)))
            demand = ApprovalDemand(
                terms, shown, shown, canonical_arguments(shown), "d" * 64, "high", "write", ("ask",), ("why",),
                f"ap_{self.number:032x}", f"{self.number:032x}",
            )  # fmt: skip
            self.requests.append(demand.id)
        return Begin(
            "acme", run_id, "bot", "ann", "prod", key, key, chance.choice(("mail", "mail", "pay")), "write",
            chance.choice(("", "f" * 64, "e" * 64)), "p" * 64, chance.choice((None, None, 0, 1)),
            chance.choice((meters(run_id), meters(run_id), SHARED[:1])), chance.choice(AMOUNTS), 60 * NANO,
            chance.choice((None, None, 2)), demand, chance.choice((None, 1, 3)), self.event("call.intent"),
            chance.choice((False, False, True)), None, self.labels(),
        )  # fmt: skip

    def finish(self) -> Finish:
        chance, key = self.chance, self.key()
        status = chance.choice(("succeeded", "succeeded", "failed", "ambiguous", "refused"))
        more = tuple(Event("step", {"kind": "retry", "n": n}) for n in range(chance.choice((0, 0, 0, 2))))
        fence = self.fences.get(key, 1) if chance.random() < 0.9 else 7
        outcome = chance.choice((None, '{"value":"\\u0000é"}'))
        amounts = chance.choice((*AMOUNTS, (("cost_usd", 60),), ()))
        event = self.event("call.outcome")
        return Finish("acme", self.run(), key, fence, status, amounts, outcome, self.labels(), event, more)  # type: ignore[arg-type]

    def vote(self) -> Vote:
        asked = self.chance.choice(self.requests[-3:]) if self.requests else "ap_none"
        kind = self.chance.choice(("approve", "approve", "reject", "terminate"))
        scope = self.chance.choice(("call", "call", "run")) if kind == "approve" else "call"
        who = ApproverIdentity(self.chance.choice(("lea", "tom")), ("lead",))
        return Vote(asked, Verdict(kind, who, scope=scope), self.chance.choice((None, "acme", "umbrella")))  # type: ignore[arg-type]

    def turn(self) -> Kill | Restore:
        scope, tenant, value = self.chance.choice(
            (("tool", "acme", "pay"), ("run", "acme", "r1"), ("user", "acme", "bob"), ("tool", "umbrella", "mail"))
        )
        if self.chance.random() < 0.5:
            return Kill(scope, tenant, value, "why", "ops")
        return Restore(scope, tenant, value, "ops")

    def resolve(self) -> ResolveCall:
        status = self.chance.choice(("succeeded", "failed", "refused"))
        return ResolveCall("acme", self.key(), status, None, "probe", "why")  # type: ignore[arg-type]

    def reserve(self) -> Reserve:
        run_id, key = self.run(), self.chance.choice(("m1", "m2", "k1"))
        enforce = self.chance.random() < 0.8
        event = self.event("llm.reserved" if enforce else "llm.charged")
        return Reserve("acme", run_id, key, meters(run_id), AMOUNTS[1], 60 * NANO, "bot", "ann", event, enforce)

    def settle(self) -> Settle:
        run_id = self.run()
        amounts = (("cost_usd", self.chance.choice((3, 90, 2**70))),)
        return Settle(
            "acme", run_id, self.chance.choice(("m1", "m2")), meters(run_id), amounts, self.event("llm.charged")
        )

    def put(self) -> PutState:
        value = self.chance.choice((1, "é", [1.5, None], {"b": {"a": True}}))
        return PutState("acme", self.run(), self.chance.choice(("a", "B")), value, self.chance.choice((0, 1)), "bot")

    def read(self) -> Operation[Any]:
        return self.chance.choice(reading())


def reading() -> list[Operation[Any]]:
    return [
        *(GetRun(tenant, run_id) for run_id in RUNS for tenant in ("acme", None, "umbrella")),
        *(GetCall("acme", key) for key in KEYS),
        *(ListCalls("acme", run_id) for run_id in RUNS),
        *(GetState("acme", run_id, "a") for run_id in RUNS),
        *(ListState("acme", run_id) for run_id in RUNS),
        *(ReadAudit("acme", run_id, after, 1000) for run_id in RUNS for after in (0, 2)),
        *(
            ListApprovals(ApprovalFilter("acme", status=status))
            for status in (None, "pending", "expired", "superseded")
        ),
        ListRuns(RunFilter("acme")),
        ListRuns(RunFilter(status="running", limit=1)),
        ListSwitches("acme"),
        ListSwitches(),
        ReadBudgets((*meters("r1"), *meters("r2"))),
        ReadAccount("t|acme"),
        GetApproval("ap_none"),
    ]


def plain(value: Any) -> Any:
    """What two stores must agree on: everything but salts, and the hashes that depend on them."""
    if isinstance(value, AuditRecord):
        line = json.loads(value.line)
        for name in ("body", "prev"):
            line[name] = bool(line[name])
        return (value.tenant, value.run_id, value.seq, line, value.body, bool(value.salt))
    if isinstance(value, RunRecord):
        return [plain(getattr(value, f.name)) for f in fields(value) if f.name != "audit_head"]
    if is_dataclass(value):
        return (type(value).__name__, [plain(getattr(value, f.name)) for f in fields(value)])
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def said(store: Store, operation: Operation[Any], *, awaiting: bool = False) -> Any:
    try:
        return plain(asyncio.run(_await(store, operation)) if awaiting else store.perform(operation))
    except AgentGuardError as error:
        return (type(error).__name__, error.code, str(error))


async def _await(store: Store, operation: Operation[Any]) -> Any:
    return await store.aperform(operation)


STORIES = int(os.environ.get("AGENTGUARD_STORIES", "12"))


@pytest.mark.parametrize("one_trip", [True, False], ids=["one trip", "three trips"])
@pytest.mark.parametrize("seed", range(STORIES))
def test_every_answer_is_that_of_the_memory_store(
    postgres_url: str, empty_schema: Callable[[], str], one_trip: bool, seed: int
) -> None:
    compare(postgres_url, empty_schema(), one_trip, seed)


@pytest.mark.parametrize("seed", range(1000, 1000 + STORIES // 4))
def test_foreseeing_what_an_operation_asks_for_only_saves_time(
    postgres_url: str, empty_schema: Callable[[], str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(operation: Operation[Any]) -> Wants:
        kept = ("tenant", "vote", "find", "turning")
        return Wants({name: value for name, value in foresee(operation).spec.items() if name in kept})

    monkeypatch.setattr(postgres, "foresee", blind)
    monkeypatch.setattr(postgres, "_ROUNDS", 60)
    compare(postgres_url, empty_schema(), False, seed)


def compare(url: str, schema: str, one_trip: bool, seed: int) -> None:
    chance = Random(seed)
    clock = FakeClock()
    memory = MemoryStore(clock)
    store = PostgresStore(url, schema=schema, clock=clock, one_trip=one_trip)
    story = Story(chance)
    first = [OpenRun(RunRecord(RunContext(r, "bot", "acme", "prod", "ann", parent=p), Contract(), meters(r), "running", (), 0, 0), None, Event("run.opened", {})) for r, p in (("r1", None), ("r2", "r1"))]  # fmt: skip
    try:
        for number in range(60):
            operation = first[number] if number < len(first) else story.next()
            expected = said(memory, operation)
            assert said(store, operation, awaiting=number % 8 == 0) == expected, operation
            if isinstance(operation, Begin) and expected[0] == "Proceed":
                story.fences[operation.key] = expected[1][0]
            clock.advance(chance.choice((0, 0, 0.001, 1, 30, 61)))
        for operation in reading():
            assert said(store, operation) == said(memory, operation), operation
        for run_id in RUNS:
            run = store.perform(GetRun("acme", run_id))
            if run is not None:
                records = store.perform(ReadAudit("acme", run_id, 0, 10_000))
                report = verify_chain(records, head=run.audit_head, count=run.audit_seq)
                assert report.ok, report.problems
    finally:
        store.close()
