"""The SDKs' own tool runners, governed."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any

import anthropic
import openai
import pytest

from agentguard import Policy
from agentguard.adapters import anthropic as claude
from agentguard.adapters import openai as gpt
from agentguard.errors import ApprovalPending, ConfigurationError
from agentguard.testing.model_server import ModelServer
from tests.adapters.support import BO, Shop, error_in

GET = ("orders_get", {"order_id": "A"})
VAULT = ("vault_open", {})
REFUND = ("refunds_create", {"order_id": "A", "amount": 5})
HAS_RUNNER = importlib.util.find_spec("openai.lib.responses_tool_runner") is not None


def results(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [b for m in body["messages"] if isinstance(m["content"], list) for b in m["content"] if "tool_use_id" in b]


def runner_of(client: Any, shop: Shop, run: Any, **settings: Any) -> Any:
    given = {"tools": shop.gateway.visible(run).to_anthropic(), "max_iterations": 5, **settings}
    messages = [{"role": "user", "content": "go"}]
    return client.beta.messages.tool_runner(model="m", max_tokens=20, messages=messages, **given)


@pytest.mark.parametrize("stream", [False, True])
def test_the_anthropic_runner_goes_through_the_gateway(shop: Shop, stream: bool) -> None:
    with ModelServer([[GET, VAULT], "done"]) as server, shop.run() as run:
        with anthropic.Anthropic(api_key="x", base_url=server.url) as client:
            runner = runner_of(claude.govern(client, run), shop, run, stream=stream)
            final = claude.govern_runner(runner, run).until_done()
        assert final.content[0].text == "done"
        assert shop.ran == [("get", "A")]
        done, denied = results(server.bodies[1])
        assert (done["content"], done["is_error"]) == ('{"order":"A"}', False)
        assert error_in(denied["content"]) == "policy_denied"
        assert run.usage.tokens == 120


@pytest.mark.parametrize("stream", [False, True])
def test_the_async_anthropic_runner_goes_through_the_gateway(shop: Shop, stream: bool) -> None:
    async def main(url: str, run: Any) -> None:
        async with anthropic.AsyncAnthropic(api_key="x", base_url=url) as client:
            runner = runner_of(claude.govern(client, run), shop, run, stream=stream)
            final = await claude.govern_runner(runner, run).until_done()
            assert final.content[0].text == "done"

    with ModelServer([[GET, VAULT], "done"]) as server, shop.run() as run:
        asyncio.run(main(server.url, run))
        assert shop.ran == [("get", "A")]
        assert run.usage.tokens == 120


def test_a_tool_with_a_body_of_its_own_is_never_called_by_the_runner(shop: Shop) -> None:
    called: list[str] = []

    @anthropic.beta_tool(name="orders_get")
    def own(order_id: str) -> str:
        """Has a body that nobody governs."""
        called.append(order_id)
        return "ungoverned"

    with ModelServer([[GET], "done"]) as server, shop.run() as run:
        client = anthropic.Anthropic(api_key="x", base_url=server.url)
        runner = runner_of(claude.govern(client, run), shop, run, tools=[own])
        for message in claude.govern_runner(runner, run):
            runner.append_messages(message)  # the trap: it does not keep the tools from running
            runner.generate_tool_call_response()
            break
        client.close()
    assert called == []
    assert shop.ran == [("get", "A")]


def test_an_ungoverned_runner_is_stopped_at_its_next_request(shop: Shop) -> None:
    @anthropic.beta_tool(name="orders_get")
    def own(order_id: str) -> str:
        """Has a body that nobody governs."""
        return "ungoverned"

    with ModelServer([[GET], "done"]) as server, shop.run() as run:
        with anthropic.Anthropic(api_key="x", base_url=server.url) as client:
            runner = runner_of(claude.govern(client, run), shop, run, tools=[own])
            with pytest.raises(claude.UngovernedToolResult):
                runner.until_done()
        assert len(server.requests) == 1


def test_a_call_that_waits_ends_the_anthropic_runner(shop: Shop) -> None:
    with ModelServer([[REFUND], "done"]) as server, shop.run() as run:
        with anthropic.Anthropic(api_key="x", base_url=server.url) as client:
            runner = claude.govern_runner(runner_of(claude.govern(client, run), shop, run), run)
            with pytest.raises(ApprovalPending) as caught:
                runner.until_done()
        assert len(server.requests) == 1
        shop.gateway.approvals.approve(caught.value.request.id, by=BO)
        assert run.resume_calls()[caught.value.request.call_id].value == "refunded 5"


def test_a_runner_of_another_client_is_refused(shop: Shop) -> None:
    with shop.run() as run, shop.run() as other, anthropic.Anthropic(api_key="x") as client:
        for made in (client, claude.govern(client, other)):
            with pytest.raises(ConfigurationError, match="AG659"):
                claude.govern_runner(runner_of(made, shop, run), run)
        with pytest.raises(ConfigurationError, match="AG659"):
            claude.govern_runner(object(), run)

        class NoRunner:
            _client = claude.govern(client, run)

        with pytest.raises(ConfigurationError, match="AG659"):
            claude.govern_runner(NoRunner(), run)


def test_an_eager_runner_is_refused(shop: Shop) -> None:
    with shop.run() as run, anthropic.Anthropic(api_key="x") as client:
        runner = runner_of(claude.govern(client, run), shop, run, stream=True)
        runner._run_tools_eagerly = True
        with pytest.raises(ConfigurationError, match="run_tools_eagerly"):
            claude.govern_runner(runner, run)


if HAS_RUNNER:
    from openai.lib.responses_tool_runner import AsyncResponsesToolRunner, ResponsesToolRunner

    @pytest.mark.parametrize("stream", [False, True])
    def test_the_openai_runner_goes_through_the_gateway(stream: bool) -> None:
        shop = Shop(Policy(allow={"orders.get"}, name="p"))
        with ModelServer([[GET, ("orders_get", {"order_id": 7})], "done"]) as server, shop.run() as run:
            with openai.OpenAI(api_key="x", base_url=server.openai_url) as client:
                runner = ResponsesToolRunner(functions=gpt.registered_functions(run))
                params: Any = {"model": "m", "input": "go"}
                final = runner.run(gpt.govern(client, run), params, max_steps=5, stream=stream)
            assert final.output_text == "done"
            assert shop.ran == [("get", "A")]
            outputs = [i for i in server.bodies[1]["input"] if i.get("type") == "function_call_output"]
            assert outputs[0]["output"] == '{"order":"A"}'
            assert error_in(outputs[1]["output"]) == "invalid_arguments"
            assert run.usage.tokens == 120
            assert [a.call_id for a in run.report.actions_taken] == ["call_0_0"]

    def test_the_async_openai_runner_goes_through_the_gateway(shop: Shop) -> None:
        async def main(url: str, run: Any) -> None:
            async with openai.AsyncOpenAI(api_key="x", base_url=url) as client:
                runner = AsyncResponsesToolRunner(functions=gpt.aregistered_functions(run))
                params: Any = {"model": "m", "input": "go"}
                final = await runner.run(gpt.govern(client, run), params, max_steps=5)
                assert final.output_text == "done"

        with ModelServer([[GET], "done"]) as server, shop.run() as run:
            asyncio.run(main(server.openai_url, run))
            assert shop.ran == [("get", "A")]

    def test_a_call_that_waits_ends_the_openai_runner(shop: Shop) -> None:
        with ModelServer([[REFUND], "done"]) as server, shop.run() as run:
            with openai.OpenAI(api_key="x", base_url=server.openai_url) as client:
                runner = ResponsesToolRunner(functions=gpt.registered_functions(run))
                params: Any = {"model": "m", "input": "go"}
                with pytest.raises(Exception, match=".") as caught:
                    runner.run(gpt.govern(client, run), params, max_steps=5)
            chain: list[Any] = [caught.value, caught.value.__cause__, caught.value.__context__]
            assert any(isinstance(error, ApprovalPending) for error in chain)
            assert len(server.requests) == 1
            assert shop.ran == []

    def test_a_runner_with_an_ungoverned_client_runs_nothing(shop: Shop) -> None:
        with ModelServer([[GET], "done"]) as server, shop.run() as run:
            with openai.OpenAI(api_key="x", base_url=server.openai_url) as client:
                runner = ResponsesToolRunner(functions=gpt.registered_functions(run))
                params: Any = {"model": "m", "input": "go"}
                with pytest.raises(Exception, match=".") as caught:
                    runner.run(client, params, max_steps=5)
            chain: list[Any] = [caught.value, caught.value.__cause__, caught.value.__context__]
            assert "AG659" in " ".join(map(str, chain))
            assert shop.ran == []

else:

    def test_without_the_runner_the_version_is_named(shop: Shop) -> None:
        with shop.run() as run:
            with pytest.raises(ConfigurationError, match="3.31"):
                gpt.registered_functions(run)
            with pytest.raises(ConfigurationError, match="3.31"):
                gpt.aregistered_functions(run)
