"""The short way of the memory store cannot be told from the long one: the same operations, the same answers."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from typing import Any

import pytest

from agentguard.approval.binding import canonical_arguments
from agentguard.audit.verifying import verify_chain
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
    Finished,
    GetCall,
    GetRun,
    Kill,
    ListCalls,
    ListRuns,
    OpenRun,
    Operation,
    Proceed,
    ReadAccount,
    ReadAudit,
    ReadBudgets,
    Reserve,
    ResolveCall,
    Restore,
    Settle,
    Turned,
    Vote,
)
from agentguard.domain.runs import RunFilter, RunRecord
from agentguard.domain.usage import NANO, Meter
from agentguard.errors import AgentGuardError
from agentguard.stores import _memory_rows as rows
from agentguard.stores import memory as module
from agentguard.stores import transitions
from agentguard.stores.memory import MemoryStore
from agentguard.testing import FakeClock

TENANTS = ("acme", "beta")
RUNS = ("r1", "r2", "r3", "r4")
CALLS = tuple(f"c{number}" for number in range(60))
TOOLS = ("email.send", "order.read")
AMOUNTS = {
    tool: (("tool_calls", 1), (f"tool:{tool}", 1), ("cost_usd", cost)) for tool, cost in zip(TOOLS, (3, 0), strict=True)
}
LEASE = 40 * NANO


def meters_of(tenant: str, run_id: str, wide: int) -> tuple[Meter, ...]:
    limits = {"tool_calls": 9 * wide, "cost_usd": 25 * wide, "tokens": 9 * wide}
    own = Meter(f"{tenant}|run|{run_id}", "run", f"run {run_id}", limits)
    day = Meter(f"{tenant}|day", "tenant", "per day", {"tool_calls": 40 * wide, "tool:order.read": 7 * wide}, "day")
    if run_id == "r4":
        return own, day, Meter("everything", "everything", "all", {"tool_calls": 5}, "minute", 0.5)
    if run_id == "r3":  # pays for another run, too
        return own, day, Meter(f"{tenant}|run|r2", "run", "run r2", limits)
    return own, day, Meter("everything", "everything", "all", {}, "minute")


def all_meters(wide: int) -> dict[tuple[str, str], tuple[Meter, ...]]:
    return {(tenant, run_id): meters_of(tenant, run_id, wide) for tenant in TENANTS for run_id in RUNS}


TIGHT, WIDE = all_meters(1), all_meters(8)


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


class Long(MemoryStore):
    """A memory store that always takes the long way."""

    def perform(self, operation: Operation[Any]) -> Any:
        self._tables.now = self._now()
        return transitions.perform(self._tables, operation)


class Pair:
    """Both ways, asked the same at the same time."""

    def __init__(self, keep_runs: int = 3, meters: dict[tuple[str, str], tuple[Meter, ...]] = TIGHT) -> None:
        self.meters = meters
        self.clock = FakeClock()
        self.short = MemoryStore(self.clock, keep_runs=keep_runs)
        self.long = Long(self.clock, keep_runs=keep_runs)
        self.short.seal_later()
        self.long.seal_later()
        self.drawn = 0
        self.begun: dict[tuple[str, str], tuple[Begin, Proceed]] = {}

    def ask(self, operation: Operation[Any]) -> Any:
        answers: list[Any] = []
        for store in (self.short, self.long):
            try:
                answers.append(store.perform(operation))
            except AgentGuardError as error:
                answers.append((type(error).__name__, getattr(error, "code", ""), str(error)))
        assert comparable(answers[0]) == comparable(answers[1]), operation
        if isinstance(operation, Begin) and isinstance(answers[0], Proceed):
            self.begun[operation.tenant, operation.key] = operation, answers[0]
        return answers[0]

    def open(self, run_id: str = "r1", tenant: str = "acme", *, timed: bool = False, parent: str | None = None) -> Any:
        context = RunContext(run_id, "bot", tenant, "prod", "ann", parent=parent)
        record = RunRecord(context, Contract(), self.meters[tenant, run_id], "running", (), 0, 0)
        return self.ask(OpenRun(record, 300 * NANO if timed else None, Event("run.opened", {"run": run_id})))

    def end(self, run_id: str = "r1", tenant: str = "acme", status: Any = "completed") -> Any:
        kind: Any = f"run.{status}"
        return self.ask(EndRun(tenant, run_id, status, StopReason.COMPLETED, {}, Event(kind, {})))

    def intent(self, call: str = "c0", run_id: str = "r1", tenant: str = "acme", **changes: Any) -> Begin:
        tool = changes.get("tool", "email.send")
        fields: dict[str, Any] = {
            "tenant": tenant,
            "run_id": run_id,
            "agent": "bot",
            "user": "ann",
            "environment": "prod",
            "call_id": call,
            "key": f"{run_id}/{call}",
            "tool": tool,
            "effect": "write",
            "fingerprint": "",
            "policy_digest": "p" * 64,
            "run_version": None,
            "meters": self.meters[tenant, run_id],
            "amounts": AMOUNTS[tool],
            "lease_ns": LEASE,
            "event": Event("call.intent", {"tool": tool}, b'{"to":"bob"}', (("call", call),)),
            **changes,
        }
        return Begin(**fields)

    def finish(self, begin: Begin, admitted: Proceed, **changes: Any) -> Any:
        fields: dict[str, Any] = {
            "tenant": begin.tenant,
            "run_id": begin.run_id,
            "key": begin.key,
            "fence": admitted.fence,
            "status": "succeeded",
            "amounts": begin.amounts,
            "outcome": '{"value":7}',
            "event": Event("call.outcome", {"tool": begin.tool}, b'{"value":7}', (("call", begin.call_id),)),
            **changes,
        }
        return self.ask(Finish(**fields))

    def demand(self) -> ApprovalDemand:
        self.drawn += 1
        arguments = {"to": "bob"}
        return ApprovalDemand(
            ApprovalTerms((("lead",),), expires_s=90.0), arguments, arguments, canonical_arguments(arguments),
            "d" * 64, "high", "write", ("r",), ("why",), f"ap_{self.drawn:032x}", f"{self.drawn:032x}",
        )  # fmt: skip

    def agree(self) -> None:
        """Everything that can be read is the same, and the chains hold."""
        self.ask(ListRuns(RunFilter()))
        for tenant, run_id in self.meters:
            self.ask(ListCalls(tenant, run_id))
            self.ask(ReadBudgets(self.meters[tenant, run_id]))
            self.ask(ReadAccount(self.meters[tenant, run_id][0].account))
            self.ask(ReadAudit(tenant, run_id))
            for store in (self.short, self.long):
                run = store.perform(GetRun(tenant, run_id))
                if run is not None:
                    records = store.perform(ReadAudit(tenant, run_id))
                    assert verify_chain(records, head=run.audit_head, count=run.audit_seq).ok
        tables = (self.short._tables, self.long._tables)
        for tenant in TENANTS:
            for tool in TOOLS:
                assert tables[0].running(tenant, tool) == tables[1].running(tenant, tool)


def step(pair: Pair, draw: random.Random) -> None:
    """One operation at random; most are those of common calls."""
    tenant, run_id, call, tool = (draw.choice(several) for several in (TENANTS, RUNS, CALLS, TOOLS))
    key = call if draw.random() < 0.2 else f"{run_id}/{call}"
    what = draw.random()
    if what < 0.42:
        rare = draw.random()
        changes: dict[str, Any] = {"tool": tool, "key": key, "rerun": draw.random() < 0.3}
        if rare < 0.06:
            changes["approval"] = pair.demand()
        elif rare < 0.12:
            changes["concurrency"] = 1
        elif rare < 0.18:
            changes["run_version"] = draw.randrange(2)
        elif rare < 0.30:
            changes |= {"fingerprint": draw.choice("ab") * 64, "max_repeats": draw.choice((None, 1, 2))}
        elif rare < 0.33:
            changes["event"] = None
        elif rare < 0.36:
            changes["meters"] = pair.meters[tenant, run_id][:1]
        elif rare < 0.39:
            changes["amounts"] = tuple(AMOUNTS[tool])[:1]
        elif rare < 0.42:  # a key that another run has used, and meters of that run
            run_id = draw.choice(RUNS)
        pair.ask(pair.intent(call, run_id, tenant, **changes))
    elif what < 0.76 and pair.begun:
        name = draw.choice(list(pair.begun)[-5:])
        begin, admitted = pair.begun[name] if draw.random() < 0.1 else pair.begun.pop(name)
        rare, changes = draw.random(), {}
        if rare < 0.05:
            changes["fence"] = admitted.fence + 1
        elif rare < 0.12:
            changes["status"] = draw.choice(("failed", "ambiguous"))
        elif rare < 0.17:
            changes |= {"status": "refused", "amounts": ()}
        elif rare < 0.22:
            changes["amounts"] = (*begin.amounts[:-1], ("cost_usd", 30))
        elif rare < 0.25:
            changes["labels"] = ("pii",)
        elif rare < 0.28:
            changes["more"] = (Event("step", {"attempt": 1}),)
        elif rare < 0.31:
            changes["event"] = None
        elif rare < 0.34:
            changes["run_id"] = draw.choice(RUNS)
        pair.finish(begin, admitted, **changes)
    elif what < 0.80:
        timed = draw.random() < 0.2
        pair.open(run_id, tenant, timed=timed, parent=draw.choice((None, None, "r1")) if run_id != "r1" else None)
    elif what < 0.83:
        pair.clock.advance(draw.choice((1, 20, 41, 61, 90_000)))
    elif what < 0.85:
        llm = (("cost_usd", draw.choice((1, 9, 30))), ("tokens", 5))
        pair.ask(
            Reserve(tenant, run_id, f"llm/{call}", pair.meters[tenant, run_id], llm, LEASE, "bot", enforce=what < 0.84)
        )
    elif what < 0.87:
        pair.ask(Settle(tenant, run_id, f"llm/{call}", pair.meters[tenant, run_id], (("tokens", 4),)))
    elif what < 0.89:
        pair.ask(Append(tenant, run_id, Event("step", {"n": 1}, b"body")))
    elif what < 0.91:
        operation = (Kill("tool", tenant, tool, "why", "olga"), Restore("tool", tenant, tool, "olga"))
        pair.ask(operation[draw.random() < 0.9])
    elif what < 0.93:
        verdict = Verdict(draw.choice(("approve", "reject")), ApproverIdentity("lea", ("lead",)))
        pair.ask(Vote(f"ap_{max(pair.drawn, 1):032x}", verdict, None))
    elif what < 0.94:
        pair.ask(ResolveCall(tenant, key, "succeeded", "{}", "ann", "why"))
    elif what < 0.948:
        pair.end(run_id, tenant, draw.choice(("completed", "failed")))
    elif what < 0.97:
        pair.ask(GetCall(tenant, key))
    elif what < 0.985:
        pair.ask(ReadBudgets(pair.meters[tenant, run_id]))
    else:
        pair.ask(ListCalls(tenant, run_id))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the short way was taken, and how often it was not."""
    counts: Counter[str] = Counter()
    for name in ("admit", "settle"):
        short = getattr(module, name)

        def counted(tables: Any, op: Any, name: str = name, short: Any = short) -> Any:
            answer = short(tables, op)
            counts[name if answer is not None else f"not {name}"] += 1
            return answer

        monkeypatch.setattr(module, name, counted)
    return counts


