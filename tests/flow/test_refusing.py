"""What never reaches the store's admission, and what a refusal says and leaves behind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentguard import tool
from agentguard._flow.refusing import for_model, name_of, text_of
from agentguard.audit.records import strict_json
from agentguard.domain.calls import Completed, Refused
from agentguard.domain.decisions import Decision, Obligations, StopReason
from agentguard.domain.operations import Appended
from agentguard.errors import AuditError, SinkError, StoreUnavailable
from tests.flow.playing import Append, Begin, Invoke, Publish, World, call, decided, house, record


@tool(name="do", effect="irreversible")
def do(x: int = 1, note: str = "") -> int:
    return x


@tool(name="ado")
async def ado(x: int = 1) -> int:
    return x


@tool(name="do")
def other(x: int = 1) -> int:
    return -x


@tool(name="quiet", effect="pure", audit=False)
def quiet(x: int = 1) -> int:
    return x


DENY = "version: 1\nrules:\n  - id: no\n    deny: do\n"


def refusal(outcome: Any, reason: StopReason) -> Refused:
    assert isinstance(outcome, Refused), outcome
    assert outcome.reason is reason
    return outcome


def body(world: World) -> dict[str, Any]:
    return json.loads(world.one(Append).event.body)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("settings", "reason", "code"),
    [
        ({"tool": "dO"}, StopReason.UNKNOWN_TOOL, "AG601"),
        ({"expected": other.tool}, StopReason.UNKNOWN_TOOL, "AG602"),
        ({"tool": "ado"}, StopReason.ASYNC_TOOL, "AG603"),
        ({"arguments": {"x": "1"}}, StopReason.INVALID_ARGUMENTS, "AG604"),
        ({"arguments": {"y": 1}}, StopReason.INVALID_ARGUMENTS, "AG604"),
        ({"arguments": ["x"]}, StopReason.INVALID_ARGUMENTS, "AG604"),
    ],
)
def test_what_is_not_a_call_of_a_registered_tool_is_refused_and_recorded(
    settings: dict[str, Any], reason: StopReason, code: str
) -> None:
    world = World()
    outcome = refusal(call(house(do, ado), world, **settings), reason)
    assert outcome.code == code
    assert world.names == ["Append"]
    assert world.one(Append).event.facts["code"] == code


def test_a_denied_call_is_refused_and_recorded_with_its_rule() -> None:
    world = World()
    outcome = refusal(call(house(do, policy=DENY), world), StopReason.POLICY_DENIED)
    assert outcome.code == "AG610"
    assert world.one(Append).event.facts["rule"] == "no"
    assert world.names == ["Append"]


def test_what_no_rule_allows_is_refused() -> None:
    refusal(call(house(do, policy="version: 1\nrules: []\n")), StopReason.POLICY_DENIED)


def test_a_verdict_that_nobody_knows_is_a_denial() -> None:
    at = house(do)
    decided(at, Decision("perhaps"))  # type: ignore[arg-type]
    world = World()
    refusal(call(at, world), StopReason.POLICY_DENIED)
    assert not world.all(Begin)


def test_in_observe_mode_a_denial_is_recorded_and_the_call_runs() -> None:
    world = World()
    outcome = call(house(do, policy="mode: observe\n" + DENY), world)
    assert isinstance(outcome, Completed)
    intent = world.one(Begin).event
    assert intent is not None
    assert (intent.facts["decision"], intent.facts["mode"]) == ("deny", "observe")


@pytest.mark.parametrize(
    "obligation",
    [
        "clamp: {args.x: {maximum: 3}}",
        "rewrite: {args.x: 3}",
    ],
)
def test_what_runs_is_what_the_obligations_leave(obligation: str) -> None:
    policy = f"version: 1\nrules:\n  - allow: do\n  - constrain: do\n    {obligation}\n"
    world = World()
    outcome = call(house(do, policy=policy), world, arguments={"x": 50})
    assert isinstance(outcome, Completed)
    assert world.one(Invoke).arguments == {"x": 3, "note": ""}
    assert b'"x":3' in world.one(Begin).event.body  # type: ignore[union-attr]


def test_redacted_arguments_reach_neither_body_nor_record() -> None:
    policy = "version: 1\nrules:\n  - allow: do\n    redact: [args.note]\n"
    world = World()
    call(house(do, policy=policy), world, arguments={"note": "private"})
    assert world.one(Invoke).arguments["note"] == "[redacted]"
    assert b"private" not in world.one(Begin).event.body  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "obligations",
    [
        Obligations(redact_arguments=("x",)),  # leaves a text where a number must be
        Obligations(rewrite=(("y", 1),)),  # adds an argument that does not exist
        Obligations(clamp=(("note", (None, 3)),)),  # a text cannot be clamped
    ],
)
def test_an_obligation_that_cannot_be_carried_out_is_a_denial(obligations: Obligations) -> None:
    at = house(do)
    decided(at, Decision("allow", obligations=obligations))
    world = World()
    outcome = refusal(call(at, world, arguments={"note": "many"}), StopReason.POLICY_DENIED)
    assert outcome.code == "AG612"
    assert world.names == ["Append"]


def test_limits_that_cannot_be_enforced_are_refused() -> None:
    policy = "version: 1\nrules:\n  - allow: do\n    limits: {network: none}\n"
    assert refusal(call(house(do, policy=policy)), StopReason.UNENFORCEABLE).code == "AG611"


# -- what is written down -----------------------------------------------------------------------------------------------


def test_a_refused_proposal_is_recorded_without_secrets() -> None:
    world = World()
    outcome = call(house(do, secrets=["hunter22"], policy=DENY), world, arguments={"note": "hunter22"})
    assert b"hunter22" not in world.one(Append).event.body
    assert isinstance(outcome, Refused)


def test_the_detail_of_a_refusal_shows_no_secret() -> None:
    outcome = refusal(call(house(do, secrets=["hunter22"]), tool="hunter22"), StopReason.UNKNOWN_TOOL)
    assert "hunter22" not in outcome.detail


class Stars:
    def redact(self, value: Any) -> Any:
        return json.loads(json.dumps(value).replace("private", "***"))


class Broken:
    def redact(self, value: Any) -> Any:
        raise RuntimeError("no")


def test_the_hosts_redactor_sees_refused_proposals_too() -> None:
    world = World()
    call(house(do, policy=DENY, redactor=Stars()), world, arguments={"note": "private"})
    assert body(world)["arguments"] == {"note": "***"}


def test_a_redactor_that_fails_withholds_what_was_proposed() -> None:
    world = World()
    refusal(call(house(do, policy=DENY, redactor=Broken()), world, arguments={"note": "x"}), StopReason.POLICY_DENIED)
    assert body(world) == {"arguments": "[not recorded: RuntimeError]"}


def test_a_redactor_that_fails_before_the_call_refuses_it() -> None:
    world = World()
    outcome = refusal(call(house(do, redactor=Broken()), world), StopReason.INTERNAL_ERROR)
    assert not world.all(Begin)
    assert outcome.code == "AG679"
    assert world.names == ["Append"]


def test_bodies_of_refusals_are_not_kept_where_no_bodies_are() -> None:
    world = World()
    call(house(do, policy=DENY, keep_bodies=False), world)
    assert world.one(Append).event.body == b""


@pytest.mark.parametrize("name", ["do it\x1b[2J", "\ud800", "", "x" * 129, 17, None])
def test_a_tool_name_that_is_no_name_is_no_fact(name: Any) -> None:
    world = World()
    refusal(call(house(do), world, tool=name), StopReason.UNKNOWN_TOOL)
    assert world.one(Append).event.facts["tool"] == "(not a name)"


def test_a_name_that_cannot_even_be_looked_up_is_refused() -> None:
    refusal(call(house(do), tool=["do"]), StopReason.INTERNAL_ERROR)  # type: ignore[arg-type]


def circle() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["x"] = made
    return made


@pytest.mark.parametrize("arguments", [{"x": "\ud800"}, {"x": object()}, {"x": float("nan")}, circle(), {"x": {1}}])
def test_strange_proposals_are_refused_and_leave_valid_json(arguments: Any) -> None:
    world = World()
    refusal(call(house(do), world, arguments=arguments), StopReason.INVALID_ARGUMENTS)
    assert strict_json(world.one(Append).event.body)["detail"]


@pytest.mark.parametrize("error", [StoreUnavailable("down"), AuditError("no"), RuntimeError("bug")])
def test_a_refusal_stays_one_when_it_cannot_be_recorded(error: Exception) -> None:
    outcome = refusal(call(house(do, policy=DENY), World(Append=error)), StopReason.POLICY_DENIED)
    assert "could not be recorded" in outcome.detail


def test_sinks_hear_of_refusals_and_cannot_change_them() -> None:
    world = World(Append=Appended((record(9),)), Publish=SinkError("full"))
    refusal(call(house(do, policy=DENY, has_sinks=True), world), StopReason.POLICY_DENIED)
    assert world.one(Publish).records == (record(9),)


def test_a_tool_that_is_not_audited_leaves_no_record_of_denials() -> None:
    world = World()
    policy = "version: 1\nrules:\n  - deny: quiet\n"
    refusal(call(house(quiet, policy=policy), world, tool="quiet"), StopReason.POLICY_DENIED)
    assert world.asked == []


def test_an_unknown_tool_is_recorded_also_beside_unaudited_ones() -> None:
    world = World()
    call(house(quiet), world, tool="quit")
    assert world.names == ["Append"]


def test_every_reason_has_a_text_for_the_model_that_says_that_nothing_was_done() -> None:
    for reason in StopReason:
        text = for_model(reason)
        assert text
        assert len(text) < 500
        assert "{" not in text


class Nasty(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_an_exception_without_text_can_be_written_about() -> None:
    assert text_of(Nasty()) == "(its text cannot be read)"
    assert text_of(ValueError("\ud800")) == "?"
    assert name_of(type("T" * 5000, (Exception,), {})()) == "T" * 128


def test_an_unforeseen_exception_without_text_is_still_a_refusal() -> None:
    refusal(call(house(do), World(Begin=Nasty())), StopReason.INTERNAL_ERROR)
