"""Identities written by hand are compared as those of real runs are; stop reasons have one value and two spellings."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import Policy, RunContext, StopReason, ToolGateway, tool

POLICY = """
version: 1
rules:
  - {id: mail, allow: mail}
  - {id: interns, deny: mail, when: {role: intern}}
  - {id: secrets, deny: mail, when: {run: {labels: {any: secret}}}}
"""


@tool(name="mail")
def mail(to: str) -> str:
    """Send."""
    return to


def verdict(**facts: Any) -> str:
    with ToolGateway(tools=[mail], policy=Policy.from_string(POLICY)) as gateway:
        return gateway.decide("mail", {"to": "x"}, RunContext(agent="bot", **{"roles": ("admin",), **facts})).verdict


def test_a_context_needs_no_run_to_ask_what_would_be_decided() -> None:
    assert verdict() == "allow"


@pytest.mark.parametrize("form", [list, tuple, set, frozenset])
def test_roles_and_labels_are_the_same_in_any_collection(form: Any) -> None:
    assert RunContext("r", "a", roles=form(["x", "y"])) == RunContext("r", "a", roles=("x", "y"))
    assert verdict(roles=form(["admin"]), labels=form(["public"])) == "allow"
    assert verdict(roles=form(["intern"])) == "deny"
    assert verdict(labels=form(["secret"])) == "deny"


@pytest.mark.parametrize("scope", [["mail"], ("mail",), {"mail"}, [["mail"]], [("mail",)]])
def test_a_flat_scope_is_one_narrowing(scope: Any) -> None:
    assert RunContext("r", "a", scope=scope).scope == (("mail",),)


def test_a_flat_scope_narrows_what_is_seen_and_done() -> None:
    assert verdict(scope=["mail"]) == "allow"
    assert verdict(scope=["other"]) == "deny"
    with ToolGateway(tools=[mail], policy=Policy(allow="mail")) as gateway:
        seen = gateway.visible(RunContext(agent="bot", scope=["mail"]))  # type: ignore[arg-type]
    assert [one.spec.name for one in seen] == ["mail"]


@pytest.mark.parametrize("facts", [{"roles": "intern"}, {"labels": "secret"}, {"scope": "mail"}])
def test_one_text_is_no_list_of_names(facts: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="lists of names"):
        RunContext(agent="bot", **facts)


@pytest.mark.parametrize("facts", [{}, {"run_id": "r"}, {"agent": ""}])
def test_a_context_without_an_agent_is_none(facts: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="acting agent"):
        RunContext(**facts)


def test_stop_reasons_are_found_under_what_is_stored_and_shown() -> None:
    for reason in StopReason:
        assert getattr(StopReason, reason.value) is reason
        assert getattr(StopReason, reason.value.upper()) is reason
