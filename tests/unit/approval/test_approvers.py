"""Approvers that answer while the call waits."""

from __future__ import annotations

import functools
import inspect
import io
import os
import pty
import pwd
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from agentguard.approval import routing
from agentguard.approval.approvers import CallbackApprover, ConsoleApprover
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity, Verdict
from agentguard.errors import ApprovalError, ConfigurationError
from agentguard.protocols import Approver
from tests.unit.approval.asking import ANN, ARGUMENTS, BOB, FINANCE, NOW, TWO, opened


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Session(NamedTuple):
    verdict: Verdict | None
    output: str


def typed(text: str, request: ApprovalRequest | None = None, who: ApproverIdentity | None = ANN) -> Session:
    screen = Terminal()
    verdict = ConsoleApprover(who, stdin=Terminal(text), stdout=screen).decide(request or opened())
    return Session(verdict, screen.getvalue())


@pytest.mark.parametrize("answer", ["y\n", "yes\n", "Y\n", " y \n", "y"])
def test_yes_approves_what_was_shown(answer: str) -> None:
    session = typed(answer)
    assert session.verdict == Verdict("approve", ANN)
    assert "  amount = 250\n" in session.output
    assert "Approve as ann? [y]es, [n]o, [e]dit, [q] not yet: " in session.output


def test_no_rejects_with_the_reason_given() -> None:
    assert typed("n\nno receipt\n").verdict == Verdict("reject", ANN, reason="no receipt")
    assert typed("no\n\n").verdict == Verdict("reject", ANN)
    assert typed("n\n").verdict == Verdict("reject", ANN)


@pytest.mark.parametrize("answer", ["q\n", "quit\n", ""])
def test_not_yet_and_the_end_of_input_decide_nothing(answer: str) -> None:
    assert typed(answer).verdict is None


def test_anything_else_is_asked_again() -> None:
    session = typed("maybe\n\nyy\ny\n")
    assert session.verdict == Verdict("approve", ANN)
    assert session.output.count("Please answer") == 3


def test_who_never_answers_decides_nothing() -> None:
    assert typed("?\n" * 50).verdict is None


def test_an_edit_is_shown_and_confirmed() -> None:
    session = typed('e\n{"amount": 100}\ny\n')
    assert session.verdict == Verdict("approve", ANN, arguments={"amount": 100})
    assert "  amount: 250 -> 100\n" in session.output
    assert '  order: "A-17" -> (absent)\n' in session.output


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", "null", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": Infinity}', "[" * 100_000]
)
def test_an_edit_that_is_no_json_object_approves_nothing(line: str) -> None:
    assert typed(f"e\n{line}\nq\n").verdict is None


def test_an_edit_that_is_not_confirmed_approves_nothing() -> None:
    assert typed('e\n{"amount": 1}\nn\nq\n').verdict is None
    assert typed('e\n{"amount": 1}\n').verdict is None


def test_where_the_policy_forbids_edits_none_is_offered() -> None:
    session = typed("e\ny\n", opened(FINANCE.__class__(role_sets=(("finance",),), edit=False)))
    assert session.verdict == Verdict("approve", ANN)
    assert "[e]dit" not in session.output


def test_yes_to_an_edited_request_names_the_edit() -> None:
    edited = {**ARGUMENTS, "amount": 100}
    request = routing.vote(opened(TWO), Verdict("approve", ANN, arguments=edited), NOW)
    verdict = typed("y\n", request, BOB).verdict
    assert verdict == Verdict("approve", BOB, arguments=edited)
    assert routing.vote(request, verdict, NOW).status == "approved"


def test_the_console_shows_no_raw_control_character() -> None:
    request = opened(arguments={"x\x1b": "\x1b[2J\u202e\r"}, tool="t\x1b[31m")
    session = typed("e\n{}\nn\nq\n", request, ApproverIdentity("a\x1b"))
    assert not set(session.output) & {"\x1b", "\u202e", "\r"}


@pytest.mark.parametrize(
    ("stdin", "stdout"), [(io.StringIO("y\n"), Terminal()), (Terminal("y\n"), io.StringIO()), (io.StringIO("y\n"),) * 2]
)
def test_where_nobody_sits_nobody_is_asked(stdin: io.StringIO, stdout: io.StringIO) -> None:
    before = stdout.getvalue()
    assert ConsoleApprover(ANN, stdin=stdin, stdout=stdout).decide(opened()) is None
    assert stdout.getvalue() == before


