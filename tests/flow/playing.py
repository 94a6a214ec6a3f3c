"""The flow without a world: effects are answered from a table, and everything that was asked is kept.

A part of the table is a value (the answer), an exception (thrown into the flow), a function of the effect, or a list
of these (one after the other; the last one stays).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from agentguard._flow.effects import Ask, Draw, Invoke, Lease, Leased, Probe, Publish, Release, Sleep, Tick
from agentguard._flow.govern import govern
from agentguard._flow.rulebook import House, Job, RunView, plan
from agentguard.audit.redaction import KnownSecrets
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity, Verdict
from agentguard.domain.calls import CallRecord, Outcome
from agentguard.domain.context import RunContext
from agentguard.domain.decisions import ApprovalTerms, Decision
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import (
    Append,
    Appended,
    Begin,
    Effect,
    Finish,
    Finished,
    ListSwitches,
    Proceed,
    ResolveCall,
    Vote,
)
from agentguard.domain.usage import NANO
from agentguard.policy.compiling import compile_layers
from agentguard.policy.policies import Policy
from agentguard.resilience.credentials import Credentials
from agentguard.tools.registry import ToolRegistry

E = TypeVar("E", bound=Effect[Any])

NOW = 1_800_000_000 * NANO
CONTEXT = RunContext("r1", "bot", tenant="acme", user="ann", parent="r0")
ANN = ApproverIdentity("ann", ("lead",))
YES = Verdict("approve", ANN)


def record(seq: int = 7) -> AuditRecord:
    return AuditRecord("acme", "r1", seq, b"{}", "h" * 64, "", None)


PROCEED = Proceed(fence=1, now=NOW, records=(record(5),), seq=5)
FINISHED = Finished(True, ("seen",), 3, records=(record(6),), seq=6)


def lost_call(**changes: Any) -> CallRecord:
    call = CallRecord("acme", "r1", "k", "c1", "do", "ambiguous", "f", 1, "irreversible", NOW, NOW)
    return replace(call, **changes)


def request(**changes: Any) -> ApprovalRequest:
    made = ApprovalRequest(
        id="ap_1",
        tenant="acme",
        run_id="r1",
        call_key="k",
        call_id="c1",
        tool="do",
        tool_digest="d",
        arguments={},
        proposed={},
        agent="bot",
        user="ann",
        environment="default",
        risk="high",
        effect="irreversible",
        rules=(),
        reasons=(),
        policy_digest="p",
        budget_effect={},
        terms=ApprovalTerms(),
        nonce="n",
        digest="x",
        created_at=NOW,
        expires_at=NOW + 3600 * NANO,
    )
    return replace(made, **changes)


def leased(**values: str) -> Leased:
    return Leased(Credentials(values), ())


class World:
    """Answers effects. Store operations, bodies and everything else by the name of their type."""

    def __init__(self, **answers: Any) -> None:
        self.asked: list[Effect[Any]] = []
        self.answers: dict[str, Any] = {
            "Append": Appended((record(),)),
            "Begin": PROCEED,
            "Finish": FINISHED,
            "Publish": None,
            "Release": None,
            "Draw": "0" * 32,
            "Tick": 0.0,
            "Sleep": None,
            "Lease": lambda effect: leased(**{one.name: "s3cret-value" for one in effect.requests}),
            "Ask": None,
            "Probe": None,
            "ListSwitches": (),
            "Invoke": lambda effect: effect.tool.body(**effect.arguments),
            **answers,
        }

    def perform(self, effect: Effect[Any]) -> Any:
        self.asked.append(effect)
        answer = self.answers[type(effect).__name__]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer) and not isinstance(answer, type):
            answer = answer(effect)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def all(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.asked if isinstance(effect, kind)]

    def one(self, kind: type[E]) -> E:
        (found,) = self.all(kind)
        return found

    @property
    def names(self) -> list[str]:
        return [type(effect).__name__ for effect in self.asked]


def play(flow: Any, world: World) -> Any:
    """Drive a flow with a world."""
    try:
        effect = next(flow)
        while True:
            try:
                answer = world.perform(effect)
            except BaseException as error:
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as stop:
        return stop.value


ALLOW_ALL = 'version: 1\nrules:\n  - allow: "*"\n'


def house(
    *tools: Any,
    policy: str | Policy = ALLOW_ALL,
    secrets: Iterable[str] = (),
    **settings: Any,
) -> House:
    registry = ToolRegistry.of(*tools)
    made = policy if isinstance(policy, Policy) else Policy.from_string(policy)
    known = KnownSecrets()
    for secret in secrets:
        known.add(secret)
    return House(
        registry=registry,
        plans={tool.spec.name: plan(tool) for tool in registry},
        rules=compile_layers((made,), registry),
        secrets=known,
        **settings,
    )


class Fixed:
    """A rulebook with prepared answers; the last one stays. Keeps the labels that it was shown."""

    def __init__(self, *decisions: Decision) -> None:
        self.decisions = list(decisions)
        self.shown: list[tuple[str, ...]] = []
        self.times: list[int] = []

    def decide(self, tool: str, effective: Any, context: Any, labels: tuple[str, ...], now_ns: int) -> Decision:
        self.shown.append(labels)
        self.times.append(now_ns)
        return self.decisions.pop(0) if len(self.decisions) > 1 else self.decisions[0]


def decided(at: House, *decisions: Decision) -> Fixed:
    """Let ``at`` decide like this."""
    fixed = Fixed(*decisions)
    at.rules = fixed  # type: ignore[assignment]
    return fixed


def job(tool: str = "do", arguments: Mapping[str, Any] | None = None, **settings: Any) -> Job:
    view = settings.pop("run", None) or RunView(CONTEXT, (), "4:call4:acme2:r1")
    made = Job(tool, arguments if arguments is not None else {}, view, "c1", True, NOW, "blocking")
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def call(at: House, world: World | None = None, tool: str = "do", arguments: Any = None, **settings: Any) -> Outcome:
    """Govern one call of ``tool``."""
    return play(govern(at, job(tool, arguments, **settings)), world if world is not None else World())  # type: ignore[no-any-return]


__all__ = [
    "ANN",
    "CONTEXT",
    "FINISHED",
    "NOW",
    "PROCEED",
    "YES",
    "Append",
    "Ask",
    "Begin",
    "Draw",
    "Finish",
    "Fixed",
    "Invoke",
    "Lease",
    "ListSwitches",
    "Probe",
    "Publish",
    "Release",
    "ResolveCall",
    "Sleep",
    "Tick",
    "Vote",
    "World",
    "call",
    "decided",
    "house",
    "job",
    "leased",
    "lost_call",
    "play",
    "record",
    "request",
]
