"""Approvers that ask while the call waits: at the console, by a function of the host, by sending word.

What must stay true: silence, an unreadable answer and a terminal that is none never approve; an exception leaves
the request pending; what a person says yes to is what was shown, edits of another approver included.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TextIO, TypeAlias

from agentguard.approval.describing import describe, differences, visible
from agentguard.approval.notifying import AsyncWebhookApprover, WebhookApprover
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity, Verdict
from agentguard.errors import ApprovalError, ConfigurationError

__all__ = ["Answer", "AsyncWebhookApprover", "CallbackApprover", "ConsoleApprover", "WebhookApprover", "describe"]

Answer: TypeAlias = Verdict | bool | None
"""What a callback may answer: a verdict, yes or no of the identity given to the approver, or "not yet"."""

BAD_ANSWER = "AG646"
BAD_SETTING = "AG647"
_TRIES = 10


def _os_user() -> ApproverIdentity:
    # The login of this process: the operating system has authenticated it, environment variables have not.
    import pwd

    uid = os.getuid()
    try:
        return ApproverIdentity(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return ApproverIdentity(f"uid-{uid}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON value")


class ConsoleApprover:
    """Asks the person at the terminal: yes, no, edit or not yet.

    Where input or output is no terminal nobody is asked and the call is suspended.

    Args:
        identity: Who sits there; the operating system's user when left out.
        stdin: Where answers come from, ``sys.stdin`` when left out.
        stdout: Where the question goes, ``sys.stdout`` when left out.
    """

    def __init__(
        self,
        identity: ApproverIdentity | None = None,
        *,
        stdin: TextIO | None = None,
        stdout: TextIO | None = None,
    ) -> None:
        self._identity = identity
        self._stdin = stdin
        self._stdout = stdout

    def decide(self, request: ApprovalRequest) -> Verdict | None:
        """Show the request and wait for an answer; ``None`` for "not yet", end of input or no terminal."""
        source = self._stdin or sys.stdin
        target = self._stdout or sys.stdout
        if source is None or target is None or not (source.isatty() and target.isatty()):
            return None
        by = self._identity or _os_user()

        def say(line: str) -> None:
            target.write(line + "\n")

        def ask(question: str) -> str | None:
            target.write(question + " ")
            target.flush()
            line = source.readline()
            return line.strip() if line else None

        for line in describe(request):
            say(line)
        may_edit = request.terms.edit and request.edited is None
        question = f"Approve as {visible(by.name)}? [y]es, [n]o{', [e]dit' if may_edit else ''}, [q] not yet:"
        for _ in range(_TRIES):
            answer = ask(question)
            if answer is None or answer.lower() in ("q", "quit"):
                return None
            if answer.lower() in ("y", "yes"):
                return Verdict("approve", by, arguments=request.edited)
            if answer.lower() in ("n", "no"):
                return Verdict("reject", by, reason=ask("Why (shown to the model, may be empty)?") or None)
            if answer.lower() in ("e", "edit") and may_edit:
                edited = self._edit(request, say, ask)
                if edited is not None:
                    return Verdict("approve", by, arguments=edited)
            else:
                say("Please answer with one of the letters in brackets.")
        return None

    @staticmethod
    def _edit(
        request: ApprovalRequest, say: Callable[[str], None], ask: Callable[[str], str | None]
    ) -> Mapping[str, Any] | None:
        say("All arguments as one line of JSON, for example " + visible(json.dumps(request.arguments)))
        text = ask("arguments:")
        try:
            edited = json.loads(text or "", object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            say(f"This is no JSON: {visible(str(error))}")
            return None
        if not isinstance(edited, dict):
            say("The arguments must be a JSON object.")
            return None
        for path, old, new in differences(request.arguments, edited):
            say(f"  {path}: {old} -> {new}")
        return edited if (ask("Approve these arguments? [y/n]:") or "").lower() in ("y", "yes") else None


def _is_async(fn: object) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


class CallbackApprover:
    """Asks a function of the host.

    Args:
        fn: Called with the request; a sync or an async function. It answers a :class:`Verdict`, ``None`` for
            "not yet", or, with ``identity``, ``True`` or ``False``. With an async function ``decide`` is a
            coroutine function and only async callers can use the approver.
        identity: Who stands behind ``True`` and ``False``.

    Raises:
        ConfigurationError: ``AG647``; ``fn`` is not callable.
    """

    def __init__(
        self,
        fn: Callable[[ApprovalRequest], Answer] | Callable[[ApprovalRequest], Awaitable[Answer]],
        identity: ApproverIdentity | None = None,
    ) -> None:
        if not callable(fn):
            raise ConfigurationError(f"an approver needs a function, not a {type(fn).__name__}", code=BAD_SETTING)
        self._fn: Callable[[ApprovalRequest], Any] = fn
        self._identity = identity
        if _is_async(fn):
            self.decide = self._adecide  # type: ignore[method-assign, assignment]

    def decide(self, request: ApprovalRequest) -> Verdict | None:
        """Ask the function.

        Raises:
            ApprovalError: ``AG646``; its answer is none of the permitted ones.
        """
        return self._verdict(request, self._fn(request))

    async def _adecide(self, request: ApprovalRequest) -> Verdict | None:
        return self._verdict(request, await self._fn(request))

    def _verdict(self, request: ApprovalRequest, answer: object) -> Verdict | None:
        if answer is None or isinstance(answer, Verdict):
            return answer
        if isinstance(answer, bool):
            if self._identity is None:
                raise ApprovalError(
                    "the approver answered True or False, and nobody knows who that was; pass "
                    "CallbackApprover(fn, identity=ApproverIdentity(...)) or answer with a Verdict",
                    code=BAD_ANSWER,
                )
            if answer:
                return Verdict("approve", self._identity, arguments=request.edited)
            return Verdict("reject", self._identity)
        if inspect.iscoroutine(answer):
            answer.close()  # it would be reported as never awaited
        raise ApprovalError(
            f"the approver answered with a {type(answer).__name__}; answer with a Verdict, True, False or None",
            code=BAD_ANSWER,
        )