@pytest.mark.parametrize("block", range(8))
def test_both_ways_give_the_same_answers_and_the_same_chains(block: int, taken: Counter[str]) -> None:
    for seed in range(block * 12, block * 12 + 12):
        draw, pair = random.Random(seed), Pair((1, 2, 100)[seed % 3], (TIGHT, WIDE)[seed % 2])
        for tenant, run_id in pair.meters:
            pair.open(run_id, tenant)
        for _ in range(200):
            step(pair, draw)
            if not draw.randrange(40):  # a name that was used may be free again
                pair.open(draw.choice(RUNS), draw.choice(TENANTS))
        pair.agree()
    assert min(taken[name] for name in ("admit", "settle", "not admit", "not settle")) > 100, taken


def test_holds_that_are_only_counted_stop_the_call_that_is_one_too_many(taken: Counter[str]) -> None:
    pair = Pair()
    pair.open()
    answers = [pair.ask(pair.intent(call, tool="email.send")) for call in CALLS[:10]]
    assert [type(answer) for answer in answers] == [Proceed] * 8 + [Turned] * 2  # 25 nano-dollars, 3 each
    assert taken["admit"] == 8


def test_tools_that_take_turns_share_the_room_of_their_budget(taken: Counter[str]) -> None:
    pair = Pair()
    pair.open()
    answers = [pair.ask(pair.intent(f"n{n}", tool=TOOLS[n % 2])) for n in range(11)]
    assert [type(answer) for answer in answers] == [Proceed] * 9 + [Turned] * 2
    assert taken["admit"] == 9
    pair.agree()


