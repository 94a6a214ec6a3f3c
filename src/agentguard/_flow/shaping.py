"""What leaves the gateway: results and errors as the caller, the store and the record get them.

What must stay true: a result passes through here whichever way it comes (fresh, replayed, found by a probe, late),
so that no way leads around redaction; what cannot be cleaned is withheld.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from agentguard._flow.refusing import name_of, text_of
from agentguard._flow.rulebook import House
from agentguard.domain.decisions import Decision, StopReason
from agentguard.policy.obliging import REDACTED, redact_output
from agentguard.tools.schema import OutputInvalid

_MAX_CAUSES = 16

_new: Any = tuple.__new__  # a NamedTuple's own constructor takes twice as long


class Shaped(NamedTuple):
    """A result: for the caller, for the store (replays), and for the audit record."""

    value: Any
    stored: str
    recorded: bytes


def shape(house: House, decision: Decision, value: Any, result: bytes) -> Shaped:
    """Redact a result.

    Args:
        house: Knows the secrets and the host's redactor.
        decision: Knows which fields the policy hides.
        value: The result as the tool's type.
        result: The same as JSON.
    """
    redacted = False
    hidden = decision.obligations.redact_output
    if not hidden and not house.secrets and house.redactor is None:
        return _new(Shaped, (value, f'{{"value":{result.decode()}}}', result))  # type: ignore[no-any-return]
    if hidden:
        try:
            value = redact_output(hidden, from_json(result))
            result = to_json(value)
        except Exception:
            value, result = REDACTED, to_json(REDACTED)
        redacted = True
    if house.secrets:
        clean = house.secrets.redact_bytes(result)
        if clean != result:
            value, result, redacted = from_json(clean), clean, True
    stored = ('{"redacted":true,"value":' if redacted else '{"value":') + result.decode() + "}"
    recorded = result
    if house.redactor is not None:
        try:
            recorded = to_json(house.redactor.redact(from_json(result)))
        except Exception as error:  # withheld from the record; the call itself has happened
            recorded = to_json(f"[withheld: the redactor failed with {name_of(error)}]")
    return Shaped(value, stored, recorded)


class Failure(NamedTuple):
    """A failure: the exception for the caller, the text for the model, and what is kept of it."""

    error: Exception
    message: str
    stored: str
    body: bytes


_FOR_MODEL = {
    StopReason.TOOL_TIMEOUT: "The tool did not answer in time.",
    StopReason.INVALID_OUTPUT: "The tool ran, and its answer was not usable.",
}


def failure(house: House, decision: Decision, error: Exception, name: str, reason: StopReason) -> Failure:
    """Remove secrets from an exception and say what the model may read about it."""
    text = error.detail if isinstance(error, OutputInvalid) else text_of(error)
    if isinstance(error, OutputInvalid) and decision.obligations.redact_output:
        text = error.message  # the detail shows what was found, and some of that is to be hidden
        error = OutputInvalid(text)
    if house.secrets:
        clean = house.clean(text)
        if clean != text or _leaks(house, error):
            # The original, its causes and its notes hold a secret; none of them goes on.
            error = (
                OutputInvalid(house.clean(error.message), clean)
                if isinstance(error, OutputInvalid)
                else RuntimeError(f"{name}: {clean}")
            )
        text = clean
    if house.redactor is None:
        recorded = text[:2000]
    else:
        try:
            recorded = str(house.redactor.redact(text[:2000]))
        except Exception as problem:
            recorded = f"[withheld: the redactor failed with {name_of(problem)}]"
    message = _FOR_MODEL.get(reason, "The tool failed.")
    kept = {"message": text[:2000], "model": message, "reason": reason.value, "type": name}
    return Failure(error, message, to_json(kept).decode(), to_json({"error": f"{name}: {recorded}"}))


def _leaks(house: House, error: BaseException) -> bool:
    """Whether an exception, or one that it came from, holds a secret where a traceback would show it."""
    todo: list[BaseException] = [error]
    known: set[int] = set()
    while todo:
        one = todo.pop()
        if id(one) in known:
            continue
        if len(known) >= _MAX_CAUSES:
            return True  # too many to look at
        known.add(id(one))
        try:
            texts = [str(one), repr(one), *map(str, getattr(one, "__notes__", ()))]
        except Exception:
            return True
        if any(house.clean(text) != text for text in texts):
            return True
        todo += [
            next_ for next_ in (one.__cause__, one.__context__, *getattr(one, "exceptions", ())) if next_ is not None
        ]
    return False
