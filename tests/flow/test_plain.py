"""A plain tool takes fewer steps to its body; what becomes of its calls is what becomes of all others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agentguard import tool
from agentguard._flow.effects import Interrupted, NotStarted, TimedOut
from agentguard._flow.rulebook import House
from agentguard.domain.calls import Completed
from tests.flow.playing import World, call, house
from tests.naming import shown as shown_id


@tool(effect="read")
def do(x: int = 0) -> int:
    return x


@tool(effect="irreversible")
def pay(x: int = 0) -> int:
    return x


def roundabout(at: House) -> House:
    """The same house, where no tool counts as plain."""
    at.plans = {name: replace(plan, plain=False) for name, plan in at.plans.items()}
    return at


def told(at: House, name: str, **answers: Any) -> tuple[list[str], str]:
    """What was asked of the world, and what came of it."""
    world = World(**answers)
    try:
        outcome = call(at, world, name)
    except BaseException as stop:
        return world.names, f"{type(stop).__name__} {getattr(world.asked[-1], 'status', '')}"
    finish = world.asked[-1]
    said = [getattr(finish, field, None) for field in ("status", "amounts", "outcome", "event", "more", "labels")]
    return world.names, f"{type(outcome).__name__} {getattr(outcome, 'reason', '')} {outcome!r} {said}"


ENDS = [
    7,
    "not a number",
    RuntimeError("broken"),
    TimedOut(1.0, abandoned=True),
    NotStarted("no worker"),
    Interrupted(NotStarted("no worker")),
    Interrupted(None),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("name", ["do", "pay"])
@pytest.mark.parametrize("end", ENDS, ids=shown_id)
def test_both_ways_to_a_body_end_alike(name: str, end: Any) -> None:
    straight = told(house(do, pay), name, Invoke=end)
    assert straight == told(roundabout(house(do, pay)), name, Invoke=end)
    assert straight[0][:2] == ["Begin", "Invoke"]


def test_what_a_tool_asks_for_makes_it_less_than_plain() -> None:
    plans = house(do, do.tool.with_spec(name="timed", timeout_s=1.0)).plans
    assert [plan.plain for plan in plans.values()] == [True, False]


def test_a_plain_tool_is_called_straight() -> None:
    assert isinstance(call(house(do)), Completed)
