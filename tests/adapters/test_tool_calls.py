"""The tool calls of one answer: read exactly, run side by side, answered in order."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from agentguard import Policy, ToolGateway, tool
from agentguard.adapters import _wire as wire
from agentguard.adapters import openai as gpt
from agentguard.adapters._executing import THREADS
from agentguard.domain.calls import Ambiguous, Completed, Failed, Refused
from agentguard.domain.decisions import StopReason
from agentguard.errors import ConfigurationError
from tests.adapters.support import Shop, Talk, error_in

Speak = Callable[[str, str], Talk]


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        "7",
        '{"order_id": "A"',
        '{"order_id": "A"} trailing',
        '{"order_id": "A", "order_id": "B"}',
        '{"order_id": NaN}',
        '{"order_id": Infinity}',
        '{"order_id": 1e999}',
        '{"a": ' * 5000 + "1" + "}" * 5000,
        "{'order_id': 'A'}",
        '{"order_id": "A",}',
        " " * (wire.MAX_ARGUMENTS + 1),
    ],
)
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_arguments_that_are_no_exact_json_object_run_nothing(
    speak: Speak, shop: Shop, api: str, arguments: str
) -> None:
    talk = speak(api, "sync")
    with shop.run() as run:
        results = talk.tool_calls(run, talk.calls(("1", "orders_get", arguments)))
    [text] = talk.texts(results.messages)
    assert error_in(text) == "invalid_arguments"
    assert json.loads(text)["error"]["retryable"] is True
    assert shop.ran == []


@pytest.mark.parametrize("arguments", ["", "null", "{", "[]"])
def test_unreadable_arguments_are_not_taken_for_none(speak: Speak, shop: Shop, arguments: str) -> None:
    talk = speak("chat", "sync")
    with shop.run() as run:
        results = talk.tool_calls(run, talk.calls(("1", "calls_show", arguments)))
        assert [error_in(t) for t in talk.texts(results.messages)] == ["invalid_arguments"]
        assert run.report.actions_taken == ()


@pytest.mark.parametrize("given", [None, "text", ["A"], 7])
def test_input_that_is_no_object_runs_nothing(speak: Speak, shop: Shop, given: Any) -> None:
    talk = speak("messages", "sync")
    with shop.run() as run:
        results = talk.tool_calls(run, talk.calls(("1", "orders_get", given)))
    [block] = results.messages[0]["content"]
    assert block["is_error"] is True
    assert error_in(block["content"]) == "invalid_arguments"
    assert shop.ran == []


def test_arguments_of_the_wrong_type_run_nothing(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        results = talk.tool_calls(
            run,
            talk.calls(
                ("1", "orders_get", {"order_id": 1}),
                ("2", "orders_get", {"order": "A"}),
                ("3", "orders_get", {}),
                ("4", "refunds_create", {"order_id": "A", "amount": "5"}),
            ),
        )
    assert [error_in(t) for t in talk.texts(results.messages)] == ["invalid_arguments"] * 4
    assert shop.ran == []


def test_a_call_without_an_id_runs_nothing(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        for missing in ("", None):
            results = talk.tool_calls(run, talk.calls((missing, "orders_get", {"order_id": "A"})))  # type: ignore[arg-type]
            assert [error_in(t) for t in talk.texts(results.messages)] == ["invalid_arguments"]
    assert shop.ran == []


def test_a_call_without_a_name_runs_nothing(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        results = talk.tool_calls(run, talk.calls(("1", "", {})))
    assert [error_in(t) for t in talk.texts(results.messages)] == ["invalid_arguments"]


def test_an_id_nobody_would_send_runs_nothing(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        results = talk.tool_calls(run, talk.calls(("x" * 5000, "orders_get", {"order_id": "A"})))
    assert [error_in(t) for t in talk.texts(results.messages)] == ["internal_error"]
    [outcome] = results.outcomes
    assert isinstance(outcome, Refused)
    assert shop.ran == []


def test_the_same_id_twice_in_one_answer_is_one_call(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        same = ("1", "orders_get", {"order_id": "A"})
        results = talk.tool_calls(run, talk.calls(same, same, ("1", "orders_get", {"order_id": "B"})))
    assert shop.ran == [("get", "A")]
    assert isinstance(results.outcomes[2], Refused)
    assert results.outcomes[2].reason is StopReason.IDEMPOTENCY_CONFLICT


def test_the_same_answer_again_replays_and_runs_nothing(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        answer = talk.calls(("1", "orders_get", {"order_id": "A"}))
        first = talk.tool_calls(run, answer)
        again = talk.tool_calls(run, answer)
    assert first.messages == again.messages
    assert shop.ran == [("get", "A")]


def test_an_answer_without_calls_gives_no_messages(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        results = talk.tool_calls(run, talk.calls())
        assert (results.messages, results.pending, results.stop, results.outcomes) == ([], (), None, ())


def test_a_batch_with_a_call_that_waits_answers_the_others(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        results = talk.tool_calls(
            run,
            talk.calls(
                ("1", "orders_get", {"order_id": "A"}),
                ("2", "refunds_create", {"order_id": "A", "amount": 1}),
                ("3", "vault_open", {}),
            ),
        )
        assert results.stop is StopReason.APPROVAL_PENDING
        assert [request.call_id for request in results.pending] == ["2"]
        texts = talk.texts(results.messages)
        assert texts[0] == '{"order":"A"}'
        assert error_in(texts[1]) == "policy_denied"


@pytest.mark.parametrize("answer", [None, 7, "text", {"x": 1}, {"choices": []}, {"choices": [{}, {}]}, [1]])
def test_what_is_no_answer_is_refused(shop: Shop, answer: Any) -> None:
    for api in ("chat", "messages"):
        module = Talk(api, "sync").module
        with shop.run() as run, pytest.raises(ConfigurationError, match="AG654"):
            module.run_tool_calls(run, answer)


def test_answers_are_read_in_all_their_forms(shop: Shop) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "orders_get", "arguments": '{"order_id": "A"}'}}
    message = {"role": "assistant", "tool_calls": [call]}
    item = {"type": "function_call", "call_id": "2", "name": "orders_get", "arguments": '{"order_id": "A"}'}
    with shop.run() as run:
        forms = [message, {"choices": [{"message": message}]}, {"output": [item]}, [item]]
        found = [gpt.run_tool_calls(run, form).messages[0] for form in forms]
    assert [m.get("tool_call_id") or m.get("call_id") for m in found] == ["1", "1", "2", "2"]


def test_calls_of_other_kinds_are_refused(shop: Shop) -> None:
    message = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "orders_get", "input": "A"}}],
        "function_call": {"name": "orders_get", "arguments": "{}"},
    }
    with shop.run() as run:
        results = gpt.run_tool_calls(run, message)
    assert [error_in(m["content"]) for m in results.messages] == ["invalid_arguments"] * 2
    assert shop.ran == []


@pytest.mark.parametrize("status", ["incomplete", "in_progress", "failed"])
def test_calls_of_a_response_that_is_not_whole_are_refused(shop: Shop, status: str) -> None:
    item = {"type": "function_call", "call_id": "2", "name": "orders_get", "arguments": '{"order_id": "A"}'}
    with shop.run() as run:
        for response in ({"output": [item], "status": status}, [{**item, "status": status}]):
            [message] = gpt.run_tool_calls(run, response).messages
            assert error_in(message["output"]) == "invalid_arguments"
    assert shop.ran == []


# --- side by side ------------------------------------------------------------------------------------------------


def gathering(count: int, **settings: Any) -> tuple[ToolGateway, list[str]]:
    """A gateway with a tool that returns only once ``count`` calls of it run at the same time."""
    barrier = threading.Barrier(count)
    seen: list[str] = []

    @tool(name="meet", effect="read", **settings)
    def meet(who: str) -> str:
        seen.append(who)
        barrier.wait(10)
        return who

    return ToolGateway([meet], Policy(allow={"meet"})), seen


def test_calls_run_at_the_same_time(talk: Talk) -> None:
    gateway, _ = gathering(3)
    with gateway, gateway.run(agent="a") as run:
        answer = talk.calls(*((str(i), "meet", {"who": f"w{i}"}) for i in range(3)))
        results = talk.tool_calls(run, answer)
    assert talk.texts(results.messages) == ["w0", "w1", "w2"]


def test_more_calls_than_threads_are_all_answered(speak: Speak, shop: Shop) -> None:
    talk = speak("chat", "sync")
    count = THREADS * 3
    with shop.run() as run:
        calls = [(str(i), "orders_get", {"order_id": str(i)}) for i in range(count)]
        results = talk.tool_calls(run, talk.calls(*calls))
    assert [json.loads(t)["order"] for t in talk.texts(results.messages)] == [str(i) for i in range(count)]


def test_a_capped_tool_is_not_refused_because_of_its_own_batch(talk: Talk) -> None:
    running = threading.Semaphore(1)

    @tool(name="alone", effect="read", concurrency=1)
    def alone(who: str) -> str:
        assert running.acquire(blocking=False)
        running.release()
        return who

    with ToolGateway([alone], Policy(allow={"alone"})) as gateway, gateway.run(agent="a") as run:
        results = talk.tool_calls(run, talk.calls(*((str(i), "alone", {"who": str(i)}) for i in range(5))))
    assert talk.texts(results.messages) == [str(i) for i in range(5)]


def test_calls_run_one_after_another_on_request(talk: Talk, shop: Shop) -> None:
    with shop.run() as run:
        calls = [(str(i), "orders_get", {"order_id": str(i)}) for i in range(5)]
        talk.tool_calls(run, talk.calls(*calls), parallel=False)
    assert shop.ran == [("get", str(i)) for i in range(5)]


def test_context_variables_reach_tools_in_threads(speak: Speak) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    @tool(name="whoami", effect="read")
    def whoami() -> str:
        return who.get()

    talk = speak("chat", "sync")
    with ToolGateway([whoami], Policy(allow={"whoami"})) as gateway, gateway.run(agent="a") as run:
        token = who.set("bo")
        results = talk.tool_calls(run, talk.calls(("1", "whoami", {}), ("2", "whoami", {})))
        who.reset(token)
    assert talk.texts(results.messages) == ["bo", "bo"]


def test_a_crash_in_the_gateway_is_a_refusal_and_not_another_way_to_run(
    talk: Talk, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    async def acrash(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    with shop.run() as run:
        monkeypatch.setattr(type(run), "attempt", crash)
        monkeypatch.setattr(type(run), "aattempt", acrash)
        calls = talk.calls(("1", "orders_get", {"order_id": "A"}), ("2", "orders_get", {"order_id": "B"}))
        results = talk.tool_calls(run, calls)
    assert [error_in(t) for t in talk.texts(results.messages)] == ["internal_error"] * 2
    assert shop.ran == []


def test_cancelling_a_batch_leaves_nothing_held() -> None:
    started = asyncio.Event()

    @tool(name="slow", effect="read")
    async def slow(who: str) -> str:
        started.set()
        await asyncio.Event().wait()
        return who

    gateway = ToolGateway([slow], Policy(allow={"slow"}))
    answer = Talk("chat", "async").calls(("1", "slow", {"who": "a"}), ("2", "slow", {"who": "b"}))

    async def main() -> Any:
        async with gateway.run(agent="a") as run:
            task = asyncio.create_task(gpt.arun_tool_calls(run, answer))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gateway._ports.settled()
            calls = (await run.areport()).actions_taken
            assert all(call.status != "running" for call in calls)
            assert len(calls) == 2
        await gateway.aclose()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_an_interrupted_batch_waits_for_what_has_begun(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> None:
    def interrupt(run: Any, found: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentguard.adapters._executing.attempt", interrupt)
    talk = Talk("chat", "sync")
    with shop.run() as run, pytest.raises(KeyboardInterrupt):
        talk.tool_calls(run, talk.calls(*((str(i), "orders_get", {"order_id": "A"}) for i in range(20))))


# --- texts for the model ---------------------------------------------------------------------------------------------


def test_results_are_text_or_json() -> None:
    assert wire.result_text("as it is") == "as it is"
    assert wire.result_text({"a": [1, None, True]}) == '{"a":[1,null,true]}'
    assert wire.result_text(None) == "null"


def test_every_outcome_has_a_text() -> None:
    record: Any = None
    failed = wire.answer_to("1", Failed(ValueError("x"), StopReason.TOOL_TIMEOUT, "It took too long."))
    ambiguous = wire.answer_to("1", Ambiguous(record))
    done = wire.answer_to("1", Completed(7))
    assert failed is not None
    assert ambiguous is not None
    assert done == wire.Answer("1", "7", False)
    assert error_in(failed.text) == "tool_timeout"
    assert error_in(ambiguous.text) == "ambiguous"
    assert failed.failed
    assert ambiguous.failed


def test_a_result_without_a_text_form_is_a_failure(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with shop.run() as run:
        monkeypatch.setattr(type(run), "attempt", lambda *_, **__: Completed(object()))
        message = Talk("chat", "sync").calls(("1", "orders_get", {"order_id": "A"}))
        [written] = gpt.run_tool_calls(run, message).messages
    assert error_in(written["content"]) == "invalid_output"


def test_images_do_not_count_as_text() -> None:
    body = {"messages": [{"content": [{"type": "input_image", "image_url": "data:" + "x" * 10_000}]}]}
    assert wire.estimate_tokens(body) < 50
    assert wire.estimate_tokens({}) == 1


def test_texts_of_contents_are_put_together() -> None:
    assert wire.text_of(None) == ""
    assert wire.text_of([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "ab"
    assert wire.text_of([{"type": "image"}]) != wire.text_of([{"type": "audio"}])
    assert wire.text_of({"a": 1}) == '{"a":1}'
