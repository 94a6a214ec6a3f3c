"""What adapters of raw model interfaces have in common: calls a model proposes, and the answers it gets.

What must stay true: arguments are either read exactly or refused (no repaired JSON, no last-key-wins, no ``{}``
for something unreadable), and an answer never carries more of a refusal than its text for the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from pydantic_core import to_json

from agentguard.canonical import sha256
from agentguard.domain.approvals import ApprovalRequest
from agentguard.domain.calls import Ambiguous, Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.decisions import StopReason

MAX_ARGUMENTS: Final = 1_000_000
"""Longest text of arguments that is read, in characters."""

SHOWN_ARGUMENTS: Final = 2000
"""Characters of unreadable arguments that are recorded."""

FINAL: Final = frozenset({StopReason.KILLED, StopReason.RUN_ENDED, StopReason.GATEWAY_CLOSED, StopReason.NO_ACTIVE_RUN})
"""Reasons after which another model call would be pointless."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One call as the model proposed it.

    Attributes:
        call_id: The provider's id; ``""`` when it gave none.
        name: Name on the wire.
        arguments: Arguments by name, or ``None`` when they could not be read.
        problem: Why the call cannot be made, for people; ``""`` when it can.
        given: What stood in the place of unreadable arguments, as text, for the audit trail.
    """

    call_id: str
    name: str
    arguments: Mapping[str, Any] | None
    problem: str = ""
    given: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model gets for one proposal: the text, and whether it reports an error."""

    call_id: str
    text: str
    failed: bool


