"""A whole loop on every interface: run, deny, hide, pause, resume, stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from agentguard import Budget
from agentguard.adapters.openai import hosted_tool
from agentguard.domain.decisions import StopReason
from agentguard.errors import ConfigurationError
from agentguard.policy.policies import Policy
from agentguard.testing.model_server import ModelServer, ScriptedCall, ScriptedTurn
from tests.adapters.support import BO, DENIED, Shop, Talk, error_in

Speak = Callable[[str, str], Talk]
GET = ("orders_get", {"order_id": "A"})
REFUND = ("refunds_create", {"order_id": "A", "amount": 5})


def test_an_allowed_call_runs_and_its_result_reaches_the_model(talk: Talk, shop: Shop) -> None:
    with ModelServer([[GET], "It is on its way."]) as server, shop.run() as run:
        result = talk.loop(talk.client(server), run)
        assert (result.status, result.text, result.turns) == ("completed", "It is on its way.", 2)
        assert result.stop_reason is StopReason.COMPLETED
        assert shop.ran == [("get", "A")]
        assert [json.loads(t) for t in talk.results_in(server.bodies[1]).values()] == [{"order": "A"}]
        assert run.usage.tokens == 120
        assert run.usage.input_tokens == 100


def test_a_denied_call_does_not_run_and_the_model_reads_a_typed_error(talk: Talk) -> None:
    shop = Shop(DENIED)
    with ModelServer([[("orders_delete", {"order_id": "A"})], "I may not."]) as server, shop.run() as run:
        result = talk.loop(talk.client(server), run)
    [text] = talk.results_in(server.bodies[1]).values()
    assert result.status == "completed"
    assert shop.ran == []
    assert error_in(text) == "policy_denied"
    assert json.loads(text)["error"]["retryable"] is False


def test_only_visible_tools_are_shown(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    assert talk.tools_in(server.bodies[0]) == ["calls_show", "orders_break", "orders_get", "refunds_create"]


def test_a_hidden_tool_that_is_called_by_name_is_refused_and_recorded(talk: Talk, shop: Shop) -> None:
    with ModelServer([[("vault_open", {})], "done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    [text] = talk.results_in(server.bodies[1]).values()
    assert error_in(text) == "policy_denied"
    assert shop.ran == []


def test_a_misspelt_tool_is_refused_with_its_reason(talk: Talk, shop: Shop) -> None:
    with ModelServer([[("orders_gte", {"order_id": "A"})], "done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    [text] = talk.results_in(server.bodies[1]).values()
    assert error_in(text) == "unknown_tool"
    assert shop.ran == []


def test_words_of_a_failing_tool_do_not_reach_the_model(talk: Talk, shop: Shop) -> None:
    with ModelServer([[("orders_break", {"order_id": "A"})], "done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    [text] = talk.results_in(server.bodies[1]).values()
    assert error_in(text) == "tool_error"
    assert "secret words" not in text


def test_the_provider_id_is_the_id_of_the_call(talk: Talk, shop: Shop) -> None:
    with ModelServer([[ScriptedCall("calls_show", {}, id="id-7")], "done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    assert talk.results_in(server.bodies[1]) == {"id-7": "id-7"}


def test_parallel_calls_are_answered_in_order(talk: Talk, shop: Shop) -> None:
    calls = [("orders_get", {"order_id": str(i)}) for i in range(6)]
    with ModelServer([calls, "done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    texts = talk.results_in(server.bodies[1]).values()
    assert [json.loads(t)["order"] for t in texts] == [str(i) for i in range(6)]
    assert len(shop.ran) == 6


def test_the_same_works_with_a_stream(talk: Talk, shop: Shop) -> None:
    events: list[Any] = []
    with ModelServer([[GET, REFUND], "done"]) as server, shop.run() as run:
        result = talk.loop(talk.client(server), run, on_event=events.append)
        assert result.status == "waiting"
        shop.gateway.approvals.approve(result.pending[0].id, by=BO)
        result = talk.resume(talk.client(server), run, result, on_event=events.append)
        assert (result.status, result.text) == ("completed", "done")
        assert shop.ran == [("get", "A"), ("refund", "A", 5)]
        assert run.usage.tokens == 120
    assert all(body["stream"] is True for body in server.bodies)
    assert len(events) > 4


def test_a_stream_tells_a_coroutine_function_too(speak: Speak, shop: Shop) -> None:
    events: list[Any] = []

    async def tell(event: Any) -> None:
        events.append(event)

    for api in ("chat", "messages"):
        talk = speak(api, "async")
        with ModelServer(["done"]) as server, shop.run() as run:
            assert talk.loop(talk.client(server), run, on_event=tell).text == "done"
    assert events


def test_a_call_that_needs_a_person_stops_the_loop_before_the_next_request(talk: Talk, shop: Shop) -> None:
    with ModelServer([[GET, REFUND], "done"]) as server, shop.run() as run:
        result = talk.loop(talk.client(server), run)
        assert (result.status, result.stop_reason) == ("waiting", StopReason.APPROVAL_PENDING)
        assert [p.tool for p in result.pending] == ["refunds.create"]
        assert shop.ran == [("get", "A")]
        assert len(server.requests) == 1
        again = talk.resume(talk.client(server), run, result.to_json())
        assert again.status == "waiting"
        assert again.pending == result.pending
        assert len(server.requests) == 1


def test_an_approved_call_runs_once_and_its_siblings_are_not_repeated(talk: Talk, shop: Shop) -> None:
    with ModelServer([[GET, REFUND], "done"]) as server, shop.run() as run:
        saved = talk.loop(talk.client(server), run)
        shop.gateway.approvals.approve(saved.pending[0].id, by=BO)
        result = talk.resume(talk.client(server), run, saved.to_json())
        assert (result.status, result.text) == ("completed", "done")
        assert list(talk.results_in(server.bodies[1]).values()) == ['{"order":"A"}', "refunded 5"]
        talk.resume(talk.client(server), run, saved)
    assert shop.ran == [("get", "A"), ("refund", "A", 5)]


def test_edited_arguments_run_as_edited(talk: Talk, shop: Shop) -> None:
    with ModelServer([[REFUND], "done"]) as server, shop.run() as run:
        saved = talk.loop(talk.client(server), run)
        shop.gateway.approvals.approve(saved.pending[0].id, by=BO, arguments={"order_id": "A", "amount": 2})
        talk.resume(talk.client(server), run, saved)
    assert shop.ran == [("refund", "A", 2)]
    assert list(talk.results_in(server.bodies[1]).values()) == ["refunded 2"]


def test_a_rejection_is_reported_to_the_model(talk: Talk, shop: Shop) -> None:
    with ModelServer([[REFUND], "done"]) as server, shop.run() as run:
        saved = talk.loop(talk.client(server), run)
        shop.gateway.approvals.reject(saved.pending[0].id, by=BO, reason="no")
        result = talk.resume(talk.client(server), run, saved)
    assert result.status == "completed"
    assert [error_in(t) for t in talk.results_in(server.bodies[1]).values()] == ["approval_rejected"]
    assert shop.ran == []


def test_tampered_arguments_in_a_saved_loop_do_not_run(talk: Talk, shop: Shop) -> None:
    with ModelServer([[REFUND], "done"]) as server, shop.run() as run:
        saved = talk.loop(talk.client(server), run)
        shop.gateway.approvals.approve(saved.pending[0].id, by=BO)
        text = saved.to_json().replace('\\"amount\\": 5', '\\"amount\\": 500').replace('"amount": 5', '"amount": 500')
        assert "500" in text
        result = talk.resume(talk.client(server), run, text)
    assert shop.ran == []
    assert result.status in ("completed", "waiting")


def test_an_exhausted_budget_stops_before_the_next_request(talk: Talk, shop: Shop) -> None:
    with ModelServer([[GET], "never"]) as server:
        with shop.run(budget=Budget(max_steps=2)) as run:
            result = talk.loop(talk.client(server), run)
        assert (result.status, result.stop_reason) == ("stopped", StopReason.BUDGET_STEPS)
        assert len(server.requests) == 1
        assert run.report.stop_reason is StopReason.BUDGET_STEPS
        assert run.report.status == "stopped"


def test_a_killed_run_stops(talk: Talk, shop: Shop) -> None:
    with ModelServer([[GET], "never"]) as server:
        with shop.run() as run:
            shop.gateway.switches.kill(run=run.run_id, tenant="default", reason="test", by="ops")
            result = talk.loop(talk.client(server), run)
        assert (result.status, result.stop_reason) == ("stopped", StopReason.KILLED)
        assert server.requests == []


def test_a_run_killed_between_answer_and_calls_stops_without_another_request(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:

        def script(number: int, _: Any) -> Any:
            shop.gateway.switches.kill(run=run.run_id, tenant="default", reason="test", by="ops")
            return [GET]

        with ModelServer(script) as server:
            result = talk.loop(talk.client(server), run)
            assert (result.status, result.stop_reason) == ("stopped", StopReason.KILLED)
            assert len(server.requests) == 1
    assert shop.ran == []


def test_max_turns_ends_the_loop_and_leaves_the_run_alone(talk: Talk, shop: Shop) -> None:
    def script(number: int, _: Any) -> Any:
        return [ScriptedCall("orders_get", {"order_id": str(number)}, id=f"c{number}")]

    with ModelServer(script) as server, shop.run() as run:
        result = talk.loop(talk.client(server), run, max_turns=3)
        assert (result.status, result.turns, len(server.requests)) == ("stopped", 3, 3)
        assert "max_turns=3" in result.detail
        assert run.report.status == "running"


def test_an_answer_that_was_cut_off_runs_nothing(talk: Talk, shop: Shop) -> None:
    finish = "max_tokens" if talk.api == "messages" else "length"
    cut = ScriptedTurn(calls=(ScriptedCall(*GET),), finish=finish)
    with ModelServer([cut, "done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    assert shop.ran == []
    assert [error_in(t) for t in talk.results_in(server.bodies[1]).values()] == ["invalid_arguments"]


def test_hosted_tools_are_left_in_only_when_the_policy_names_them(talk: Talk) -> None:
    for allowed in (set(), {"hosted.web_search"}):
        shop = Shop(Policy(allow={"orders.get", *allowed}), extra=[hosted_tool("web_search")])
        with ModelServer(["done"]) as server, shop.run() as run:
            talk.loop(talk.client(server), run, hosted_tools=[talk.hosted()])
        shown = talk.tools_in(server.bodies[0])
        assert shown == ["orders_get", "web_search"] if allowed else shown == ["orders_get"]


def test_guidance_of_the_policy_reaches_the_model(talk: Talk) -> None:
    policy = Policy.from_string(
        """
