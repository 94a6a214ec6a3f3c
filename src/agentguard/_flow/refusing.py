"""What a refusal says and how it is recorded: to the model a fixed text per reason, to people everything.

What must stay true: a refusal stays a refusal whatever happens while it is written down; what is written down
holds no secret that is in use, and nothing that the host's redactor removes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic_core import from_json, to_json

from agentguard._flow.effects import Flow, Publish
from agentguard._flow.rulebook import House, Job
from agentguard.domain.calls import Refused
from agentguard.domain.decisions import StopReason
from agentguard.domain.events import AuditRecord, Event, Facts
from agentguard.domain.operations import Append
from agentguard.errors import ConfigurationError
from agentguard.naming import check_id

_FOR_MODEL: Mapping[StopReason, str] = {
    StopReason.UNKNOWN_TOOL: "There is no such tool.",
    StopReason.DEFINITION_CHANGED: "This tool has changed and was not reviewed yet. The action was not carried out.",
    StopReason.POLICY_DENIED: "This action is not permitted. It was not carried out.",
    StopReason.APPROVAL_REJECTED: "A person declined this action. It was not carried out; do not try it again.",
    StopReason.APPROVAL_EXPIRED: "Nobody approved this action in time. It was not carried out.",
    StopReason.APPROVAL_PENDING: "This action needs the approval of a person. It has not been carried out yet.",
    StopReason.KILLED: "This activity was stopped by an operator. The action was not carried out.",
    StopReason.RUN_ENDED: "This run has ended. The action was not carried out.",
    StopReason.CIRCUIT_OPEN: "This tool is unavailable at the moment. The action was not carried out.",
    StopReason.CONCURRENCY: "This tool is busy at the moment. The action was not carried out; try again later.",
    StopReason.IDEMPOTENCY_CONFLICT: "Another call with the same id exists. This action was not carried out.",
    StopReason.LOOP_DETECTED: "The same call was made again and again. It was not carried out; do something else.",
    StopReason.STORE_UNAVAILABLE: "The action could not be authorised at the moment. It was not carried out.",
    StopReason.AUDIT_UNAVAILABLE: "The action could not be recorded at the moment. It was not carried out.",
    StopReason.CREDENTIALS_UNAVAILABLE: "The action could not be authenticated. It was not carried out.",
    StopReason.INTERNAL_ERROR: "The action could not be checked. It was not carried out.",
}


def for_model(reason: StopReason) -> str:
    """What a model may read about a refusal when nothing more specific is known."""
    if reason.value.startswith("budget_"):
        return "A budget is used up. The action was not carried out; finish with what you have."
    return _FOR_MODEL.get(reason, "The action was not carried out.")


def refused(
    job: Job, reason: StopReason, detail: str, *, message: str = "", retryable: bool = False, code: str = ""
) -> Refused:
    """Make the refusal of a job."""
    return Refused(reason, job.decision, message or for_model(reason), retryable, detail, job.call_id, code)


def text_of(error: BaseException) -> str:
    """What an exception says, as text that can be written down; its own ``__str__`` may fail."""
    try:
        text = str(error)
    except Exception:
        return "(its text cannot be read)"
    return text.encode("utf-8", "replace").decode()


def name_of(error: BaseException) -> str:
    """The name of an exception's type, short enough for a fact."""
    return type(error).__name__.encode("utf-8", "replace").decode()[:128]


def turn_down(house: House, job: Job, refusal: Refused, *, audited: bool = True) -> Flow[Refused]:
    """Record a refusal in the run's chain and return it. It stays a refusal when recording fails."""
    refusal = replace(refusal, detail=house.clean(refusal.detail))
    if not audited:
        return refusal
    decision = refusal.decision
    context = job.run.context
    facts: Facts = {
        "agent": context.agent,
        "call": job.call_id,
        "code": refusal.code,
        "decision": decision.verdict if decision else None,
        "environment": context.environment,
        "mode": decision.mode if decision else None,
        "policy": decision.policy_digest if decision else None,
        "reason": refusal.reason.value,
        "retryable": refusal.retryable,
        "rule": decision.rule_id if decision else None,
        "tool": _tool_fact(house, job.tool),
        "user": context.user,
    }
    event = Event("call.refused", facts, _proposal(house, job, refusal))
    try:
        appended = yield from Append(context.tenant, context.run_id, event)
    except Exception as error:
        return replace(refusal, detail=f"{refusal.detail} (The refusal could not be recorded: {text_of(error)})")
    job.seq = appended.records[-1].seq
    yield from tell_sinks(house, appended.records)
    return refusal


def _tool_fact(house: House, name: str) -> str:
    """Facts are kept for ever, so a name that a model made up is one only when it is a name."""
    try:
        return name if name in house.plans else house.clean(check_id("tool", name))
    except (ConfigurationError, TypeError):
        return "(not a name)"


def _proposal(house: House, job: Job, refusal: Refused) -> bytes:
    """What was proposed, as far as it can be recorded."""
    if not house.keep_bodies:
        return b""
    given: Any
    try:
        given = from_json(to_json(job.arguments, inf_nan_mode="strings"))
    except Exception as error:  # anything may have been proposed: a set, a lone surrogate, itself
        given = f"[not recorded: {name_of(error)}]"
    try:
        return house.recordable(to_json({"arguments": given, "detail": refusal.detail}))
    except Exception as error:
        return to_json({"arguments": f"[not recorded: {name_of(error)}]"})


def tell_sinks(house: House, records: tuple[AuditRecord, ...]) -> Flow[None]:
    """Hand over records of what cannot be undone any more, or did not happen; the driver counts what is lost."""
    if house.has_sinks and records:
        try:
            yield from Publish(records)
        except Exception:  # a required sink too: there is nothing left to refuse
            return
