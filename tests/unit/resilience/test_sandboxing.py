"""Limits that cannot be honoured refuse the call."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard.domain.decisions import NO_OBLIGATIONS, Obligations
from agentguard.domain.plans import Sandbox, ToolSpec
from agentguard.resilience.sandboxing import refuse


def spec(sandbox: Sandbox | None = None) -> ToolSpec:
    return ToolSpec("code.run", "Run code.", {"type": "object"}, sandbox=sandbox)


@pytest.mark.parametrize("sandbox", [None, Sandbox()])
def test_a_call_without_limits_may_run(sandbox: Sandbox | None) -> None:
    assert refuse(spec(sandbox), NO_OBLIGATIONS) is None


@pytest.mark.parametrize(
    ("sandbox", "name"),
    [
        (Sandbox(cpu_s=0.0), "cpu_s (tool)"),
        (Sandbox(memory_bytes=0), "memory_bytes (tool)"),
        (Sandbox(network="none"), "network: none (tool)"),
    ],
)
def test_each_limit_of_the_tool_refuses(sandbox: Sandbox, name: str) -> None:
    reason = refuse(spec(sandbox), NO_OBLIGATIONS)
    assert reason is not None
    assert reason.startswith("code.run")
    assert name in reason


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"cpu": 0.0}, "cpu (policy)"),
        ({"memory_bytes": 0}, "memory (policy)"),
        ({"network": "none"}, "network: none (policy)"),
    ],
)
def test_each_limit_of_the_policy_refuses(limits: dict[str, Any], name: str) -> None:
    assert name in str(refuse(spec(), Obligations(**limits)))


def test_a_network_setting_that_is_not_host_refuses() -> None:
    odd: Any = "lan"
    assert refuse(spec(Sandbox(network=odd)), NO_OBLIGATIONS) is not None


def test_other_obligations_are_none_of_its_business() -> None:
    assert refuse(spec(), Obligations(timeout_s=1.0, messages=("x",))) is None