@dataclass(frozen=True, slots=True)
class ToolResults:
    """What became of the tool calls of one model answer.

    Attributes:
        messages: To be appended to the conversation, in the order of the calls. Calls that wait for a person
            have none yet.
        pending: Approval requests that have to be decided first. While there is one, nothing may be sent to
            the model: keep the conversation, and run the calls of the same answer again later.
        stop: Why the loop has to stop, or ``None``: ``approval_pending``, or the end of the run.
        outcomes: Outcome per call, by position in the answer.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    pending: tuple[ApprovalRequest, ...] = ()
    stop: StopReason | None = None
    outcomes: tuple[Outcome, ...] = ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def read_arguments(text: object) -> dict[str, Any]:
    """Read the arguments of a call from JSON text.

    Raises:
        ValueError: It is no JSON text of one object; a key is there twice; a number is NaN, infinite or too large.
    """
    if not isinstance(text, str):
        raise ValueError("the arguments are not text")
    if len(text) > MAX_ARGUMENTS:
        raise ValueError(f"the arguments are longer than {MAX_ARGUMENTS} characters")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_number)
    except RecursionError as error:
        raise ValueError("the arguments are nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("the arguments are not an object")
    return value


def proposal(call_id: object, name: object, arguments: object, *, problem: str = "") -> Proposal:
    """Make a proposal out of what the wire says; what cannot be read becomes its ``problem``.

    Args:
        call_id: Provider's id.
        name: Name of the tool on the wire.
        arguments: JSON text, or an object that the SDK has parsed.
        problem: A reason known already.
    """
    found: Mapping[str, Any] | None = None
    given_id = call_id if isinstance(call_id, str) else ""
    given_name = name if isinstance(name, str) else ""
    if not problem:
        if not given_id:
            problem = "the call has no id"
        elif not given_name:
            problem = "the call names no tool"
        else:
            try:
                found = dict(arguments) if isinstance(arguments, Mapping) else read_arguments(arguments)
            except ValueError as error:
                problem = f"the arguments cannot be read: {error}"
    shown = "" if found is not None else arguments if isinstance(arguments, str) else repr(arguments)
    return Proposal(given_id, given_name, found, problem, shown[:SHOWN_ARGUMENTS])


def error_text(kind: str, message: str, *, retryable: bool = False) -> str:
    """The body of an answer that is no result: ``{"error": {"type", "message", "retryable"}}``."""
    return json.dumps({"error": {"type": kind, "message": message, "retryable": retryable}}, ensure_ascii=False)


def result_text(value: Any) -> str:
    """A tool's result as text: text as it is, everything else as JSON.

    Raises:
        ValueError: It cannot be written as JSON.
    """
    return value if isinstance(value, str) else to_json(value, inf_nan_mode="constants").decode()


def answer_to(call_id: str, outcome: Outcome) -> Answer | None:
    """What the model gets for an outcome; ``None`` while a person has to decide."""
    match outcome:
        case Suspended():
            return None
        case Completed():
            text = result_text(outcome.value)
            notes = outcome.decision.obligations.messages if outcome.decision is not None else ()
            return Answer(call_id, "\n\n".join([text, *(f"Note: {note}" for note in notes)]), False)
        case Refused():
            return Answer(call_id, error_text(outcome.reason.value, outcome.message, retryable=outcome.retryable), True)
        case Failed():
            message = outcome.message or "The tool did not deliver a result."
            return Answer(call_id, error_text(outcome.reason.value, message), True)
        case Ambiguous():
            message = outcome.message or "It is not known whether the action took effect. Do not repeat it."
            return Answer(call_id, error_text(StopReason.AMBIGUOUS.value, message), True)


def unreadable(found: Proposal, recorded: Refused | None = None) -> Refused:
    """The refusal of a proposal that cannot be made into a call; ``recorded`` is what the gateway made of it."""
    if recorded is not None and recorded.reason is not StopReason.INVALID_ARGUMENTS:
        return recorded
    message = "The call could not be read and was not carried out. Send the arguments as one valid JSON object."
    detail = f"{found.name or 'a call'}: {found.problem}"
    return Refused(StopReason.INVALID_ARGUMENTS, None, message, True, detail, found.call_id, "AG651")


def collected(
    proposals: Sequence[Proposal],
    outcomes: Sequence[Outcome],
    written: Callable[[Sequence[Answer]], list[dict[str, Any]]],
    remember: Callable[[str, str | None], None],
) -> ToolResults:
    """Put the outcomes of one model answer together.

    Args:
        proposals: The calls.
        outcomes: Their outcomes, in the same order.
        written: Makes the provider's messages out of answers.
        remember: Told the id and the text of each answer (``None``: it waits for a person).
    """
    answers: list[Answer] = []
    pending: list[ApprovalRequest] = []
    stop: StopReason | None = None
    for found, outcome in zip(proposals, outcomes, strict=True):
        answer = answer_to(found.call_id, outcome)
        remember(found.call_id, answer.text if answer is not None else None)
        if answer is not None:
            answers.append(answer)
        if isinstance(outcome, Suspended):
            pending.append(outcome.request)
        if isinstance(outcome, Refused) and outcome.reason in FINAL:
            stop = stop or outcome.reason
    if pending and stop is None:
        stop = StopReason.APPROVAL_PENDING
    return ToolResults(written(answers) if answers else [], tuple(pending), stop, tuple(outcomes))


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or blocks of text put together; anything else in its JSON form."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    return to_json(content, fallback=repr).decode()


def digest_of(content: Any) -> str:
    """SHA-256 (hex) over the text of a message's content."""
    return sha256(text_of(content).encode("utf-8", "surrogatepass"))


def plain(value: Any) -> Any:
    """A value of an SDK (models of pydantic, at any depth) as dicts, lists and scalars; unknown objects stay."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json", exclude_unset=True, warnings=False)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


_NOT_TEXT: Final = frozenset({"data", "encrypted_content", "file_data", "image_url", "signature", "url"})


def estimate_tokens(body: Any) -> int:
    """Estimate the tokens of a request body: a quarter of the characters of its texts, at least 1.

    Four characters per token is what OpenAI gives as the rule of thumb for English
    (https://help.openai.com/en/articles/4936856). Images and files are left out.
    """
    return max(1, _characters(body) // 4)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(k)) + _characters(v) for k, v in value.items() if k not in _NOT_TEXT)
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return 1 if value is not None else 0
