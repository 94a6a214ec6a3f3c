"""Signed messages between agents: believed when they are authentic, fresh, for the reader, and new."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agentguard import ConfigurationError, MessageError, SignedMessage, ToolGateway
from agentguard.runs.messages import is_authentic, signature
from agentguard.stores.memory import MemoryStore
from agentguard.testing import FakeClock

KEY = bytes(range(32))


def gateway(**settings: Any) -> ToolGateway:
    clock = FakeClock()
    return ToolGateway(store=MemoryStore(clock), clock=clock, message_key=KEY, **settings)


def test_a_message_reaches_the_agent_it_is_meant_for() -> None:
    door = gateway()
    with door.run(agent="lead") as lead, lead.spawn(agent="writer") as writer:
        text = lead.messages.sign({"do": "write"}, to="writer").to_json()
        assert writer.messages.verify(text) == {"do": "write"}


@pytest.mark.anyio
async def test_async_agents_verify_alike() -> None:
    door = gateway()
    async with door.run(agent="lead") as lead:
        message = lead.messages.sign(["x"], to="lead")
        assert await lead.messages.averify(message) == ["x"]
        with pytest.raises(MessageError, match="received before"):
            await lead.messages.averify(message)


def test_a_message_counts_once_among_all_that_work_on_the_task() -> None:
    door = gateway()
    with door.run(agent="lead") as lead, lead.spawn(agent="writer") as one, lead.spawn(agent="writer") as two:
        message = lead.messages.sign("go", to="writer")
        assert one.messages.verify(message) == "go"
        with pytest.raises(MessageError, match="received before"):
            two.messages.verify(message)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"},
        {"sender": "boss"},
        {"run_id": "run_other"},
        {"recipient": "other"},
        {"body": {"do": "delete"}},
        {"sent_at": 1},
        {"nonce": "0" * 32},
        {"signature": "0" * 64},
        {"signature": ""},
        {"signature": "\ud800"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_message_with_any_field_changed_is_refused(change: dict[str, Any]) -> None:
    door = gateway()
    with door.run(agent="lead") as lead, lead.spawn(agent="writer") as writer:
        message = replace(lead.messages.sign({"do": "write"}, to="writer"), **change)
        with pytest.raises(MessageError, match="not authentic"):
            writer.messages.verify(message)


def test_a_message_for_somebody_else_is_refused() -> None:
    door = gateway()
    with door.run(agent="lead") as lead, lead.spawn(agent="writer") as writer:
        letter = lead.messages.sign(1, to="reader")
        with pytest.raises(MessageError, match="another agent"):
            writer.messages.verify(letter)


def test_a_message_of_another_tenant_is_refused() -> None:
    door = gateway()
    with door.run(agent="a", tenant="one") as one, door.run(agent="a", tenant="two") as two:
        letter = one.messages.sign(1, to="a")
        with pytest.raises(MessageError, match="another tenant"):
            two.messages.verify(letter)


def test_a_signed_message_that_names_a_run_of_another_agent_is_refused() -> None:
    door = gateway()
    with door.run(agent="lead") as lead:
        message = replace(lead.messages.sign(1, to="lead"), sender="boss", signature="")
        forged = replace(message, signature=signature(KEY, message))
        assert is_authentic(KEY, forged)
        with pytest.raises(MessageError, match="run that it names"):
            lead.messages.verify(forged)


def test_an_old_message_is_refused() -> None:
    clock = FakeClock()
    door = ToolGateway(store=MemoryStore(clock), clock=clock, message_key=KEY)
    with door.run(agent="lead") as lead:
        message = lead.messages.sign(1, to="lead")
        clock.advance(61)
        with pytest.raises(MessageError, match="too old"):
            lead.messages.verify(message, max_age_s=60)
        assert lead.messages.verify(message) == 1


@pytest.mark.parametrize("key", [b"short", "x" * 40, 7])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="AG140"):
        ToolGateway(message_key=key)


def test_without_a_key_nothing_is_signed() -> None:
    with ToolGateway().run(agent="lead") as lead, pytest.raises(ConfigurationError, match="AG140"):
        lead.messages.sign(1, to="lead")


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"body": 1}'])
def test_a_text_that_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(MessageError, match="no message"):
        SignedMessage.from_json(text)


def test_a_field_of_the_wrong_type_is_refused() -> None:
    text = SignedMessage("t", "a", "r", "b", 1, True, "n", "s").to_json()
    with pytest.raises(MessageError, match="sent_at"):
        SignedMessage.from_json(text)


def test_a_body_that_is_not_json_cannot_be_signed() -> None:
    with gateway().run(agent="lead") as lead, pytest.raises(MessageError, match="JSON value"):
        lead.messages.sign({1, 2}, to="lead")


def test_numbers_that_only_look_equal_are_signed_apart() -> None:
    one = SignedMessage("t", "a", "r", "b", 1, 1, "n")
    assert len({signature(KEY, replace(one, body=body)) for body in (1, 1.0, True, "1")}) == 4
