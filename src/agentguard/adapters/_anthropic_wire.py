"""Anthropic's messages as data: what requests carry, what answers propose and report.

Nothing here imports the SDK. Field names are those of https://docs.anthropic.com/en/api/messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from agentguard.adapters._metering import Estimate
from agentguard.adapters._provenance import Given
from agentguard.adapters._screening import HOSTED, Screen, kind_of, unenforceable
from agentguard.adapters._wire import Answer, Proposal, estimate_tokens, plain, proposal
from agentguard.errors import ConfigurationError

if TYPE_CHECKING:
    from agentguard.gateway import Run

_FREE: Final = ("/v1/files", "/v1/models", "/v1/skills")
_OURS: Final = frozenset({"bash", "computer", "memory", "text_editor"})
"""Tools that Anthropic defines and the client carries out: they need a governed tool of their name."""


def endpoint(method: str, url: str) -> str:
    """What a request is: ``messages`` or ``free``.

    Raises:
        CallRefused: The request could start a model out of the gateway's sight (batches, sessions, anything
            unknown).
    """
    path = urlsplit(url).path.rstrip("/")
    if "/." in path or "%" in path:  # another address than it seems
        raise unenforceable(f"{method.upper()} {path!r:.80}")
    if method.upper() in ("GET", "DELETE", "HEAD"):
        return "free"
    if path.endswith("/messages"):
        return "messages"
    if path.endswith("/messages/count_tokens") or any(path == p or path.startswith(f"{p}/") for p in _FREE):
        return "free"
    raise unenforceable(f"{method.upper()} {path!r:.80}")


def _blocks(body: Mapping[str, Any]) -> Iterator[tuple[object, Mapping[str, Any]]]:
    """Role and block of every content block of a request.

    Raises:
        CallRefused: A message cannot be read.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise unenforceable("A request whose messages are not a list")
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            continue
        if not isinstance(content, list) or not all(isinstance(block, Mapping) for block in content):
            raise unenforceable("A request with a message that is neither text nor a list of blocks")
        for block in content:
            yield message.get("role"), block


def results_in(body: Mapping[str, Any]) -> list[Given]:
    """The tool results that a request carries.

    Raises:
        CallRefused: A message cannot be read.
    """
    found: list[Given] = []
    for role, block in _blocks(body):
        # What the provider's own tools returned stands in the assistant's messages.
        if block.get("type") == "tool_result" or (role != "assistant" and "tool_use_id" in block):
            call_id = block.get("tool_use_id")
            found.append(Given(call_id if isinstance(call_id, str) else "", block.get("content")))
    return found


def screened(body: dict[str, Any], screen: Screen) -> dict[str, Any]:
    """The body with only what the run may use: visible tools, and hosted tools and servers the policy allows.

    Raises:
        CallRefused: The tools cannot be read.
    """
    body = dict(body)
    servers = body.get("mcp_servers")
    kept_servers = [s for s in servers if isinstance(s, Mapping) and screen.hosted("mcp", s)] if servers else []
    if servers is not None:
        body["mcp_servers"] = kept_servers
        if not kept_servers:
            body.pop("mcp_servers")
    container = body.get("container")
    if isinstance(container, Mapping) and container.get("skills") and not screen.hosted("code_execution"):
        body.pop("container")
    tools = body.get("tools")
    if tools is None:
        return body
    if not isinstance(tools, list) or not all(isinstance(entry, Mapping) for entry in tools):
        raise unenforceable("A request whose tools are not a list of objects")
    reachable = {server.get("name") for server in kept_servers}
    kept = [entry for entry in tools if _allowed(entry, screen, reachable)]
    if not kept:
        body.pop("tools")
        body.pop("tool_choice", None)
        return body
    body["tools"] = kept
    choice = body.get("tool_choice")
    if len(kept) != len(tools) and isinstance(choice, Mapping) and choice.get("type") == "tool":
        body.pop("tool_choice")
    return body


def _allowed(entry: Mapping[str, Any], screen: Screen, reachable: set[Any]) -> bool:
    kind = entry.get("type")
    if kind is None or kind == "custom":
        return entry.get("name") in screen.names
    if not isinstance(kind, str):
        return False
    if kind_of(kind) in _OURS:
        return entry.get("name") in screen.names
    if kind_of(kind) == "mcp_toolset":
        return entry.get("mcp_server_name") in reachable
    return screen.hosted(kind, entry)


