"""Every mistake ends in a load error with its place, or in a refusal with a reason; the tool never runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard.domain.calls import Completed, Refused, Suspended
from agentguard.errors import AgentGuardError, CallRefused, ConfigurationError, PolicyError
from tests.battery.mistakes import MISTAKES, Mistake
from tests.battery.scene import Scene


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["blocking", "awaiting"])
def scene(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(kind, request.param, tmp_path)
    yield made
    made.close()


def _word(error: AgentGuardError) -> str:
    """The word for an error, after a look at what it teaches."""
    assert str(error)
    if isinstance(error, PolicyError):
        assert error.findings, "a load error without a finding teaches nothing"
        for finding in error.findings:
            assert finding.message
            assert finding.file, finding
            missing = "no such file" in str(finding).lower() or not Path(finding.file).is_file()
            assert missing or (finding.line > 0 and finding.column > 0), finding
        return "file " + " ".join(sorted({finding.code for finding in error.findings}))
    if isinstance(error, CallRefused):
        assert error.for_people
        assert error.for_model
        return error.reason.value
    return "ConfigurationError" if isinstance(error, ConfigurationError) else type(error).__name__


def _what_stopped(mistake: Mistake, scene: Scene) -> str:
    """The word for what stopped a mistake; ``ran`` when nothing did."""
    try:
        outcome = mistake.make(scene)
    except AgentGuardError as error:
        return _word(error)
    if isinstance(outcome, Refused):
        assert outcome.detail, "people must be told why"
        assert 0 < len(outcome.message) <= 500, "the model must be told something"
        return outcome.reason.value
    if isinstance(outcome, Suspended):
        return "suspended"
    return f"ran: {outcome!r}"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_stopped_and_the_tool_does_not_run(mistake: Mistake, scene: Scene) -> None:
    stopped = _what_stopped(mistake, scene)
    assert scene.ran == []
    if mistake.stopped_by.startswith("file "):
        wanted = mistake.stopped_by.split()
        assert stopped in wanted[2:] or (stopped.startswith("file ") and wanted[1] in stopped), stopped
    else:
        assert stopped in mistake.stopped_by.split(), stopped


def test_without_a_mistake_the_tool_runs(scene: Scene) -> None:
    outcome = scene.attempt(scene.gateway(), {"amount": 100})
    assert isinstance(outcome, Completed)
    assert scene.ran == [("pay", 100, "shop", None)]


def test_the_file_without_a_mistake_loads_and_the_tool_runs(scene: Scene) -> None:
    from tests.battery.scene import RULES

    text = RULES + "budgets: {max_tool_calls: 5, per_tool: {pay: 5}}\nloops: {max_repeats: 3}\nstore: 'memory:'\n"
    assert isinstance(scene.attempt(scene.load(text)), Completed)
    assert len(scene.ran) == 1


def test_every_mistake_has_a_name_of_its_own_and_there_are_enough() -> None:
    names = [mistake.name for mistake in MISTAKES]
    assert len(set(names)) == len(names)
    assert len(names) >= 40


def test_a_check_that_cannot_fail_would_be_found_out(scene: Scene) -> None:
    planted = Mistake("planted", "policy_denied", lambda s: s.attempt(s.gateway()))
    assert _what_stopped(planted, scene).startswith("ran")
    assert scene.ran
