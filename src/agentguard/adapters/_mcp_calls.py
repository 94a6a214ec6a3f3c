"""One MCP tool call on its way to the gateway and back: what proxy, client and server side have in common.

What must stay true: nothing is forwarded but from inside the gateway's own call of the registered tool; whatever goes
wrong in here is an error result; a result is handed on in the server's own form only as long as the gateway has changed
nothing in it; a call whose answer got lost counts as one that may have taken effect.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agentguard.adapters._continuing import Continuation, athrough, call_id_of
from agentguard.adapters._mcp_tools import Watch
from agentguard.adapters._wire import answer_to, error_text, result_text
from agentguard.canonical import NotCanonical, sha256, tagged
from agentguard.domain.calls import Ambiguous, Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.decisions import StopReason
from agentguard.errors import CallRefused, StoreError

if TYPE_CHECKING:
    from agentguard.gateway import Run

log = logging.getLogger("agentguard")

CALL_ID: Final = "agentguard/tool_call_id"
"""Key in ``_meta`` of a call by which a client says which call this is: the same id is the same call."""

Forward: TypeAlias = Callable[[dict[str, Any]], Awaitable[tuple[Any, Mapping[str, Any]]]]
"""Sends a call to the server with these arguments; gives the result in the caller's own form, and as JSON."""


class ToolReportedError(Exception):
    """The server's tool ran and reported an error (``isError``)."""


class AnswerLost(Exception):
    """The call was sent, and what became of it will not be known."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the caller gets: the server's own result or exception, or a result that was made here.

    Attributes:
        own: The server's result as it came.
        made: A ``CallToolResult`` as JSON; comes before ``own``.
        error: What the server's side raised instead of a result.
    """

    own: Any = None
    made: dict[str, Any] | None = None
    error: Exception | None = None


def error_result(text: str, **facts: Any) -> dict[str, Any]:
    """A ``CallToolResult`` that reports an error; ``facts`` go along for programs, in ``_meta``."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
    known = {f"agentguard/{name}": value for name, value in facts.items() if value not in ("", None)}
    return {**result, "_meta": known} if known else result


def refused(reason: StopReason, message: str, code: str = "", *, retryable: bool = False) -> dict[str, Any]:
    """The error result of a call that was not made."""
    return error_result(error_text(reason.value, message, retryable=retryable), reason=reason.value, code=code)


def _is_copy(content: Any, structured: Any) -> bool:
    """Whether ``content`` is nothing but ``structuredContent`` once more, as the specification recommends."""
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], Mapping):
        return False
    text = content[0].get("text")
    if content[0].get("type") != "text" or not isinstance(text, str):
        return False
    wrapped = structured.get("result") if isinstance(structured, Mapping) and len(structured) == 1 else None
    if isinstance(wrapped, str) and wrapped == text:
        return True
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(said == structured or (wrapped is not None and said == wrapped))


def _recorded(wire: Mapping[str, Any]) -> dict[str, Any]:
    """What the gateway keeps of a result: a text that only repeats ``structuredContent`` is left out, so that what is
    hidden in the one does not stay in the other."""
    kept = {key: value for key, value in wire.items() if key not in ("_meta", "isError", "content")}
    if "structuredContent" not in kept or not _is_copy(wire.get("content"), kept["structuredContent"]):
        kept["content"] = wire.get("content", [])
    return kept


def _restored(value: Any) -> dict[str, Any]:
    """A result of which the gateway has changed something, or that it remembers."""
    if not isinstance(value, Mapping):
        return {"content": [{"type": "text", "text": result_text(value)}]}
    result = dict(value)
    if not isinstance(result.get("content"), list):
        given = result["content"] if "content" in result else _unwrapped(result.get("structuredContent"))
        result["content"] = [{"type": "text", "text": result_text(given)}]
    return result


def _unwrapped(structured: Any) -> Any:
    """Servers wrap a value that is no object in one: ``{"result": value}``. The text is that of the value."""
    return structured["result"] if isinstance(structured, Mapping) and set(structured) == {"result"} else structured


class Door:
    """The way of the calls of one MCP session to the gateway.

    Attributes:
        run: The run they belong to.
        watch: The tools of the server.
    """

    def __init__(self, run: Run, watch: Watch) -> None:
        self.run = run
        self.watch = watch
        self._ids = itertools.count(1)
        self._nonce = secrets.token_hex(4)
        self._waiting: dict[str, str] = {}

    async def remember(self) -> None:
        """Find the calls of a resumed run that wait for a person, so that repeating them goes on with them."""
        for request in await self.run.apending():
            digest = _digest(request.tool, dict(request.proposed))
            if digest is not None:
                self._waiting[digest] = request.call_id

    def shown(self, tools: list[Any], name_of: Callable[[Any], str]) -> list[Any]:
        """Those of the server's tools that the run may see, and that are still what was registered."""
        seen = self.run._gateway.visible(self.run)
        names = ((tool, self.watch.prefix + name_of(tool)) for tool in tools)
        return [tool for tool, name in names if name in seen and self.watch.is_same(name)]

    async def call(self, name: str, arguments: Any, given_id: str | None, forward: Forward) -> Reply:
        """Make one call.

        Args:
            name: The server's name of the tool.
            arguments: Arguments as they came.
            given_id: The caller's own id of the call, if it gave one.
            forward: Sends the call to the server.
        """
        try:
            await self.run.aopen()
            return await self._call(self.watch.prefix + name, arguments, given_id, forward)
        except CallRefused as error:
            return Reply(made=refused(error.reason, error.for_model, error.code, retryable=error.retryable))
        except StoreError as error:
            log.error("mcp: %s: %s", name, error)
            message = "The action could not be recorded, so it was not carried out."
            return Reply(made=refused(StopReason.STORE_UNAVAILABLE, message, error.code, retryable=True))
        except Exception as error:
            log.error("mcp: %s: %s: %s", name, type(error).__name__, error)
            message = "The action could not be checked. It was not carried out."
            return Reply(made=refused(StopReason.INTERNAL_ERROR, message, "AG652"))

    async def _call(self, name: str, arguments: Any, given_id: str | None, forward: Forward) -> Reply:
        known = self.run._gateway.registry.get(name)
        if known is not None and name not in self.watch:
            # Registered, and somebody else's: this server does not get to stand in for it.
            return Reply(made=refused(StopReason.UNKNOWN_TOOL, "There is no such tool on this server.", "AG690"))
        digest = _digest(name, arguments) if given_id is None else None
        call_id = self._id(given_id, digest)
        lost: list[Exception] = []

        async def proceed(effective: dict[str, Any]) -> Any:
            try:
                own, wire = await forward(effective)
            except AnswerLost as error:
                if known is not None and known.spec.effect in ("pure", "read"):
                    raise
                # To the gateway this is what a cancelled call is: begun, and its end unknown.
                lost.append(error)
                raise asyncio.CancelledError from error
            if wire.get("isError") is True:
                next_.kept = own
                raise ToolReportedError(result_text(wire.get("content"))[:2000])
            return next_.keep(_recorded(wire), own)

        next_ = Continuation(name, self.watch.latest(name), proceed)
        try:
            outcome = await athrough(self.run, next_, {} if arguments is None else arguments, call_id)
        except asyncio.CancelledError:
            if not lost:
                raise
            log.error("mcp: %s: %s", name, lost[0])
            message = "It is not known whether the action took effect. Do not repeat it."
            return Reply(made=refused(StopReason.AMBIGUOUS, message))
        if digest is not None:
            self._note(digest, call_id, outcome)
        return _reply(outcome, next_)

    def _id(self, given: str | None, digest: str | None) -> str:
        own = call_id_of(self.run, given)
        if own is not None:
            return own
        return self._waiting.get(digest or "") or f"mcp-{self._nonce}-{next(self._ids)}"

    def _note(self, digest: str, call_id: str, outcome: Outcome) -> None:
        if isinstance(outcome, Suspended):
            self._waiting[digest] = call_id
        elif not (isinstance(outcome, Refused) and outcome.retryable):
            self._waiting.pop(digest, None)


