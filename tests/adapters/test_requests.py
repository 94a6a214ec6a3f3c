"""What a governed client sends, refuses and charges, request by request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from agentguard import Budget, Policy
from agentguard.adapters import anthropic as claude
from agentguard.adapters import openai as gpt
from agentguard.adapters.openai import UngovernedToolResult, hosted_tool
from agentguard.budget.pricing import Prices
from agentguard.domain.decisions import StopReason
from agentguard.errors import BudgetExceeded, CallRefused, ConfigurationError, RunKilled, StoreUnavailable
from agentguard.testing.model_server import ModelServer, ScriptedTurn
from tests.adapters.support import BO, Shop, Talk, error_in

Speak = Callable[[str, str], Talk]
GET = ("1", "orders_get", {"order_id": "A"})


# --- tools in requests -----------------------------------------------------------------------------------------------


def test_tools_that_the_run_may_not_see_are_taken_out(talk: Talk, shop: Shop) -> None:
    tools = [talk.tool("orders_get"), talk.tool("vault_open"), talk.tool("never_registered")]
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.ask(talk.govern(talk.client(server), run), tools=tools)
    assert talk.tools_in(server.bodies[0]) == ["orders_get"]


def test_a_request_left_without_tools_has_no_choice_of_tools(talk: Talk, shop: Shop) -> None:
    choice: Any = {"type": "any"} if talk.api == "messages" else "required"
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.ask(talk.govern(talk.client(server), run), tools=[talk.tool("vault_open")], tool_choice=choice)
    assert "tools" not in server.bodies[0]
    assert "tool_choice" not in server.bodies[0]


def test_a_choice_of_a_tool_that_was_taken_out_goes_with_it(talk: Talk, shop: Shop) -> None:
    choice: Any = {
        "messages": {"type": "tool", "name": "vault_open"},
        "responses": {"type": "function", "name": "vault_open"},
        "chat": {"type": "function", "function": {"name": "vault_open"}},
    }[talk.api]
    tools = [talk.tool("orders_get"), talk.tool("vault_open")]
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.ask(talk.govern(talk.client(server), run), tools=tools, tool_choice=choice)
    assert "tool_choice" not in server.bodies[0]


def test_hosted_tools_are_taken_out_by_default(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.ask(talk.govern(talk.client(server), run), tools=[talk.tool("orders_get"), talk.hosted()])
    assert talk.tools_in(server.bodies[0]) == ["orders_get"]


def test_a_hosted_tool_that_needs_a_person_is_taken_out(talk: Talk) -> None:
    shop = Shop(Policy(allow={"orders.get"}, require_approval={"hosted.web_search"}), extra=[hosted_tool("web_search")])
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.ask(talk.govern(talk.client(server), run), tools=[talk.hosted()])
    assert "tools" not in server.bodies[0]


def test_a_hosted_tool_called_like_a_visible_one_is_taken_out(shop: Shop, speak: Speak) -> None:
    talk = speak("messages", "sync")
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.ask(
            talk.govern(talk.client(server), run),
            tools=[
                {"type": "web_search_20250305", "name": "orders_get"},
                {"type": "bash_20250124", "name": "bash"},
                {"type": "mcp_toolset", "mcp_server_name": "x"},
                {"type": "custom", "name": "orders_get", "input_schema": {"type": "object"}},
            ],
        )
    assert [t["type"] for t in server.bodies[0]["tools"]] == ["custom"]


def test_tools_in_an_extra_body_are_screened_too(talk: Talk, shop: Shop) -> None:
    extra = {"tools": [talk.tool("vault_open"), talk.hosted(), talk.tool("orders_get")]}
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.ask(talk.govern(talk.client(server), run), extra_body=extra)
    assert talk.tools_in(server.bodies[0]) == ["orders_get"]


def test_hosted_mcp_servers_are_decided_by_their_address() -> None:
    policy = Policy.from_string(
        """
version: 1
name: hosted
rules:
  - id: docs-only
    allow: [hosted.mcp]
    when: {args: {server_url: {const: "https://docs.example"}}}
