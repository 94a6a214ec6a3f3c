"""What a refusal says: to the model a fixed text per reason, to people everything."""

from __future__ import annotations

from collections.abc import Mapping

from agentguard._flow.rulebook import Job
from agentguard.domain.calls import Refused
from agentguard.domain.decisions import StopReason

_FOR_MODEL: Mapping[StopReason, str] = {
    StopReason.UNKNOWN_TOOL: "There is no such tool.",
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