def test_what_was_used_beyond_a_limit_shuts_the_short_way_too() -> None:
    pair = Pair()
    pair.open()
    first = pair.intent("c0")
    admitted = pair.ask(first)
    spent = (("tokens", 10),)
    pair.ask(Reserve("acme", "r1", "llm/1", TIGHT["acme", "r1"], spent, LEASE, "bot", enforce=False))
    pair.finish(first, admitted)
    assert isinstance(pair.ask(pair.intent("c1")), Turned)


def test_a_lease_that_ended_gives_the_hold_back_and_the_late_end_is_charged() -> None:
    pair = Pair()
    pair.open()
    started = [(begin, pair.ask(begin)) for begin in (pair.intent(call) for call in CALLS[:8])]
    pair.clock.advance(41)
    assert isinstance(pair.ask(pair.intent("again")), Proceed)
    for begin, admitted in started:
        assert isinstance(pair.finish(begin, admitted), Finished)
    pair.agree()


def test_accounts_of_another_minute_are_other_accounts(taken: Counter[str]) -> None:
    pair = Pair()
    pair.open()
    begin = pair.intent("c0")
    admitted = pair.ask(begin)
    pair.clock.advance(61)
    pair.ask(pair.intent("c1"))
    pair.finish(begin, admitted)
    pair.agree()
    assert taken["admit"] == 2


