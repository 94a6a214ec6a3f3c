"""Which states a run and a call may move between; everything else is a conflict."""

from __future__ import annotations

from typing import Final

from agentguard.domain.calls import CallStatus
from agentguard.domain.runs import RunStatus

RUN_TRANSITIONS: Final[frozenset[tuple[RunStatus, RunStatus]]] = frozenset(
    {
        ("running", "waiting"),  # the last active call asked for a person
        ("waiting", "running"),  # any further activity
        ("running", "completed"),
        ("running", "failed"),
        ("running", "stopped"),
        ("waiting", "completed"),
        ("waiting", "failed"),
        ("waiting", "stopped"),
    }
)

RUN_ENDED: Final[frozenset[RunStatus]] = frozenset({"completed", "failed", "stopped"})

CALL_TRANSITIONS: Final[frozenset[tuple[CallStatus | None, CallStatus]]] = frozenset(
    {
        (None, "pending"),
        (None, "running"),
        ("refused", "pending"),  # a refusal costs nothing and is not remembered; the call may be proposed again
        ("refused", "running"),
        ("pending", "pending"),  # the request was superseded: policy, definition or arguments changed
        ("pending", "running"),
        ("pending", "refused"),
        ("running", "succeeded"),
        ("running", "failed"),
        ("running", "ambiguous"),
        ("running", "refused"),  # admitted, but the body never started
        ("running", "running"),  # lease lost, and the tool may be repeated
        ("running", "pending"),  # the same, but a person has to agree again
        ("ambiguous", "pending"),
        ("ambiguous", "running"),  # the tool may be repeated, or a probe found that it never happened
        ("ambiguous", "succeeded"),
        ("ambiguous", "failed"),
        ("ambiguous", "refused"),
    }
)


def run_may(before: RunStatus, after: RunStatus) -> bool:
    """Whether a run may move from ``before`` to ``after``."""
    return (before, after) in RUN_TRANSITIONS


def call_may(before: CallStatus | None, after: CallStatus) -> bool:
    """Whether a call may move from ``before`` (``None``: not seen yet) to ``after``."""
    return (before, after) in CALL_TRANSITIONS
