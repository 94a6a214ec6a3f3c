"""A small shop behind a gateway, and the three model interfaces behind one face, sync and async."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import anthropic
import openai

from agentguard import Budget, CallContext, Policy, ToolGateway, tool
from agentguard.adapters import anthropic as claude
from agentguard.adapters import openai as gpt
from agentguard.domain.approvals import ApproverIdentity
from agentguard.testing.model_server import ModelServer

BO = ApproverIdentity("bo", ("support-lead",))


class Shop:
    """Tools that write down what they did, and a gateway in front of them."""

    def __init__(self, policy: Policy | None = None, extra: Any = (), **settings: Any) -> None:
        self.ran: list[Any] = []
        self.lock = threading.Lock()

        def note(what: Any) -> None:
            with self.lock:
                self.ran.append(what)

        @tool(name="orders.get", effect="read")
        def get_order(order_id: str) -> dict[str, str]:
            note(("get", order_id))
            return {"order": order_id}

        @tool(name="refunds.create")
        def refund(order_id: str, amount: int) -> str:
            note(("refund", order_id, amount))
            return f"refunded {amount}"

        @tool(name="orders.delete")
        def delete_order(order_id: str) -> str:
            note(("delete", order_id))
            return "deleted"

        @tool(name="vault.open")
        def open_vault() -> str:
            note("vault")
            return "open"

        @tool(name="orders.break", effect="read")
        def break_order(order_id: str) -> str:
            note(("break", order_id))
            raise RuntimeError("secret words of the tool")

        @tool(name="calls.show", effect="read")
        def show_call(call: CallContext) -> str:
            return call.call_id

        self.gateway = ToolGateway(
            [get_order, refund, delete_order, open_vault, break_order, show_call, *extra],
            policy
            or Policy(
                allow={"orders.get", "orders.break", "calls.show"}, require_approval={"refunds.create"}, name="shop"
            ),
            **settings,
        )

    def run(self, **settings: Any) -> Any:
        return self.gateway.run(agent="support", **settings)


DENIED = Policy.from_string(
    """
version: 1
name: shop
rules:
  - {id: reads, allow: [orders.get]}
  - id: own-orders
    allow: orders.delete
    when: {args: {order_id: {const: mine}}}