def test_calls_in_flight_count_as_running() -> None:
    pair = Pair()
    pair.open()
    pair.ask(pair.intent("c0"))
    assert isinstance(pair.ask(pair.intent("c1", concurrency=1)), Turned)
    pair.clock.advance(41)
    assert isinstance(pair.ask(pair.intent("c2", concurrency=1)), Proceed)


@pytest.mark.parametrize("amounts", [(("tool_calls", 1), ("tool_calls", 1)), (("tool_calls", -1),)])
def test_amounts_that_do_not_just_count_take_the_long_way(amounts: Any, taken: Counter[str]) -> None:
    pair = Pair()
    pair.open()
    assert isinstance(pair.ask(pair.intent("c0", amounts=amounts)), Proceed)
    assert taken["admit"] == 0
    pair.agree()


def test_tills_are_bounded(monkeypatch: pytest.MonkeyPatch, taken: Counter[str]) -> None:
    monkeypatch.setattr(rows, "_TILLS", 2)
    pair = Pair()
    pair.open()
    kept = [(("tool_calls", 1), ("steps", number)) for number in range(6)]  # each its own amounts
    started = [(begin, pair.ask(begin)) for begin in (pair.intent(f"c{n}", amounts=a) for n, a in enumerate(kept))]
    assert sum(len(desk.tills) for desk in pair.short._tables.desks.values()) <= 2
    for begin, admitted in started:
        pair.finish(begin, admitted)
    pair.agree()
    assert taken["admit"] == taken["settle"] == 6


def test_a_run_that_ended_keeps_no_tills() -> None:
    pair = Pair()
    pair.open()
    begin = pair.intent("c0")
    pair.finish(begin, pair.ask(begin))
    pair.end()
    assert pair.short._tables.desks["acme", "r1"].tills == {}
    pair.agree()


def test_a_store_that_seals_at_once_has_one_way_only(taken: Counter[str]) -> None:
    pair = Pair()
    pair.short = MemoryStore(pair.clock)
    pair.long = Long(pair.clock)
    pair.open()
    begin = pair.intent("c0")
    pair.finish(begin, pair.ask(begin))
    pair.agree()
    assert taken["admit"] == taken["settle"] == 0


def test_a_run_that_is_forgotten_leaves_its_holds_to_their_leases() -> None:
    pair = Pair(keep_runs=1)
    pair.open("r1")
    started = [(begin, pair.ask(begin)) for begin in (pair.intent(f"n{n}", tool="order.read") for n in range(7))]
    pair.end("r1")
    pair.open("r2")
    pair.end("r2")
    assert pair.ask(GetRun("acme", "r1")) is None
    pair.open("r1")
    begin, admitted = started[0]
    assert pair.finish(begin, admitted).accepted is False
    assert isinstance(pair.ask(pair.intent("more", tool="order.read")), Turned)
    pair.clock.advance(41)
    assert isinstance(pair.ask(pair.intent("more", tool="order.read")), Proceed)
    pair.agree()


def test_the_account_of_a_forgotten_run_starts_anew_for_who_else_charges_it() -> None:
    pair = Pair(keep_runs=1)
    for run_id in ("r2", "r3", "r1"):
        pair.open(run_id)
    pair.ask(pair.intent("c0", "r3"))
    pair.end("r2")
    pair.end("r1")
    pair.ask(pair.intent("c1", "r3"))
    pair.agree()
    assert pair.short._tables.account("acme|run|r2").held["tool_calls"] == 1


def test_a_run_below_one_that_failed_makes_no_calls() -> None:
    pair = Pair()
    pair.open("r1")
    pair.open("r2", parent="r1")
    assert isinstance(pair.ask(pair.intent("c0", "r2")), Proceed)
    pair.end("r1", status="failed")
    assert isinstance(pair.ask(pair.intent("c1", "r2")), Turned)


def test_thresholds_are_reported_whichever_way_a_call_takes() -> None:
    pair = Pair()
    pair.open("r4")
    warned = [bool(pair.ask(pair.intent(f"c{n}", "r4")).warnings) for n in range(4)]
    assert warned == [False, False, True, False]
