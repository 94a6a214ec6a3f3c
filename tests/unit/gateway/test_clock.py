"""One clock for a gateway and the store it opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentguard import Policy, Refused, StopReason, Suspended, ToolGateway, tool
from agentguard.testing import FakeClock

FILE = """
version: 1
store: "{url}"
rules:
  - require_approval: pay
"""


@tool(name="pay")
def pay(amount: int) -> int:
    return amount


@pytest.mark.parametrize("url", ["memory:", "sqlite:///{folder}/clock.db"])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_request_expires_when_the_clock_of_the_gateway_says_so(url: str, from_file: bool, tmp_path: Path) -> None:
    clock = FakeClock()
    url = url.format(folder=tmp_path)
    if from_file:
        gateway = ToolGateway.from_string(FILE.format(url=url), tools=[pay], clock=clock)
    else:
        gateway = ToolGateway(tools=[pay], policy=Policy(require_approval={"pay"}), store=url, clock=clock)
    with gateway, gateway.run(agent="bot") as run:
        assert isinstance(run.attempt("pay", {"amount": 1}, call_id="c1"), Suspended)
        clock.advance(24 * 3600)
        outcome = run.attempt("pay", {"amount": 1}, call_id="c1")
    assert isinstance(outcome, Refused)
    assert outcome.reason is StopReason.APPROVAL_EXPIRED
