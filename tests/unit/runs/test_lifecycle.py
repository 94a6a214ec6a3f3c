"""The tables of transitions: what a run and a call may become."""

from __future__ import annotations

from typing import get_args

import pytest

from agentguard.domain.calls import CallStatus
from agentguard.domain.runs import RunStatus
from agentguard.runs.lifecycle import CALL_TRANSITIONS, RUN_ENDED, RUN_TRANSITIONS, call_may, run_may
from agentguard.runs.report import RunReport

RUNS = get_args(RunStatus)
CALLS = get_args(CallStatus)


@pytest.mark.parametrize("status", sorted(RUN_ENDED))
def test_a_run_that_has_ended_stays_ended(status: RunStatus) -> None:
    assert not any(run_may(status, after) for after in RUNS)


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_what_a_call_has_come_to_is_final(status: CallStatus) -> None:
    assert not any(call_may(status, after) for after in CALLS)


def test_every_state_can_be_reached_and_every_run_can_end() -> None:
    assert {after for _, after in RUN_TRANSITIONS} == set(RUNS)
    assert {after for _, after in CALL_TRANSITIONS} == set(CALLS)
    for status in ("running", "waiting"):
        assert {s for s in RUN_ENDED if run_may(status, s)} == RUN_ENDED  # type: ignore[arg-type]


def test_a_call_is_never_finished_before_it_has_run() -> None:
    for before in (None, "pending", "refused"):
        for after in ("succeeded", "failed", "ambiguous"):
            assert not call_may(before, after)  # type: ignore[arg-type]


def test_a_state_that_is_none_leads_nowhere() -> None:
    assert not run_may("asleep", "running")  # type: ignore[arg-type]
    assert not call_may("asleep", "running")  # type: ignore[arg-type]


def test_a_report_is_a_value() -> None:
    assert RunReport.__dataclass_params__.frozen  # type: ignore[attr-defined]