def _digest(name: str, arguments: Any) -> str | None:
    try:
        return sha256(tagged([name, {} if arguments is None else arguments]))
    except NotCanonical:
        return None


def _reply(outcome: Outcome, next_: Continuation) -> Reply:
    match outcome:
        case Completed():
            notes = outcome.decision.obligations.messages if outcome.decision is not None else ()
            if next_.given(outcome) and not notes:
                return Reply(own=next_.kept)
            result = _restored(outcome.value)
            result["content"] = [*result["content"], *({"type": "text", "text": f"Note: {n}"} for n in notes)]
            return Reply(made=result)
        case Suspended():
            message = (
                "A person has to approve this action first. It was not carried out. Once it is approved, make exactly "
                "the same call again."
            )
            reason = StopReason.APPROVAL_PENDING
            text = error_text(reason.value, message, retryable=True)
            request = outcome.request
            facts = {"approval_id": request.id, "run_id": request.run_id}
            return Reply(made=error_result(text, reason=reason.value, **facts))
        case Failed() if _is_own(outcome, next_):
            return Reply(own=next_.kept) if next_.kept is not None else Reply(error=next_.failure)
        case _:
            answer = answer_to("", outcome)
            reason = StopReason.AMBIGUOUS if isinstance(outcome, Ambiguous) else outcome.reason
            code = outcome.code if isinstance(outcome, Refused) else ""
            return Reply(made=error_result(answer.text if answer else "", reason=reason.value, code=code))


def _is_own(outcome: Failed, next_: Continuation) -> bool:
    """Whether the caller may get the server's own words: nothing in them was to be hidden."""
    if outcome.replayed or outcome.reason is not StopReason.TOOL_ERROR or outcome.error is not next_.failure:
        return False
    hidden = outcome.decision.obligations.redact_output if outcome.decision is not None else ()
    return not hidden and not isinstance(next_.failure, AnswerLost) and next_.failure is not None