version: 1
name: steer
rules:
  - {id: reads, allow: [orders.get], message: Answer in one sentence.}
"""
    )
    shop = Shop(policy)
    with ModelServer([[GET], "done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    [text] = talk.results_in(server.bodies[1]).values()
    assert text == '{"order":"A"}\n\nNote: Answer in one sentence.'


def test_settings_that_cannot_be_kept_are_refused_at_the_start(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with pytest.raises(ConfigurationError, match="AG656"):
            talk.loop(talk.client(server), run, extra_body=object())
        assert server.requests == []


def test_a_saved_loop_of_another_interface_is_refused(speak: Speak, shop: Shop) -> None:
    chat, claude = speak("chat", "sync"), speak("messages", "sync")
    with ModelServer(["done"]) as server, shop.run() as run:
        saved = chat.loop(chat.client(server), run).to_json()
        with pytest.raises(ConfigurationError, match="AG655"):
            claude.resume(claude.client(server), run, saved)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "messages": []}'])
def test_text_that_is_no_saved_loop_is_refused(speak: Speak, shop: Shop, text: str) -> None:
    talk = speak("chat", "sync")
    with ModelServer(["done"]) as server, shop.run() as run, pytest.raises(ConfigurationError, match="AG655"):
        talk.resume(talk.client(server), run, text)


def test_a_completed_loop_is_not_asked_again(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        result = talk.loop(talk.client(server), run)
        assert talk.resume(talk.client(server), run, result.to_json()) == result
        assert len(server.requests) == 1


def test_a_loop_needs_one_kind_of_conversation(speak: Speak, shop: Shop) -> None:
    talk = speak("chat", "sync")
    with ModelServer(["done"]) as server, shop.run() as run, pytest.raises(ConfigurationError, match="AG656"):
        talk.module.run_loop(talk.client(server), run, model="m")


def test_a_tool_budget_lets_the_model_finish_in_words(talk: Talk, shop: Shop) -> None:
    calls = [("orders_get", {"order_id": "A"}), ("orders_get", {"order_id": "B"})]
    with ModelServer([calls, "That is all."]) as server, shop.run(budget=Budget(max_tool_calls=1)) as run:
        result = talk.loop(talk.client(server), run, parallel=False)
    assert (result.status, result.text) == ("completed", "That is all.")
    texts = list(talk.results_in(server.bodies[1]).values())
    assert error_in(texts[1]) == "budget_tool_calls"
    assert shop.ran == [("get", "A")]