def estimate(body: Mapping[str, Any]) -> Estimate:
    """What a request may use at most.

    Raises:
        CallRefused: It names no model.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise unenforceable("A request that names no model")
    most = body.get("max_tokens")
    return Estimate(model, estimate_tokens(body), max(most, 1) if isinstance(most, int) else 1)


_INPUT: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def usage_of(answer: Any) -> tuple[int | None, int | None]:
    """Tokens sent (cached ones included) and received as an answer reports them; ``None`` where it does not."""
    usage = getattr(answer, "usage", None)
    if usage is None:
        return None, None
    return _sent(usage), _count(usage, "output_tokens")


def usage_of_event(event: Any) -> tuple[int | None, int | None]:
    """The same for an event of a stream: its start says what was sent, its end what was received."""
    kind = getattr(event, "type", None)
    if kind == "message_start":
        return usage_of(event.message)[0], None
    if kind == "message_delta":
        return usage_of(event)
    return None, None


def _sent(usage: Any) -> int | None:
    if _count(usage, "input_tokens") is None:
        return None
    return sum(_count(usage, name) or 0 for name in _INPUT)


def _count(usage: Any, name: str) -> int | None:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def proposals_in(content: Sequence[Any], stop_reason: object = None) -> list[Proposal]:
    """The calls among the blocks of an answer, in order.

    Only an answer that ended with ``tool_use`` is whole; what another one proposes may be cut off.
    """
    problem = "" if stop_reason in (None, "tool_use") else f"the answer ended with {stop_reason!r:.40}"
    return [
        proposal(block.get("id"), block.get("name"), _object(block.get("input")), problem=problem)
        for block in content
        if isinstance(block, Mapping) and block.get("type") == "tool_use"
    ]


def _object(value: Any) -> Any:
    return value if isinstance(value, Mapping) else None


def results_of(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers as tool result blocks."""
    return [{"type": "tool_result", "tool_use_id": a.call_id, "content": a.text, "is_error": a.failed} for a in answers]


def message_of(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers as the one user message that the provider wants."""
    return [{"role": "user", "content": results_of(answers)}]


_FROM_HELPERS: Final = frozenset({"parsed", "parsed_output"})


def echo(value: Any) -> Any:
    """An answer as it goes back to the provider: without what helpers of the SDK added."""
    return _without(plain(value))


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: v if k == "input" else _without(v) for k, v in value.items() if k not in _FROM_HELPERS}
    return [_without(item) for item in value] if isinstance(value, list) else value


def read_answer(answer: Any) -> tuple[list[Proposal], Callable[[Sequence[Answer]], list[dict[str, Any]]]]:
    """The calls of an answer in any of its forms, and how their answers are written.

    Raises:
        ConfigurationError: It is no answer of this provider.
    """
    found = plain(answer)
    if isinstance(found, Mapping) and isinstance(found.get("content"), list):
        return proposals_in(found["content"], found.get("stop_reason")), message_of
    if isinstance(found, Mapping) and isinstance(found.get("content"), str):
        return [], message_of
    if isinstance(found, list) and all(isinstance(block, Mapping) for block in found):
        return proposals_in(found), message_of
    raise ConfigurationError(
        f"AG654 {type(answer).__name__} is no answer: pass a message of the model or its content.", code="AG654"
    )


class MessagesDialect:
    """The loop's view of messages."""

    api = "messages"

    def request(self, run: Run, messages: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of ``messages.create``: the tools the run may see now, unless it brings its own."""
        given = dict(settings)
        hosted = list(given.pop("hosted_tools", ()))
        if "tools" not in given:
            seen = run._gateway.visible(run)
            tools = seen.only(n for n in seen.names if not n.startswith(HOSTED)).to_anthropic() + hosted
            if tools:
                given["tools"] = tools
        return {**given, "messages": list(messages)}

    def taken(self, messages: list[dict[str, Any]], answer: Mapping[str, Any]) -> list[Proposal]:
        """Append the model's message; the calls it proposes."""
        content = list(answer.get("content") or ())
        messages.append({"role": "assistant", "content": content})
        return proposals_in(content, answer.get("stop_reason"))

    def paused(self, answer: Mapping[str, Any], /) -> bool:
        """Whether the provider wants the conversation back as it is, to go on."""
        return answer.get("stop_reason") == "pause_turn"

    def unanswered(self, messages: Sequence[Mapping[str, Any]]) -> list[Proposal]:
        """Calls of the last assistant message without a result after it."""
        last = next((i for i in reversed(range(len(messages))) if messages[i].get("role") == "assistant"), None)
        if last is None or not isinstance(messages[last].get("content"), list):
            return []
        done = {r.call_id for r in results_in({"messages": list(messages[last + 1 :])})}
        return [found for found in proposals_in(messages[last]["content"]) if found.call_id not in done]

    def answered(self, messages: list[dict[str, Any]], answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Put results into the one user message after the calls."""
        if messages and _is_results(messages[-1]):
            message = {**messages[-1], "content": [*messages[-1]["content"], *results_of(answers)]}
            messages[-1] = message
        else:
            message = message_of(answers)[0]
            messages.append(message)
        return [message]

    def text(self, answer: Mapping[str, Any]) -> str:
        """The words of the answer."""
        blocks = answer.get("content") or ()
        return "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text")


def _is_results(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return (
        message.get("role") == "user"
        and isinstance(content, list)
        and bool(content)
        and all(isinstance(block, Mapping) and block.get("type") == "tool_result" for block in content)
    )
