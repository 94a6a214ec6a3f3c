"""What type checkers must see through the decorators and the doors. Checked, never run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any, assert_never, assert_type

from agentguard import (
    Ambiguous,
    ApproverIdentity,
    Budget,
    Completed,
    Decision,
    Failed,
    Outcome,
    Policy,
    Refused,
    Run,
    RunContext,
    RunReport,
    StopReason,
    Suspended,
    ToolGateway,
    ToolRegistry,
    ToolSpec,
    tool,
)


@tool
def bare(order_id: str, limit: int = 10) -> dict[str, int]:
    """A tool without settings."""
    return {order_id: limit}


@tool(name="orders.get", permissions=["orders:read"], effect="read", risk="low", timeout="5s")
def settled(order_id: str) -> list[str]:
    """A tool with settings."""
    return [order_id]


@tool(name="email.send", effect="irreversible", risk="high", cost_usd="0.001", owner="comms")
async def colour(to: str, *, subject: str) -> bool:
    """A coroutine function."""
    return bool(to and subject)


class Shop:
    """A class with a tool for a method."""

    @tool(name="shop.price", effect="pure", inline=True)
    def price(self, sku: str) -> Decimal:
        """A method."""
        return Decimal(len(sku))


def signatures_survive(shop: Shop) -> None:
    """Arguments and results are those of the function."""
    assert_type(bare("A-17"), dict[str, int])
    assert_type(bare(order_id="A-17", limit=3), dict[str, int])
    assert_type(settled("A-17"), list[str])
    assert_type(shop.price("S"), Decimal)
    bare(17)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bare()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    settled("A-17", 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(settled.spec, ToolSpec)
    assert_type(settled.ungoverned("A-17"), list[str])


async def coroutines_survive() -> None:
    """A coroutine function stays one."""
    assert_type(await colour("a@example.com", subject="s"), bool)
    function: Callable[..., Coroutine[Any, Any, bool]] = colour
    del function
    await colour("a@example.com")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def doors(gateway: ToolGateway, context: RunContext) -> None:
    """The blocking side."""
    with gateway.run(agent="a", tenant="t", budget=Budget(max_tool_calls=3, max_cost_usd="0.50")) as run:
        assert_type(run, Run)
        assert_type(run.attempt("orders.get", {"order_id": "A-17"}), Outcome)
        assert_type(run.run_id, str)
        run.complete({"answer": "yes"})
    assert_type(run.report, RunReport)
    assert_type(run.report.stop_reason, StopReason | None)
    assert_type(gateway.decide("orders.get", {"order_id": "A-17"}, context), Decision)
    assert_type(gateway.visible(context), ToolRegistry)


async def async_doors(gateway: ToolGateway) -> None:
    """The same in the other colour."""
    async with gateway.run(agent="a") as run:
        assert_type(run, Run)
        assert_type(await run.aattempt("orders.get", {"order_id": "A-17"}), Outcome)
    await gateway.aclose()


def outcomes_are_closed(outcome: Outcome) -> str:
    """A match over the five kinds is complete."""
    match outcome:
        case Completed():
            return str(outcome.replayed)
        case Refused():
            return outcome.reason.value
        case Suspended():
            return outcome.request.id
        case Failed():
            return str(outcome.error)
        case Ambiguous():
            return outcome.call.call_id
        case _:
            assert_never(outcome)


def parts(gateway: ToolGateway) -> None:
    """The parts of a gateway that people use."""
    policy = Policy(allow={"orders.get"}, require_approval={"email.send"})
    assert_type(policy.digest, str)
    registry = ToolRegistry.of(settled, colour)
    assert_type(registry.with_tool(bare), ToolRegistry)
    gateway.approvals.approve("ap_1", by=ApproverIdentity("ana", ("finance",)))
    Budget(max_cost_usd=0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
