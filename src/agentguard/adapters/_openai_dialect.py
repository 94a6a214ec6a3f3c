"""The loop's view of OpenAI's two interfaces: what to send, what came back, what is still open.

What must stay true: only calls after the model's last answer are open, and each is answered once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from agentguard.adapters import _openai_wire as wire
from agentguard.adapters._screening import HOSTED
from agentguard.adapters._wire import Answer, Proposal, plain
from agentguard.errors import ConfigurationError, RunError

if TYPE_CHECKING:
    from agentguard.gateway import Run


class Gathering(Protocol):
    """Puts an answer together from the events of a stream."""

    def add(self, event: Any) -> None:
        """Take the next event."""
        ...

    def answer(self) -> Mapping[str, Any]:
        """The answer, once the stream has ended."""
        ...


def _with_tools(run: Run, api: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a request with the tools that the run may see now, unless it brings its own."""
    given = dict(settings)
    hosted = list(given.pop("hosted_tools", ()))
    if "tools" not in given:
        seen = run._gateway.visible(run)
        tools = seen.only(n for n in seen.names if not n.startswith(HOSTED)).to_openai(api) + hosted
        if tools:
            given["tools"] = tools
    return given


class ChatDialect:
    """Chat completions."""

    api = "chat"

    def request(self, run: Run, messages: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of ``chat.completions.create``."""
        return {**_with_tools(run, "chat", settings), "messages": list(messages)}

    def taken(self, messages: list[dict[str, Any]], answer: Mapping[str, Any]) -> list[Proposal]:
        """Append the message of a chat completion; the calls it proposes."""
        choice = _only_choice(answer)
        message = {"role": "assistant", **choice["message"]}
        messages.append(message)
        return wire.chat_proposals(message, choice.get("finish_reason"))

    def unanswered(self, messages: Sequence[Mapping[str, Any]]) -> list[Proposal]:
        """Calls of the last assistant message without a tool message after it."""
        last = next((i for i in reversed(range(len(messages))) if messages[i].get("role") == "assistant"), None)
        if last is None:
            return []
        done = {m.get("tool_call_id") for m in messages[last + 1 :] if m.get("role") == "tool"}
        return [found for found in wire.chat_proposals(messages[last]) if found.call_id not in done]

    def answered(self, messages: list[dict[str, Any]], answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Append tool messages."""
        written = wire.chat_answers(answers)
        messages.extend(written)
        return written

    def paused(self, _: Mapping[str, Any], /) -> bool:
        """Never: an answer of this interface is whole."""
        return False

    def text(self, answer: Mapping[str, Any]) -> str:
        """The words of the answer, or of its refusal."""
        message = _only_choice(answer)["message"]
        return wire.shown_text(message.get("content") or message.get("refusal"))

    def gathering(self) -> Gathering:
        """Puts a chat completion together from its chunks."""
        return _ChatGathering()


class ResponsesDialect:
    """Responses."""

    api = "responses"

    def request(self, run: Run, messages: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of ``responses.create``."""
        return {**_with_tools(run, "responses", settings), "input": list(messages)}

    def taken(self, messages: list[dict[str, Any]], answer: Mapping[str, Any]) -> list[Proposal]:
        """Append the output items of a response; the calls it proposes."""
        items = list(answer.get("output") or ())
        messages.extend(items)
        return wire.response_proposals(items, answer.get("status"))

    def unanswered(self, messages: Sequence[Mapping[str, Any]]) -> list[Proposal]:
        """Function calls without an output after them, among the items since the last words of a person."""
        users = [i for i, item in enumerate(messages) if item.get("role") in ("user", "system", "developer")]
        recent = messages[users[-1] + 1 :] if users else messages
        done = {item.get("call_id") for item in recent if item.get("type") == "function_call_output"}
        return [found for found in wire.response_proposals(recent) if found.call_id not in done]

    def answered(self, messages: list[dict[str, Any]], answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Append function call outputs."""
        written = wire.response_answers(answers)
        messages.extend(written)
        return written

    def paused(self, _: Mapping[str, Any], /) -> bool:
        """Never: an answer of this interface is whole."""
        return False

    def text(self, answer: Mapping[str, Any]) -> str:
        """The words of the answer, or of its refusal."""
        parts = [p for i in answer.get("output") or () if i.get("type") == "message" for p in i.get("content") or ()]
        return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)

    def gathering(self) -> Gathering:
        """Waits for the event that carries the whole response."""
        return _ResponseGathering()


class _ChatGathering:
    def __init__(self) -> None:
        self._message: dict[str, Any] = {"role": "assistant"}
        self._finish: str | None = None

    def add(self, event: Any) -> None:
        for choice in plain(event).get("choices") or ():
            wire.gather_chunk(self._message, choice.get("delta") or {})
            self._finish = choice.get("finish_reason") or self._finish

    def answer(self) -> Mapping[str, Any]:
        # A stream that never said why it ended may have lost the end of a call.
        return {"choices": [{"message": wire.gathered(self._message), "finish_reason": self._finish or "length"}]}


class _ResponseGathering:
    def __init__(self) -> None:
        self._response: Mapping[str, Any] | None = None

    def add(self, event: Any) -> None:
        if getattr(event, "type", None) in wire.ENDINGS:
            self._response = wire.echo(event.response)

    def answer(self) -> Mapping[str, Any]:
        if self._response is None:
            raise RunError("The stream of the response ended without the response.")
        return self._response


CHAT = ChatDialect()
RESPONSES = ResponsesDialect()
DIALECTS: dict[str, ChatDialect | ResponsesDialect] = {"chat": CHAT, "responses": RESPONSES}


def _only_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0].get("message"), Mapping):
        raise ConfigurationError("AG654 a chat completion with exactly one choice is needed (n=1).", code="AG654")
    choice: Mapping[str, Any] = choices[0]
    return choice


def read_answer(answer: Any) -> tuple[list[Proposal], Callable[[Sequence[Answer]], list[dict[str, Any]]]]:
    """The calls of an answer in any of its forms, and how their answers are written.

    Raises:
        ConfigurationError: It is no answer of this provider.
    """
    found = plain(answer)
    if isinstance(found, Mapping):
        if "choices" in found:
            choice = _only_choice(found)
            return wire.chat_proposals(choice["message"], choice.get("finish_reason")), wire.chat_answers
        if isinstance(found.get("output"), list):
            return wire.response_proposals(found["output"], found.get("status")), wire.response_answers
        if "tool_calls" in found or "role" in found:
            return wire.chat_proposals(found), wire.chat_answers
    if isinstance(found, list) and all(isinstance(item, Mapping) for item in found):
        return wire.response_proposals(found), wire.response_answers
    raise ConfigurationError(
        f"AG654 {type(answer).__name__} is no answer: pass a chat completion, its message, a response or its output.",
        code="AG654",
    )