"""
)
"""Orders can be read; only one can be deleted, so that the tool is visible and most of its calls are denied."""


class Talk:
    """One model interface in one colour."""

    def __init__(self, api: str, colour: str) -> None:
        self.api = api
        self.colour = colour
        self.awaits = colour == "async"
        self.module: Any = claude if api == "messages" else gpt
        self._clients: list[Any] = []
        self._runner: asyncio.Runner | None = None

    def close(self) -> None:
        """Close what was made, in the loop it was made in."""
        for client in self._clients:
            closing = client.close()
            if self.awaits:
                self.wait(closing)
        self._clients.clear()
        if self._runner is not None:
            self._runner.close()

    def __repr__(self) -> str:
        return f"{self.api}-{self.colour}"

    def client(self, server: ModelServer, **settings: Any) -> Any:
        given = {"api_key": "x", "max_retries": 0, **settings}
        made: Any
        if self.api == "messages":
            kind = anthropic.AsyncAnthropic if self.awaits else anthropic.Anthropic
            made = kind(base_url=server.url, **given)
        else:
            other = openai.AsyncOpenAI if self.awaits else openai.OpenAI
            made = other(base_url=server.openai_url, **given)
        self._clients.append(made)
        return made

    def wait(self, made: Any) -> Any:
        """The value, or what the coroutine gives."""
        if not self.awaits:
            return made
        if self._runner is None:
            self._runner = asyncio.Runner()

        async def finish() -> Any:
            return await made

        return self._runner.run(finish())

    def prompt(self, messages: Any = "go", **settings: Any) -> dict[str, Any]:
        """Keyword arguments of a loop."""
        given = {"model": "m", **settings}
        if self.api == "messages":
            return {"max_tokens": 20, "messages": messages, **given}
        return {"input" if self.api == "responses" else "messages": messages, **given}

    def loop(self, client: Any, run: Any, messages: Any = "go", **settings: Any) -> Any:
        call = self.module.arun_loop if self.awaits else self.module.run_loop
        return self.wait(call(client, run, **self.prompt(messages, **settings)))

    def resume(self, client: Any, run: Any, saved: Any, **settings: Any) -> Any:
        call = self.module.aresume_loop if self.awaits else self.module.resume_loop
        return self.wait(call(client, run, saved, **settings))

    def tool_calls(self, run: Any, answer: Any, **settings: Any) -> Any:
        call = self.module.arun_tool_calls if self.awaits else self.module.run_tool_calls
        return self.wait(call(run, answer, **settings))

    def govern(self, client: Any, run: Any, **settings: Any) -> Any:
        return self.module.govern(client, run, **settings)

    def create(self, client: Any, messages: Any = None, **settings: Any) -> Any:
        """A coroutine or an answer: one request."""
        messages = [{"role": "user", "content": "go"}] if messages is None else messages
        given = {"model": "m", **settings}
        if self.api == "messages":
            return client.messages.create(messages=messages, **{"max_tokens": 20, **given})
        if self.api == "responses":
            return client.responses.create(input=messages, **given)
        return client.chat.completions.create(messages=messages, **given)

    def ask(self, client: Any, messages: Any = None, **settings: Any) -> Any:
        return self.wait(self.create(client, messages, **settings))

    def calls(self, *calls: tuple[str, Any, Any]) -> Any:
        """An answer of the model with calls: id, wire name, arguments."""
        if self.api == "messages":
            blocks = [{"type": "tool_use", "id": i, "name": n, "input": a} for i, n, a in calls]
            return {"role": "assistant", "content": blocks, "stop_reason": "tool_use"}
        texts = [(i, n, a if isinstance(a, str) else json.dumps(a)) for i, n, a in calls]
        if self.api == "responses":
            return [{"type": "function_call", "call_id": i, "name": n, "arguments": a} for i, n, a in texts]
        made = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in texts]
        return {"role": "assistant", "content": None, "tool_calls": made}

    def conversation(self, answer: Any, results: list[Any]) -> list[Any]:
        """What is sent after an answer and its results."""
        user = {"role": "user", "content": "go"}
        if self.api == "responses":
            return [user, *answer, *results]
        return [user, {k: v for k, v in answer.items() if k != "stop_reason"}, *results]

    def result(self, call_id: str, content: str) -> list[Any]:
        """A tool result as somebody else might write it."""
        if self.api == "messages":
            return [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": call_id, "content": content}]}]
        if self.api == "responses":
            return [{"type": "function_call_output", "call_id": call_id, "output": content}]
        return [{"role": "tool", "tool_call_id": call_id, "content": content}]

    def results_in(self, body: dict[str, Any]) -> dict[str, str]:
        """Id and text of the tool results of a request."""
        if self.api == "messages":
            blocks = [b for m in body["messages"] if isinstance(m["content"], list) for b in m["content"]]
            return {b["tool_use_id"]: b["content"] for b in blocks if b["type"] == "tool_result"}
        if self.api == "responses":
            return {i["call_id"]: i["output"] for i in body["input"] if i.get("type") == "function_call_output"}
        return {m["tool_call_id"]: m["content"] for m in body["messages"] if m["role"] == "tool"}

    def texts(self, messages: list[Any]) -> list[str]:
        """Texts of tool results, in order."""
        key = "input" if self.api == "responses" else "messages"
        return list(self.results_in({key: messages}).values())

    def tools_in(self, body: dict[str, Any]) -> list[str]:
        """Names, or types, of the tools of a request."""
        return [t.get("function", t).get("name") or t["type"] for t in body.get("tools", [])]

    def tool(self, name: str) -> dict[str, Any]:
        """A tool as somebody wrote it by hand."""
        schema = {"type": "object", "properties": {}}
        if self.api == "messages":
            return {"name": name, "input_schema": schema}
        if self.api == "responses":
            return {"type": "function", "name": name, "parameters": schema}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    def hosted(self) -> dict[str, Any]:
        """A tool that runs at the provider."""
        if self.api == "messages":
            return {"type": "web_search_20250305", "name": "web_search"}
        return {"type": "web_search"}


def error_in(text: str) -> str:
    """Type of the error that a tool result reports."""
    return str(json.loads(text)["error"]["type"])


def small(**limits: Any) -> Budget:
    return Budget(**limits)