def test_a_process_without_standard_streams_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert ConsoleApprover(ANN).decide(opened()) is None


def test_the_standard_streams_are_used_when_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert ConsoleApprover(ANN).decide(opened()) == Verdict("approve", ANN)


def test_it_works_on_a_real_terminal() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r", closefd=False) as stdin, os.fdopen(theirs, "w", closefd=False) as stdout:
        os.write(ours, b"y\n")
        verdict = ConsoleApprover(ANN, stdin=stdin, stdout=stdout).decide(opened())
    os.close(ours)
    os.close(theirs)
    assert verdict == Verdict("approve", ANN)


def test_the_operating_system_says_who_sits_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "ceo")
    verdict = typed("y\n", who=None).verdict
    assert verdict is not None
    assert verdict.by == ApproverIdentity(pwd.getpwuid(os.getuid()).pw_name)


def test_a_user_without_a_name_is_known_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_123)
    verdict = typed("y\n", who=None).verdict
    assert verdict is not None
    assert verdict.by.name == "uid-2000000123"


# --- functions -----------------------------------------------------------------------------------


def test_the_approvers_satisfy_the_protocol() -> None:
    assert isinstance(ConsoleApprover(), Approver)
    assert isinstance(CallbackApprover(lambda r: None), Approver)


def test_a_callback_sees_the_request_and_its_verdict_is_passed_on() -> None:
    seen: list[ApprovalRequest] = []
    verdict = Verdict("escalate", ANN, to=("cfo",))

    def ask(request: ApprovalRequest) -> Verdict:
        seen.append(request)
        return verdict

    request = opened()
    assert CallbackApprover(ask).decide(request) is verdict
    assert seen == [request]


def test_nothing_means_not_yet() -> None:
    assert CallbackApprover(lambda r: None, ANN).decide(opened()) is None


def test_yes_and_no_are_those_of_the_identity() -> None:
    assert CallbackApprover(lambda r: True, ANN).decide(opened()) == Verdict("approve", ANN)
    assert CallbackApprover(lambda r: False, ANN).decide(opened()) == Verdict("reject", ANN)


def test_yes_to_an_edited_request_approves_the_edit() -> None:
    request = opened(TWO, edited={"amount": 1})
    assert CallbackApprover(lambda r: True, ANN).decide(request) == Verdict("approve", ANN, arguments={"amount": 1})


@pytest.mark.parametrize("answer", [True, False])
def test_yes_and_no_of_nobody_raise(answer: bool) -> None:
    with pytest.raises(ApprovalError, match="nobody knows who") as caught:
        CallbackApprover(lambda r: answer).decide(opened())
    assert caught.value.code == "AG646"


@pytest.mark.parametrize("answer", [1, 0, "yes", "approve", {}, [], object()])
def test_any_other_answer_raises(answer: Any) -> None:
    with pytest.raises(ApprovalError, match=type(answer).__name__):
        CallbackApprover(lambda r: answer, ANN).decide(opened())


def test_what_the_callback_raises_comes_out() -> None:
    def broken(request: ApprovalRequest) -> bool:
        raise LookupError("no approvals server")

    with pytest.raises(LookupError):
        CallbackApprover(broken, ANN).decide(opened())


async def later(request: ApprovalRequest) -> bool:
    return True


class Later:
    async def __call__(self, request: ApprovalRequest) -> bool:
        return True


@pytest.mark.anyio
@pytest.mark.parametrize("fn", [later, Later(), functools.partial(later)])
async def test_an_async_callback_makes_an_async_approver(fn: Callable[[ApprovalRequest], Any]) -> None:
    approver: Any = CallbackApprover(fn, ANN)
    assert inspect.iscoroutinefunction(approver.decide)
    assert await approver.decide(opened()) == Verdict("approve", ANN)


def test_an_async_function_behind_a_sync_one_raises_and_is_closed() -> None:
    with pytest.raises(ApprovalError, match="coroutine"):
        CallbackApprover(lambda r: later(r), ANN).decide(opened())  # type: ignore[arg-type, return-value]


def test_what_is_not_callable_is_no_approver() -> None:
    nothing: Any = "yes"
    with pytest.raises(ConfigurationError) as caught:
        CallbackApprover(nothing)
    assert caught.value.code == "AG647"
