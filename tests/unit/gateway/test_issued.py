"""Whoever continues a conversation elsewhere can ask which tool results the gateway gave."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentguard import ApproverIdentity, Policy, ToolGateway, tool


@tool(name="get", effect="read")
def get(order: int) -> int:
    return order


@tool(name="peek", effect="read", audit=False)
def peek() -> int:
    return 1


@tool(name="pay")
def pay(amount: int) -> int:
    return amount


@tool(name="fail", effect="read")
def fail() -> None:
    raise ValueError("no")


@pytest.fixture(params=["memory:", "sqlite:///{folder}/issued.db"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> ToolGateway:
    return ToolGateway(
        tools=[get, peek, pay, fail],
        policy=Policy(allow={"get", "peek", "fail"}, require_approval={"pay"}),
        store=request.param.format(folder=tmp_path),
    )


def test_results_and_refusals_of_the_run_are_known_and_nothing_else(gateway: ToolGateway) -> None:
    with gateway, gateway.run(agent="other") as other, gateway.run(agent="bot") as run:
        other.attempt("get", {"order": 1}, call_id="elsewhere")
        run.attempt("get", {"order": 1}, call_id="done")
        run.attempt("peek", call_id="unaudited")
        run.attempt("fail", call_id="failed")
        run.attempt("get", {"order": "1"}, call_id="invalid")
        run.attempt("nothing", call_id="unknown")
        run.attempt("pay", {"amount": 1}, call_id="waiting")
        asked = ["done", "unaudited", "failed", "invalid", "unknown", "waiting", "elsewhere", "forged"]
        found = gateway.resume(run.run_id).issued(asked)
        assert found == {"done", "unaudited", "failed", "invalid", "unknown"}
        assert asyncio.run(run.aissued(["done", "forged"])) == {"done"}
        assert run.issued([]) == frozenset()


def test_a_call_that_waited_is_known_once_it_is_answered(gateway: ToolGateway) -> None:
    with gateway, gateway.run(agent="bot") as run:
        for name in ("approved", "rejected"):
            run.attempt("pay", {"amount": 1}, call_id=name)
        for request in run.pending():
            if request.call_id == "approved":
                gateway.approvals.approve(request.id, by=ApproverIdentity("ana"))
            else:
                gateway.approvals.reject(request.id, by=ApproverIdentity("ana"))
        assert run.issued(["approved", "rejected"]) == frozenset()
        run.resume_calls()
        assert run.issued(["approved", "rejected"]) == {"approved", "rejected"}
