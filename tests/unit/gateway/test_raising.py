"""At the door, every outcome that is no value is an exception of its own kind."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard import Policy, Retry, StopReason, tool
from agentguard.domain.calls import Refused
from agentguard.domain.operations import Finish
from agentguard.errors import (
    AmbiguousCall,
    CallRefused,
    ConfigurationError,
    InvalidOutput,
    RetriesExhausted,
    ToolRaised,
    ToolTimedOut,
)
from agentguard.gateway.raising import refusal
from tests.battery.scene import Broken, Scene


def _bodies(how: str) -> Any:
    if how == "silent":
        return object()
    if how == "slow":
        raise TimeoutError("its own")
    raise OSError(how)


@pytest.mark.parametrize(
    ("settings", "how", "kind"),
    [
        ({}, "broken", ToolRaised),
        ({"retry": Retry(attempts=2, wait_s=0, jitter_s=0)}, "broken", RetriesExhausted),
        ({}, "silent", InvalidOutput),
    ],
)
def test_a_failure_is_raised_as_what_it_is(scene: Scene, settings: dict[str, Any], how: str, kind: Any) -> None:
    @tool(name="body", effect="read", **settings)
    def body(how: str) -> Any:
        return _bodies(how)

    run = scene.run(scene.gateway(Policy(allow={"body"}), tools=[body]))
    with pytest.raises(kind) as caught:
        scene.hand.do(run, "call", "body", {"how": how})
    assert caught.value.__cause__ is not None
    assert "broken" not in caught.value.for_model


def test_a_tool_that_takes_too_long_is_raised_as_that(scene: Scene) -> None:
    import threading

    go = threading.Event()

    @tool(name="slow", effect="read", timeout=0.05)
    def slow() -> str:
        go.wait(20)
        return "late"

    run = scene.run(scene.gateway(Policy(allow={"slow"}), tools=[slow]))
    with pytest.raises(ToolTimedOut):
        scene.hand.do(run, "call", "slow")
    go.set()


def test_a_call_that_is_lost_is_raised_as_that(scene: Scene) -> None:
    store = Broken(scene.store(), Finish)
    run = scene.run(scene.gateway(store=store))
    with pytest.raises(AmbiguousCall) as caught:
        scene.hand.do(run, "call", "pay", {"amount": 5}, call_id="c1")
    assert caught.value.call.call_id == "c1"
    assert "resolve" in caught.value.for_people


def test_a_refusal_without_a_class_of_its_own_is_a_refusal() -> None:
    error = refusal(Refused(StopReason.CONCURRENCY, None, "busy", True, "It is busy.", "c1", "AG626"))
    assert type(error) is CallRefused
    assert (error.reason, error.retryable, error.for_model, error.for_people) == (
        StopReason.CONCURRENCY,
        True,
        "busy",
        "It is busy.",
    )


def test_an_async_function_is_governed_in_its_own_colour(plain: Scene) -> None:
    @tool(name="send", effect="irreversible")
    async def send(to: str) -> str:
        return f"sent {to}"

    gateway = plain.gateway(Policy(allow={"send"}), tools=[send])

    async def main() -> Any:
        async with gateway.run(agent="bot"):
            return await send("ann"), await gateway.acall("send", {"to": "bob"})

    assert plain.hand.runner.run(main()) == ("sent ann", "sent bob")


def test_warnings_are_a_list(plain: Scene) -> None:
    with pytest.raises(ConfigurationError):
        plain.run(plain.gateway()).complete(5, warnings="slow")
