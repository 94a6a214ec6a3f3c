"""The wire formats as data, and what is there without the SDKs."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from agentguard import Policy
from agentguard.adapters import _anthropic_wire as claude_wire
from agentguard.adapters import _openai_wire as gpt_wire
from agentguard.adapters._looping import LoopResult
from agentguard.adapters._openai_dialect import CHAT, RESPONSES
from agentguard.adapters._provenance import Given, Provenance, UngovernedToolResult, _ended
from agentguard.adapters._screening import Screen, hosted_tool, kind_of
from agentguard.domain.calls import Failed
from agentguard.domain.decisions import StopReason
from agentguard.errors import CallRefused, RunError
from agentguard.testing.model_server import ModelServer, ScriptedTurn
from tests.adapters.support import Shop, Talk


@pytest.mark.parametrize(
    ("method", "url", "kind"),
    [
        ("post", "/chat/completions", "chat"),
        ("POST", "/chat/completions/", "chat"),
        ("post", "https://host/v1/chat/completions?a=b", "chat"),
        ("post", "/responses", "responses"),
        ("post", "/responses?beta=true", "responses"),
        ("post", "/responses/compact", "compact"),
        ("post", "/completions", "model"),
        ("post", "/embeddings", "model"),
        ("get", "/threads/t", "free"),
        ("delete", "/responses/r", "free"),
        ("post", "/files", "free"),
        ("post", "/vector_stores/v/files", "free"),
        ("post", "https://host/v1/files", "free"),
        ("post", "/conversations", "items"),
        ("post", "/conversations/c/items", "items"),
    ],
)
def test_addresses_of_openai_are_told_apart(method: str, url: str, kind: str) -> None:
    assert gpt_wire.endpoint(method, url) == kind


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/",
        "/threads/t/runs",
        "/batches",
        "/filesystem/run",
        "/files/../threads/t/runs",
        "/files/%2e%2e/threads",
        "/responses/r/cancelled",
        "/conversationsx",
        "/assistants",
        "/evals/v1x/files",
    ],
)
def test_other_addresses_of_openai_are_refused(url: str) -> None:
    with pytest.raises(CallRefused):
        gpt_wire.endpoint("post", url)


def test_addresses_of_anthropic_are_told_apart() -> None:
    known = {
        "/v1/messages": "messages",
        "/v1/messages?beta=true": "messages",
        "/v1/messages/count_tokens": "free",
        "/v1/files": "free",
    }
    assert {url: claude_wire.endpoint("post", url) for url in known} == known
    assert claude_wire.endpoint("get", "/v1/messages/batches/b") == "free"
    for url in ("/v1/messages/batches", "/v1/complete", "/v1/sessions", "/v1/files/../sessions", "/v1/filesx", ""):
        with pytest.raises(CallRefused):
            claude_wire.endpoint("post", url)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("web_search_20250305", "web_search"),
        ("web_search_preview_2025_03_11", "web_search_preview"),
        ("mcp", "mcp"),
        ("bash_20250124", "bash"),
    ],
)
def test_versions_of_hosted_tools_are_left_out(given: str, kind: str) -> None:
    assert kind_of(given) == kind


def test_only_a_plain_allow_lets_a_hosted_tool_run() -> None:
    shop = Shop(Policy(allow={"hosted.web_search"}), extra=[hosted_tool("web_search"), hosted_tool("mcp")])
    with shop.run() as run:
        screen = Screen(run)
        assert screen.hosted("web_search")
        assert screen.hosted("web_search_20250305")
        for kind in ("mcp", "file_search", "Web_Search", "web search", "", None, 7, "x" * 100):
            assert not screen.hosted(kind)


def test_a_hosted_tool_cannot_be_called_here() -> None:
    shop = Shop(Policy(allow={"hosted.web_search"}), extra=[hosted_tool("web_search")])
    with shop.run() as run:
        outcome = run.attempt("hosted.web_search", {"x": 1})
        assert isinstance(outcome, Failed)
        assert "cannot be called here" in str(outcome.error)


def test_client_side_tools_of_anthropic_need_a_governed_tool_of_their_name() -> None:
    shop = Shop(Policy(allow={"orders.get"}))
    tools: list[Any] = [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "bash_20250124", "name": "orders_get"},
        {"type": 7, "name": "orders_get"},
        {"name": "orders_get"},
    ]
    with shop.run() as run:
        body = claude_wire.screened({"tools": tools}, Screen(run))
    assert body["tools"] == [tools[1], tools[3]]


@pytest.mark.parametrize("tools", ["all", [1], {"a": 1}])
def test_tools_that_cannot_be_read_are_refused(tools: Any) -> None:
    with Shop().run() as run:
        for screened in (
            lambda body, screen: gpt_wire.screened("chat", body, screen),
            lambda body, screen: gpt_wire.screened("responses", body, screen),
            claude_wire.screened,
        ):
            with pytest.raises(CallRefused):
                screened({"tools": tools}, Screen(run))


@pytest.mark.parametrize("messages", [None, "x", [1], [{"role": "user", "content": 7}], [{"content": [7]}]])
def test_messages_of_anthropic_that_cannot_be_read_are_refused(messages: Any) -> None:
    with pytest.raises(CallRefused):
        claude_wire.results_in({"messages": messages})


def test_results_of_anthropic_are_found_wherever_they_claim_to_be() -> None:
    blocks = [
        {"type": "tool_result", "tool_use_id": "1", "content": "a"},
        {"type": "mcp_tool_result", "tool_use_id": "2", "content": "b"},
        {"type": "tool_result", "content": "c"},
        {"type": "text", "text": "d"},
    ]
    as_user = claude_wire.results_in({"messages": [{"role": "user", "content": blocks}]})
    as_model = claude_wire.results_in({"messages": [{"role": "assistant", "content": blocks}]})
    assert [r.call_id for r in as_user] == ["1", "2", ""]
    assert [r.call_id for r in as_model] == ["1", ""]


def test_a_request_names_its_model() -> None:
    for body in ({}, {"model": ""}, {"model": 7}):
        with pytest.raises(CallRefused):
            gpt_wire.estimate("chat", body)
        with pytest.raises(CallRefused):
            claude_wire.estimate(body)


def test_estimates_know_limits_and_copies() -> None:
    chat = gpt_wire.estimate("chat", {"model": "m", "max_tokens": 7, "n": 3})
    embedding = gpt_wire.estimate("model", {"model": "m", "input": "x" * 400})
    assert chat.output_tokens == 21
    assert embedding.output_tokens == 0
    assert embedding.input_tokens >= 100
    assert claude_wire.estimate({"model": "m"}).output_tokens == 1


def test_usage_is_read_only_where_it_is_a_number() -> None:
    def answer(**usage: Any) -> Any:
        return SimpleNamespace(usage=SimpleNamespace(**usage))

    assert gpt_wire.usage_of(answer(prompt_tokens=5, completion_tokens=2, total_tokens=7)) == (5, 2)
    assert gpt_wire.usage_of(answer(prompt_tokens=5, completion_tokens=2, total_tokens=20)) == (5, 15)
    assert gpt_wire.usage_of(answer(input_tokens="5", output_tokens=True)) == (None, None)
    assert gpt_wire.usage_of(answer(input_tokens=-5, output_tokens=1)) == (None, 1)
    assert gpt_wire.usage_of(SimpleNamespace()) == (None, None)
    assert claude_wire.usage_of(answer(input_tokens=1, cache_read_input_tokens=2, output_tokens=3)) == (3, 3)
    assert claude_wire.usage_of(answer(output_tokens=3)) == (None, 3)
    assert claude_wire.usage_of(SimpleNamespace()) == (None, None)
    assert claude_wire.usage_of_event(SimpleNamespace(type="ping")) == (None, None)


def test_a_stream_of_chunks_without_an_end_counts_as_cut_off() -> None:
    gathering = CHAT.gathering()
    gathering.add({"choices": [{"delta": {"content": "a", "refusal": None}}]})
    part = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
    gathering.add({"choices": [{"delta": {"tool_calls": [part]}}]})
    answer = gathering.answer()
    [found] = CHAT.taken([], answer)
    assert found.arguments is None
    assert "cut off" in found.problem


def test_a_stream_of_a_response_without_its_end_is_an_error() -> None:
    with pytest.raises(RunError):
        RESPONSES.gathering().answer()


def test_nothing_is_open_in_a_conversation_without_calls() -> None:
    user = {"role": "user", "content": "x"}
    assert CHAT.unanswered([user]) == []
    assert RESPONSES.unanswered([user]) == []
    assert RESPONSES.unanswered([]) == []
    assert claude_wire.MessagesDialect().unanswered([user]) == []
    assert claude_wire.MessagesDialect().unanswered([user, {"role": "assistant", "content": "x"}]) == []


def test_a_paused_answer_is_sent_back_to_go_on(speak: Any, shop: Shop) -> None:
    talk: Talk = speak("messages", "sync")
    with ModelServer([ScriptedTurn("thinking", finish="pause_turn"), "done"]) as server, shop.run() as run:
        result = talk.loop(talk.client(server), run)
    assert (result.text, result.turns) == ("done", 2)
    assert server.bodies[1]["messages"][-1]["role"] == "assistant"


def test_tools_given_by_the_host_are_used_as_they_are(talk: Talk, shop: Shop) -> None:
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run, tools=[talk.tool("orders_get")])
    assert talk.tools_in(server.bodies[0]) == ["orders_get"]


def test_a_run_without_tools_sends_none(talk: Talk) -> None:
    shop = Shop(Policy())
    with ModelServer(["done"]) as server, shop.run() as run:
        talk.loop(talk.client(server), run)
    assert "tools" not in server.bodies[0]


def test_noted_calls_are_taken_once() -> None:
    known = Provenance()
    assert known.take("f", {"a": 1}) is None
    known.note("0", "f", {"a": 1})
    known.note_calls()
    known.note_calls()
    for call_id in ("1", "2", "1"):
        known.note(call_id, "f", {"a": 1})
    assert known.take("f", {"a": 1.0}) is None
    assert known.take("f", None) is None
    assert [known.take("f", {"a": 1}) for _ in range(3)] == ["1", "2", None]


def test_results_sort_into_refused_and_unknown() -> None:
    known = Provenance()
    known.remember("1", "a")
    known.remember("2", None)
    refused, unknown = known.sort([Given("1", "a"), Given("1", "b"), Given("2", "x"), Given("3", "y"), Given("", "")])
    assert refused == ["1", "2", ""]
    assert unknown == [Given("3", "y")]
    with pytest.raises(UngovernedToolResult, match="'3'"):
        known.settle([], unknown, ["3"], {"3"})


def test_a_call_has_an_answer_only_once_it_has_ended() -> None:
    statuses = ("refused", "pending", "running", "succeeded", "failed", "ambiguous")
    calls: Any = [SimpleNamespace(call_id=status, status=status) for status in statuses]
    assert _ended(calls) == {"refused", "succeeded", "failed", "ambiguous"}


def test_a_saved_loop_reads_back_as_it_was() -> None:
    result = LoopResult("stopped", "ü", [{"role": "user", "content": "ü"}], stop_reason=StopReason.KILLED, refused=True)
    assert LoopResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(("module", "package"), [("openai", "openai"), ("anthropic", "anthropic")])
def test_a_missing_sdk_is_named_with_its_pip_line(module: str, package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
try:
    import agentguard.adapters.{module}
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"MissingExtra {package} is not installed; run: pip install 'agentguard[{package}]'\n"
