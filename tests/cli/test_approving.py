"""``approvals``: what is approved is what was shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentguard import Completed, Policy, ToolGateway
from tests.cli.conftest import SERVICE, Cli, Place

FINANCE = ("--by", "ana", "--role", "finance")


def resumed(place: Place) -> Any:
    with ToolGateway.from_yaml(place.folder / "agentguard.yaml", SERVICE) as gateway:
        return gateway.resume(place.run, tenant="acme").resume_calls()["call_1"]


def test_what_waits_is_listed(cli: Cli, place: Place) -> None:
    head, row = cli("approvals", "list").out.splitlines()
    assert head.split()[:3] == ["ID", "STATUS", "TOOL"]
    assert row.split()[:4] == [place.request, "pending", "refunds.create", "high"]
    assert row.endswith("1 x finance")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--tenant", "globex"], 0),
        (["--tenant", "acme", "--run", "run_a", "--tool", "refunds.create", "--role", "finance"], 1),
        (["--role", "intern"], 0),
        (["--status", "rejected"], 0),
        (["--status", "all"], 1),
    ],
)
def test_filters_narrow_the_list(cli: Cli, place: Place, options: list[str], found: int) -> None:
    assert len(cli("approvals", "list", "--format", "json", *options).json) == found


def test_an_empty_list_is_a_message(cli: Cli, place: Place) -> None:
    assert "Nothing waits" in cli("approvals", "list", "--tenant", "globex").err
    assert "no such requests" in cli("approvals", "list", "--status", "expired").err


def test_a_request_is_shown_completely(cli: Cli, place: Place) -> None:
    out = cli("approvals", "show", place.request).out
    assert "  amount = 250" in out
    assert "  details = null" in out
    assert "needs 1 approver (finance)" in out


def test_a_request_as_json_has_no_inner_keys(cli: Cli, place: Place) -> None:
    value = cli("approvals", "show", place.request, "--format", "json").json
    assert value["arguments"] == {"order_id": "A-17", "amount": 250, "details": None}
    assert value["proposed"] == {"order_id": "A-17", "amount": 250}
    assert value["created_at"].endswith("Z")
    assert {"nonce", "call_key", "extra"}.isdisjoint(value)


def test_an_approved_call_runs_when_it_is_resumed(cli: Cli, place: Place) -> None:
    done = cli("approvals", "approve", place.request, *FINANCE, "--note", "fine")
    assert (done.code, done.out) == (0, f"approved: {place.request}\n")
    assert "  amount = 250" in done.err
    assert resumed(place).value == "refunded 250 for A-17"


def test_set_changes_one_argument_and_runs_exactly_that(cli: Cli, place: Place) -> None:
    done = cli("approvals", "approve", place.request, *FINANCE, "--set", "amount=120", "--set", "order_id=007")
    assert done.code == 0
    assert '"amount": 120' in done.err
    shown = cli("approvals", "show", place.request, "--format", "json").json
    assert shown["edited"] == {"order_id": "007", "amount": 120, "details": None}
    assert resumed(place).value == "refunded 120 for 007"


def test_arguments_replace_everything(cli: Cli, place: Place) -> None:
    given = json.dumps({"order_id": "A-1", "amount": 130, "details": {"why": [1, {"deep": None}]}})
    done = cli("approvals", "approve", place.request, *FINANCE, "--arguments", given, "--format", "json")
    assert done.json["status"] == "approved"
    assert done.json["edited"]["details"] == {"why": [1, {"deep": None}]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("amuont=1", "there is no argument 'amuont'"),
        ("amount", "write NAME=VALUE"),
        ("=1", "write NAME=VALUE"),
        ("amount=many", "is not JSON, and 250 stood there"),
        ("amount=NaN", "is not JSON"),
        ("details.why=1", "there is no argument 'details.why'"),
        ("order_id.x.y=1", "there is no argument"),
    ],
)
def test_a_change_that_fits_nothing_is_refused(cli: Cli, place: Place, change: str, text: str) -> None:
    done = cli("approvals", "approve", place.request, *FINANCE, "--set", change)
    assert (done.code, done.out) == (2, "")
    assert text in done.err
    assert cli("approvals", "show", place.request, "--format", "json").json["status"] == "pending"


def test_inner_arguments_are_reached_with_dots(cli: Cli, place: Place) -> None:
    details = {"why": ["late", {"code": 1}], "note": None}
    with ToolGateway(SERVICE, Policy(require_approval="*"), store=place.url) as gateway:
        run = gateway.resume(place.run)
        waiting = run.attempt("refunds.create", {"order_id": "A", "amount": 5, "details": details}, call_id="call_2")
    changes = ("--set", "details.why.1.code=7", "--set", "details.why.0=lost", "--set", "details.note=seen")
    done = cli("approvals", "approve", waiting.request.id, *FINANCE, *changes, "--format", "json")
    assert done.json["edited"]["details"] == {"why": ["lost", {"code": 7}], "note": "seen"}
    other = cli("approvals", "approve", waiting.request.id, *FINANCE, "--set", "details.why.9=x")
    assert "there is no argument" in other.err


def test_tools_check_an_edit_at_once(cli: Cli, place: Place) -> None:
    command = ("approvals", "approve", place.request, *FINANCE, "--tools", "shop_tools:TOOLS")
    done = cli(*command, "--arguments", '{"order_id": "A"}')
    assert done.code == 1
    assert "AG637" in done.err
    filled = cli(*command, "--arguments", '{"order_id": "A", "amount": 200}', "--format", "json")
    assert filled.json["edited"] == {"order_id": "A", "amount": 200, "details": None}


def test_a_second_approver_approves_what_the_first_one_changed(cli: Cli, place: Place) -> None:
    policy = Policy.from_string(
        "version: 1\nrules:\n  - {id: two, require_approval: refunds.create, approval: {roles: [finance], quorum: 2}}\n"
    )
    with ToolGateway(SERVICE, policy, store=place.url) as gateway:
        run = gateway.resume(place.run)
        waiting = run.attempt("refunds.create", {"order_id": "A", "amount": 5}, call_id="call_2")
        id = waiting.request.id
        first = cli("approvals", "approve", id, *FINANCE, "--set", "amount=4")
        assert first.out == f"counted: {id} is still pending\n"
        assert "1 approved so far; it needs 2 x finance" in first.err
        again = cli("approvals", "approve", id, *FINANCE)
        assert (again.code, "AG636" in again.err) == (1, True)
        second = cli("approvals", "approve", id, "--by", "ben", "--role", "finance")
        assert second.out == f"approved: {id}\n"
        assert run.resume_calls()["call_2"].value == "refunded 4 for A"


@pytest.mark.parametrize(
    ("who", "code"), [(["--by", "ana"], "AG634"), (["--by", "u-17", "--role", "finance"], "AG635")]
)
def test_an_approval_that_does_not_count_ends_with_one(cli: Cli, place: Place, who: list[str], code: str) -> None:
    done = cli("approvals", "approve", place.request, *who)
    assert (done.code, done.out) == (1, "")
    assert code in done.err


def test_a_request_that_was_decided_cannot_be_decided_again(cli: Cli, place: Place) -> None:
    assert cli("approvals", "reject", place.request, *FINANCE).code == 0
    done = cli("approvals", "approve", place.request, *FINANCE)
    assert (done.code, "AG632" in done.err) == (1, True)


@pytest.mark.parametrize("command", ["show", "approve", "reject", "escalate"])
def test_a_request_that_does_not_exist_is_a_usage_error(cli: Cli, place: Place, command: str) -> None:
    options = [] if command == "show" else [*FINANCE, *(["--to", "boss"] if command == "escalate" else [])]
    done = cli("approvals", command, "ap_0", *options)
    assert (done.code, done.out) == (2, "")
    assert "There is no approval request" in done.err
    assert cli("approvals", command, place.request, *options, "--tenant", "globex").code == 2


def test_an_approval_until_a_time_covers_later_calls(cli: Cli, place: Place) -> None:
    done = cli(
        "approvals", "approve", place.request, *FINANCE, "--scope", "until", "--until", "30m", "--format", "json"
    )
    assert done.json["scope"] == "until"
    assert done.json["until"].endswith("Z")
    with ToolGateway.from_yaml(place.folder / "agentguard.yaml", SERVICE) as gateway:
        run = gateway.resume(place.run)
        assert isinstance(run.attempt("refunds.create", {"order_id": "B", "amount": 300}, call_id="c"), Completed)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--scope", "until"], "go together"),
        (["--until", "2h"], "go together"),
        (["--scope", "until", "--until", "soon"], "write a duration"),
        (["--scope", "until", "--until", "1.2.3h"], "--until"),
        (["--scope", "until", "--until", "2090-01-01T00:00:00"], "has no zone"),
        (["--arguments", "{}", "--set", "amount=1"], "either --arguments or --set"),
    ],
)
def test_options_that_do_not_fit_are_refused(cli: Cli, place: Place, options: list[str], text: str) -> None:
    done = cli("approvals", "approve", place.request, *FINANCE, *options)
    assert (done.code, done.out) == (2, "")
    assert text in done.err


def test_a_time_in_the_past_does_not_count(cli: Cli, place: Place) -> None:
    past = ("--scope", "until", "--until", "2020-01-01T00:00:00Z")
    done = cli("approvals", "approve", place.request, *FINANCE, *past)
    assert (done.code, "AG638" in done.err) == (1, True)


def test_a_rejected_call_tells_the_model_why(cli: Cli, place: Place) -> None:
    done = cli("approvals", "reject", place.request, *FINANCE, "--reason", "too much")
    assert done.out == f"rejected: {place.request}\n"
    assert "too much" in resumed(place).message


def test_terminating_stops_the_run(cli: Cli, place: Place) -> None:
    done = cli("approvals", "reject", place.request, *FINANCE, "--terminate", "--format", "json")
    assert done.json["status"] == "terminated"
    assert cli("runs", "show", place.run, "--format", "json").json["status"] == "stopped"


def test_escalating_lets_another_role_decide(cli: Cli, place: Place) -> None:
    done = cli("approvals", "escalate", place.request, *FINANCE, "--to", "boss")
    assert done.out == f"escalated: {place.request} may now be decided by boss too\n"
    shown = cli("approvals", "show", place.request, "--format", "json").json
    assert shown["escalated"][0]["to"] == ["boss"]
    again = cli("approvals", "escalate", place.request, *FINANCE, "--to", "owner", "--format", "json")
    assert again.json["status"] == "pending"
    assert cli("approvals", "approve", place.request, "--by", "cleo", "--role", "boss").code == 0


def test_a_person_at_a_terminal_is_asked(cli: Cli, place: Place) -> None:
    no = cli("approvals", "approve", place.request, *FINANCE, stdin="n\n", tty=True)
    assert (no.code, no.out.strip()) == (1, "")
    assert "Approve this?" in no.err
    assert "stopped" in no.err
    yes = cli("approvals", "approve", place.request, *FINANCE, stdin="y\n", tty=True)
    assert (yes.code, yes.out) == (0, f"approved: {place.request}\n")


def test_a_person_who_said_yes_is_not_asked(cli: Cli, place: Place) -> None:
    done = cli("approvals", "reject", place.request, *FINANCE, "--yes", tty=True)
    assert done.code == 0
    assert "Reject this?" not in done.err
