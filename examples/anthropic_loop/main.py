"""An existing loop on the Anthropic SDK, with two lines changed: the client is governed, and the calls go through the gateway."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anthropic import Anthropic

from agentguard import Budget, Policy, ToolGateway, tool
from agentguard.adapters.anthropic import govern, run_tool_calls

MODEL = os.environ.get("ANTHROPIC_MODEL", "claude-sonnet-5")

POLICY = Policy.from_string("""
version: 1
rules:
  - {id: look, allow: [notes.list, notes.read]}
  - {id: private, deny: notes.read, when: {args: {name: {pattern: "^private/"}}}, message: Private notes stay private.}
""")


@tool(name="notes.list", effect="read", risk="low")
def list_notes() -> list[str]:
    """Names of all notes."""
    return ["shopping", "private/diary"]


@tool(name="notes.read", effect="read", risk="low")
def read_note(name: str) -> str:
    """Text of a note."""
    return f"text of {name}"


@tool(name="notes.delete", effect="irreversible", risk="high")
def delete_note(name: str) -> str:
    """Delete a note."""
    return f"deleted {name}"


@contextmanager
def model() -> Iterator[Anthropic]:
    """The client: of the endpoint in the environment, or of a scripted model on a local port."""
    if os.environ.get("ANTHROPIC_API_KEY") and os.environ.get("ANTHROPIC_BASE_URL"):
        yield Anthropic()
        return
    from agentguard.testing.model_server import ModelServer

    script = [
        [("notes_list", {})],
        [("notes_read", {"name": "shopping"}), ("notes_read", {"name": "private/diary"})],
        "The shopping list is ready; I may not read the diary.",
    ]
    with ModelServer(script) as server:
        yield Anthropic(base_url=server.url, api_key="none", max_retries=0)


def main() -> None:
    """Ask, run the tool calls, ask again."""
    gateway = ToolGateway([list_notes, read_note, delete_note], POLICY)
    with model() as plain, gateway, gateway.run(agent="notes", budget=Budget(max_steps=20)) as run:
        client = govern(plain, run)  # counts every model call, hides tools, refuses forged results
        tools: Any = gateway.visible(run).to_anthropic()
        messages: list[Any] = [{"role": "user", "content": "Read me my notes."}]
        while True:
            answer = client.messages.create(model=MODEL, max_tokens=1000, tools=tools, messages=messages)
            messages.append({"role": "assistant", "content": answer.content})
            results = run_tool_calls(run, answer)  # through the gateway, in parallel
            for outcome in results.outcomes:
                print(type(outcome).__name__, getattr(outcome, "value", None) or getattr(outcome, "message", ""))
            if not results.messages:
                break
            messages += results.messages
        words = "".join(block.text for block in answer.content if block.type == "text")
        print("answer:", words)
        run.complete({"answer": words})
        print(f"{run.usage.steps} steps, {run.usage.tool_calls} tool calls, {run.usage.tokens} tokens")


if __name__ == "__main__":
    main()