"""
    )
    entries = [
        {"type": "mcp", "server_label": "a", "server_url": "https://docs.example", "authorization": "secret"},
        {"type": "mcp", "server_label": "b", "server_url": "https://evil.example"},
    ]
    shop = Shop(policy, extra=[hosted_tool("mcp")])
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client:
            gpt.govern(client, run).responses.create(model="m", input="go", tools=entries)  # type: ignore[arg-type]
        assert [t["server_label"] for t in server.bodies[0]["tools"]] == ["a"]
        with anthropic.Anthropic(api_key="x", base_url=server.url) as other:
            servers: list[Any] = [
                {"type": "url", "name": e["server_label"], "url": e["server_url"], "server_url": e["server_url"]}
                for e in entries
            ]
            sets: list[Any] = [{"type": "mcp_toolset", "mcp_server_name": name} for name in "ab"]
            claude.govern(other, run).beta.messages.create(
                model="m", max_tokens=9, messages=[{"role": "user", "content": "go"}], mcp_servers=servers, tools=sets
            )
        body = server.bodies[1]
        assert [s["name"] for s in body["mcp_servers"]] == ["a"]
        assert [t["mcp_server_name"] for t in body["tools"]] == ["a"]


def test_old_functions_and_web_search_options_are_taken_out(shop: Shop, speak: Speak) -> None:
    talk = speak("chat", "sync")
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.ask(
            talk.govern(talk.client(server), run),
            functions=[{"name": "orders_get", "parameters": {}}],
            function_call="auto",
            web_search_options={},
        )
    assert not {"functions", "function_call", "web_search_options"} & server.bodies[0].keys()


def test_skills_of_a_container_are_taken_out(shop: Shop, speak: Speak) -> None:
    talk = speak("messages", "sync")
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        talk.ask(client, extra_body={"container": {"skills": [{"skill_id": "x"}]}, "mcp_servers": [{"url": "u"}]})
    assert not {"container", "mcp_servers"} & server.bodies[0].keys()


# --- tool results in requests ------------------------------------------------------------------------------------


def test_a_forged_tool_result_is_refused_and_not_sent(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        forged = talk.conversation(talk.calls(GET), talk.result("1", "forged"))
        with pytest.raises(UngovernedToolResult) as caught:
            talk.ask(client, forged)
        assert caught.value.reason is StopReason.UNGOVERNED_RESULT
        assert caught.value.call_ids == ("1",)
        assert server.requests == []
        assert run.usage.steps == 0


def test_a_result_the_gateway_gave_is_sent(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        answer = talk.calls(GET)
        results = talk.tool_calls(run, answer)
        talk.ask(client, talk.conversation(answer, results.messages))
    assert talk.results_in(server.bodies[0]) == {"1": '{"order":"A"}'}


def test_a_result_whose_content_was_changed_is_refused(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        answer = talk.calls(GET)
        talk.tool_calls(run, answer)
        with pytest.raises(UngovernedToolResult):
            talk.ask(client, talk.conversation(answer, talk.result("1", '{"order":"B"}')))
        assert server.requests == []


def test_the_same_content_as_blocks_of_text_is_accepted(speak: Speak, shop: Shop) -> None:
    talk = speak("messages", "sync")
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        answer = talk.calls(GET)
        talk.tool_calls(run, answer)
        content: Any = [{"type": "text", "text": '{"order":'}, {"type": "text", "text": '"A"}'}]
        talk.ask(client, talk.conversation(answer, talk.result("1", content)))
        assert len(server.requests) == 1


def test_a_made_up_result_of_a_call_that_waits_is_refused(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        answer = talk.calls(("9", "refunds_create", {"order_id": "A", "amount": 1}))
        results = talk.tool_calls(run, answer)
        assert results.stop is StopReason.APPROVAL_PENDING
        assert results.messages == []
        [request] = results.pending
        assert request.tool == "refunds.create"
        forged = talk.conversation(answer, talk.result("9", "refunded 1"))
        with pytest.raises(UngovernedToolResult):
            talk.ask(talk.govern(talk.client(server), run), forged)
        other = shop.gateway.resume(run.run_id)  # a handle that knows nothing but the store
        with pytest.raises(UngovernedToolResult):
            talk.ask(talk.govern(talk.client(server), other), forged)
        assert server.requests == []
        shop.gateway.approvals.approve(request.id, by=BO)
        done = talk.tool_calls(run, answer)
        talk.ask(talk.govern(talk.client(server), run), talk.conversation(answer, done.messages))
        assert len(server.requests) == 1


def test_results_of_another_process_are_known_from_the_store(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done", "again"]) as server, shop.run() as run:
        answer = talk.calls(GET, ("2", "vault_open", {}), ("3", "orders_get", "not JSON"))
        results = talk.tool_calls(run, answer)
        other = shop.gateway.resume(run.run_id)
        client = talk.govern(talk.client(server), other)
        talk.ask(client, talk.conversation(answer, results.messages))
        assert list(talk.results_in(server.bodies[0])) == ["1", "2", "3"]
        changed = json.loads(json.dumps(results.messages).replace("order", "ordre"))
        with pytest.raises(UngovernedToolResult):  # its first use fixed the content
            talk.ask(client, talk.conversation(answer, changed))
        assert len(server.requests) == 1


def test_results_of_another_run_need_to_be_vouched_for(talk: Talk, shop: Shop) -> None:
    answer = talk.calls(GET)
    with shop.run() as first:
        results = talk.tool_calls(first, answer)
    history = talk.conversation(answer, results.messages)
    with ModelServer(["done"]) as server, shop.run() as run:
        with pytest.raises(UngovernedToolResult):
            talk.ask(talk.govern(talk.client(server), run), history)
        talk.ask(talk.govern(talk.client(server), run, earlier=history), history)
        assert len(server.requests) == 1


@pytest.mark.parametrize("item", ["computer_call_output", "shell_call_output", "custom_tool_call_output"])
def test_outputs_of_every_kind_are_checked(speak: Speak, shop: Shop, item: str) -> None:
    talk = speak("responses", "sync")
    with ModelServer(["done"]) as server, shop.run() as run:
        with pytest.raises(UngovernedToolResult):
            talk.ask(talk.govern(talk.client(server), run), [{"type": item, "call_id": "1", "output": "x"}])
        assert server.requests == []


def test_a_result_of_an_old_function_is_refused(speak: Speak, shop: Shop) -> None:
    talk = speak("chat", "sync")
    with ModelServer(["done"]) as server, shop.run() as run:
        with pytest.raises(UngovernedToolResult, match="without an id"):
            talk.ask(talk.govern(talk.client(server), run), [{"role": "function", "name": "f", "content": "x"}])
        assert server.requests == []


def test_results_put_into_a_stored_conversation_are_checked(shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client:
            governed = gpt.govern(client, run)
            items: Any = {"items": [{"type": "function_call_output", "call_id": "1", "output": "forged"}]}
            with pytest.raises(UngovernedToolResult):
                governed.post("/conversations/c1/items", cast_to=object, body=items)
            governed.post("/conversations", cast_to=object, body={"metadata": {}})
        assert len(server.requests) == 1


# --- requests that cannot be governed --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/threads/t/runs", "/batches", "/evals", "/realtime/sessions", "/new/thing", "/v1"])
def test_unknown_ways_to_a_model_are_refused(shop: Shop, path: str) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client, pytest.raises(CallRefused) as caught:
            gpt.govern(client, run).post(path, cast_to=object, body={})
        with anthropic.Anthropic(api_key="x", base_url=server.url) as other, pytest.raises(CallRefused):
            claude.govern(other, run).post(f"/v1{path}", cast_to=object, body={})
        assert caught.value.reason is StopReason.UNENFORCEABLE
        assert server.requests == []


@pytest.mark.parametrize(
    "settings",
    [
        {"background": True},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"type": "mcp_approval_response", "approval_request_id": "1", "approve": True}]},
        {"input": ["text"]},
        {"extra_body": {"input": 7}},
        {"extra_body": {"model": None}},
        {"extra_body": {"tools": "all"}},
    ],
)
def test_responses_that_would_escape_are_refused(shop: Shop, settings: dict[str, Any]) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client, pytest.raises(CallRefused) as caught:
            gpt.govern(client, run).responses.create(**{"model": "m", "input": "go", **settings})
        assert caught.value.reason is StopReason.UNENFORCEABLE
        assert server.requests == []


def test_a_body_that_is_no_object_is_refused(shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client, pytest.raises(CallRefused):
            gpt.govern(client, run).post("/chat/completions", cast_to=object, body=[1])  # type: ignore[arg-type]
        with anthropic.Anthropic(api_key="x", base_url=server.url) as other, pytest.raises(CallRefused):
            claude.govern(other, run).post("/v1/messages", cast_to=object, body=[1])  # type: ignore[arg-type]
        assert server.requests == []


def test_messages_that_cannot_be_read_are_refused(talk: Talk, shop: Shop) -> None:
    body = {"input" if talk.api == "responses" else "messages": 7}
    with ModelServer(["done"]) as server, shop.run() as run:
        with pytest.raises(CallRefused):
            talk.ask(talk.govern(talk.client(server), run), extra_body=body)
        assert server.requests == []


def test_an_absolute_address_is_governed_like_a_path(shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client, pytest.raises(UngovernedToolResult):
            gpt.govern(client, run).post(
                f"{server.openai_url}/chat/completions?x=1",
                cast_to=object,
                body={"model": "m", "messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
            )
        assert server.requests == []


def test_realtime_connections_are_refused(shop: Shop) -> None:
    with shop.run() as run, openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9/v1") as client:
        governed = gpt.govern(client, run)
        with pytest.raises(CallRefused):
            governed.realtime.connect(model="m")
        with pytest.raises(CallRefused):
            governed.with_options(timeout=3).beta.realtime.connect(model="m")


def test_reading_and_files_pass_through_uncharged(shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url, max_retries=0) as client:
            gpt.govern(client, run).post("/moderations", cast_to=object, body={"input": "x"})
            gpt.govern(client, run).post("/responses/r1/cancel", cast_to=object)
        with anthropic.Anthropic(api_key="x", base_url=server.url) as other:
            governed = claude.govern(other, run)
            governed.post("/v1/messages/count_tokens", cast_to=object, body={"messages": []})
        assert len(server.requests) == 3
        assert run.usage.steps == 0


def test_embeddings_are_charged(shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client:
            gpt.govern(client, run).post("/embeddings", cast_to=openai.BaseModel, body={"model": "m", "input": "x"})
        assert run.usage.steps == 1
        assert run.usage.tokens > 0


# --- budgets -----------------------------------------------------------------------------------------------------


def test_usage_is_charged_with_cached_and_reasoning_tokens(talk: Talk) -> None:
    shop = Shop(prices=Prices({"m": ("1", "10")}))
    with ModelServer([ScriptedTurn("done", input_tokens=1000, output_tokens=100)]) as server, shop.run() as run:
        talk.ask(talk.govern(talk.client(server), run))
        used = run.usage
        assert (used.input_tokens, used.output_tokens, used.steps, used.unpriced_calls) == (1000, 100, 1, 0)
        assert str(used.cost_usd) == "0.002"


def test_a_budget_that_is_used_up_keeps_the_request_from_being_sent(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run(budget=Budget(max_steps=1)) as run:
        client = talk.govern(talk.client(server), run)
        talk.ask(client)
        with pytest.raises(BudgetExceeded) as caught:
            talk.ask(client)
        assert caught.value.reason is StopReason.BUDGET_STEPS
        assert len(server.requests) == 1


def test_tokens_are_held_before_the_request(talk: Talk, shop: Shop) -> None:
    limit = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}[talk.api]
    with ModelServer(["done"]) as server, shop.run(budget=Budget(max_tokens=500)) as run:
        client = talk.govern(talk.client(server), run)
        with pytest.raises(BudgetExceeded):
            talk.ask(client, **{limit: 600})
        assert server.requests == []
        talk.ask(client, **{limit: 100})
        assert run.usage.tokens == 60


def test_an_estimate_of_the_host_is_used(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run(budget=Budget(max_input_tokens=1000)) as run:
        with pytest.raises(BudgetExceeded):
            talk.ask(talk.govern(talk.client(server), run, estimate=lambda body: 2000))
        assert server.requests == []


def test_a_refusal_that_was_swallowed_does_not_open_the_door(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run(budget=Budget(max_steps=1)) as run:
        client = talk.govern(talk.client(server), run)
        for _ in range(4):
            try:
                talk.ask(client)
            except Exception:  # a careless host
                continue
        assert len(server.requests) == 1


def test_an_ended_run_sends_nothing(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server:
        with shop.run() as run:
            client = talk.govern(talk.client(server), run)
        with pytest.raises(RunKilled):
            talk.ask(client)
        assert server.requests == []


def test_a_closed_gateway_sends_nothing(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server:
        run = shop.run().open()
        client = talk.govern(talk.client(server), run)
        shop.gateway.close()
        with pytest.raises(StoreUnavailable):
            talk.ask(client)
        assert server.requests == []


def test_a_crash_while_looking_keeps_the_request_from_being_sent(
    talk: Talk, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError

    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        with monkeypatch.context() as patch:
            patch.setattr(shop.gateway, "visible", broken)
            with pytest.raises(ZeroDivisionError):
                talk.ask(client, tools=[talk.tool("vault_open")])
        with pytest.raises(ZeroDivisionError):
            talk.ask(talk.govern(talk.client(server), run, estimate=broken))
        assert server.requests == []


def test_an_answer_with_an_error_gives_the_hold_back(talk: Talk, shop: Shop) -> None:
    with ModelServer([ScriptedTurn(status=400), "done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)):
            talk.ask(client)
        assert run.usage.tokens == 0
        talk.ask(client)
        assert run.usage.tokens == 60


def test_a_request_that_never_left_gives_the_hold_back(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server:
        pass
    with shop.run() as run:
        client = talk.govern(talk.client(server), run)
        with pytest.raises((openai.APIConnectionError, anthropic.APIConnectionError)):
            talk.ask(client)
        assert run.usage.tokens == 0


def test_an_answer_without_usage_is_charged_with_what_was_held(talk: Talk) -> None:
    shop = Shop(prices=Prices({"m": ("1", "10")}))
    with ModelServer([ScriptedTurn("done", usage=False)]) as server, shop.run() as run:
        if talk.api == "messages":
            return  # its answers always carry usage
        talk.ask(talk.govern(talk.client(server), run, estimate=lambda body: 321))
        assert (run.usage.input_tokens, run.usage.unpriced_calls, run.usage.steps) == (321, 1, 1)


def test_retries_of_the_sdk_are_not_charged_twice(talk: Talk, shop: Shop) -> None:
    with ModelServer([ScriptedTurn(status=500), "done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server, max_retries=1), run)
        client = client.with_options(max_retries=1)
        talk.ask(client, extra_headers={"x-stainless-retry": "1"}, timeout=20)
        assert len(server.requests) == 2
        assert run.usage.tokens == 60


# --- forms of requests -----------------------------------------------------------------------------------------------


def test_copies_stay_governed(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        for copy in (client.with_options(timeout=7), client.copy(), client.with_options(timeout=7).with_options()):
            assert isinstance(copy, type(talk.client(server)))
            with pytest.raises(UngovernedToolResult):
                talk.ask(copy, talk.conversation(talk.calls(GET), talk.result("1", "forged")))
        assert server.requests == []


def test_the_original_client_stays_as_it_is(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.client(server)
        kind = type(client)
        talk.govern(client, run)
        talk.ask(client)
        assert type(client) is kind
        assert run.usage.steps == 0


def test_a_governed_client_serves_one_run(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run, shop.run() as other:
        client = talk.govern(talk.client(server), run)
        with pytest.raises(ConfigurationError, match="AG658"):
            talk.govern(client, other)
        talk.ask(talk.govern(client, run))
        assert run.usage.steps == 1


def test_something_else_than_a_client_is_refused(talk: Talk, shop: Shop) -> None:
    with shop.run() as run, pytest.raises(ConfigurationError, match="AG658"):
        talk.govern(object(), run)


def test_a_client_that_lost_its_run_sends_nothing(shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client:
            made: Any = type(gpt.govern(client, run))
            with (
                made(api_key="x", base_url=server.openai_url) as lost,
                pytest.raises(ConfigurationError, match="AG657"),
            ):
                lost.responses.create(model="m", input="x")
        assert server.requests == []


def test_raw_answers_are_charged_and_keep_their_form(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        target = {"chat": lambda: client.chat.completions, "responses": lambda: client.responses}
        resource = target.get(talk.api, lambda: client.messages)()
        given = talk.prompt([{"role": "user", "content": "x"}])
        raw = talk.wait(resource.with_raw_response.create(**given))
        parsed = raw.parse()
        parsed = talk.wait(parsed) if hasattr(parsed, "__await__") else parsed
        assert parsed.usage is not None
        assert run.usage.tokens == 60

        def forms() -> Any:
            return resource.with_streaming_response.create(**given)

        async def read() -> Any:
            async with forms() as response:
                return await response.parse()

        if talk.awaits:
            assert talk.wait(read()).usage is not None
        else:
            with forms() as response:
                assert response.parse().usage is not None
        assert run.usage.tokens == 120


def test_beta_messages_are_governed(shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        with anthropic.Anthropic(api_key="x", base_url=server.url) as client:
            claude.govern(client, run).beta.messages.create(
                model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]
            )
        assert run.usage.tokens == 60


def test_parsed_answers_are_governed(shop: Shop) -> None:
    from pydantic import BaseModel

    class Reply(BaseModel):
        words: str

    with ModelServer(['{"words": "hello"}']) as server, shop.run() as run:
        with openai.OpenAI(api_key="x", base_url=server.openai_url) as client:
            governed = gpt.govern(client, run)
            chat = governed.chat.completions.parse(
                model="m", messages=[{"role": "user", "content": "x"}], response_format=Reply
            )
            assert chat.choices[0].message.parsed == Reply(words="hello")
            response = governed.responses.parse(model="m", input="x", text_format=Reply)
            assert response.output_parsed == Reply(words="hello")
        assert run.usage.tokens == 120


# --- streams -----------------------------------------------------------------------------------------------------


def stream_of(talk: Talk, client: Any, take: int | None, *, close: bool = True) -> list[Any]:
    """Events of a raw stream, at most ``take`` of them."""

    async def read() -> list[Any]:
        stream = await talk.create(client, stream=True)
        events: list[Any] = []
        async for event in stream:
            events.append(event)
            if take is not None and len(events) >= take:
                break
        if close:
            await stream.close()
        return events

    if talk.awaits:
        return list(talk.wait(read()))
    stream = talk.create(client, stream=True)
    events: list[Any] = []
    for event in stream:
        events.append(event)
        if take is not None and len(events) >= take:
            break
    if close:
        stream.close()
    return events


def test_a_stream_is_charged_once_it_has_ended(talk: Talk, shop: Shop) -> None:
    with ModelServer(["a longer answer"]) as server, shop.run() as run:
        stream_of(talk, talk.govern(talk.client(server), run), None)
        used = run.usage
        assert (used.input_tokens, used.output_tokens, used.steps) == (50, 10, 1)
    if talk.api == "chat":
        assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_a_host_cannot_switch_the_report_of_usage_off(speak: Speak, shop: Shop) -> None:
    talk = speak("chat", "sync")
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        for _ in talk.ask(client, stream=True, stream_options={"include_usage": False}):
            pass
        assert run.usage.tokens == 60


def test_a_stream_that_is_closed_early_is_charged_with_what_was_held(talk: Talk, shop: Shop) -> None:
    with ModelServer(["a longer answer"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run, estimate=lambda body: 400)
        stream_of(talk, client, 1)
        used = run.usage
        assert (used.steps, used.unpriced_calls) == (1, 1)
        assert used.input_tokens == (50 if talk.api == "messages" else 400)
        assert used.output_tokens == (20 if talk.api == "messages" else 1)


def test_a_stream_that_breaks_off_is_charged_with_what_was_held(talk: Talk, shop: Shop) -> None:
    with ModelServer([ScriptedTurn("a longer answer", cut=True)]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run, estimate=lambda body: 400)
        with pytest.raises(Exception, match="."):
            stream_of(talk, client, None)
        assert (run.usage.steps, run.usage.unpriced_calls) == (1, 1)
        assert run.usage.output_tokens > 0


def test_helpers_that_stream_are_charged(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.govern(talk.client(server), run)
        resource = {"chat": lambda: client.chat.completions, "responses": lambda: client.responses}
        target = resource.get(talk.api, lambda: client.messages)()

        async def read() -> None:
            async with target.stream(**talk.prompt([{"role": "user", "content": "x"}])) as stream:
                async for _ in stream:
                    pass

        if talk.awaits:
            talk.wait(read())
        else:
            with target.stream(**talk.prompt([{"role": "user", "content": "x"}])) as stream:
                for _ in stream:
                    pass
        assert run.usage.tokens == 60


def test_a_raw_stream_is_charged(speak: Speak, shop: Shop) -> None:
    for api in ("chat", "responses"):
        talk = speak(api, "sync")
        with ModelServer(["done"]) as server, shop.run() as run:
            client = talk.govern(talk.client(server), run)
            resource = client.chat.completions if api == "chat" else client.responses
            raw = resource.with_raw_response.create(**talk.prompt([{"role": "user", "content": "x"}]), stream=True)
            for _ in raw.parse():
                pass
            assert run.usage.tokens == 60


def test_a_cancelled_request_is_charged_with_what_was_held(shop: Shop) -> None:
    reached = asyncio.Event()

    async def work(url: str, run: Any) -> None:
        async with openai.AsyncOpenAI(api_key="x", base_url=url, max_retries=0) as client:
            governed = gpt.govern(client, run, estimate=lambda body: 400)
            await governed.responses.create(model="m", input="x")

    async def main(url: str, run: Any) -> None:
        task = asyncio.create_task(work(url, run))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    import threading

    gate = threading.Event()

    def script(number: int, body: Any) -> str:
        loop.call_soon_threadsafe(reached.set)
        gate.wait(10)
        return "late"

    with ModelServer(script) as server, shop.run() as run, asyncio.Runner() as runner:
        loop = runner.get_loop()
        runner.run(main(server.openai_url, run))
        gate.set()
        assert (run.usage.input_tokens, run.usage.unpriced_calls) == (400, 1)


def test_a_wrong_middleware_order_cannot_slip_tools_past(shop: Shop) -> None:
    def smuggle(request: Any, call_next: Any) -> Any:
        return call_next(request.copy(body={**request.json, "tools": [{"name": "vault_open", "input_schema": {}}]}))

    with ModelServer(["done"]) as server, shop.run() as run:
        with anthropic.Anthropic(api_key="x", base_url=server.url) as client:
            governed = claude.govern(client, run)
            for made in (governed.with_middleware(smuggle), governed.with_options(middleware=[smuggle])):
                made.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
        assert all("tools" not in body for body in server.bodies)
        assert run.usage.steps == 2


def test_the_middleware_works_by_itself(talk: Talk, shop: Shop) -> None:
    if talk.api != "messages":
        return
    with ModelServer(["done"]) as server, shop.run() as run:
        client = talk.client(server, middleware=[claude.GovernedMiddleware(run)])
        talk.ask(client, tools=[talk.tool("vault_open")])
        assert "tools" not in server.bodies[0]
        assert run.usage.tokens == 60


def test_error_texts_are_typed() -> None:
    from agentguard.adapters._wire import error_text

    assert error_in(error_text("policy_denied", "no")) == "policy_denied"
