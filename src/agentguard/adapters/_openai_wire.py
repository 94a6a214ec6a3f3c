"""OpenAI's chat completions and responses as data: what requests carry, what answers propose and report.

Nothing here imports the SDK. Field names are those of https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from agentguard.adapters._metering import Estimate
from agentguard.adapters._provenance import Given
from agentguard.adapters._screening import Screen, unenforceable
from agentguard.adapters._wire import Answer, Proposal, estimate_tokens, plain, proposal, text_of

Api: TypeAlias = Literal["chat", "responses"]

_CHAT: Final = "/chat/completions"
_RESPONSES: Final = "/responses"
_COMPACT: Final = "/responses/compact"
_PLAIN_MODEL: Final = ("/completions", "/embeddings")
_CONVERSATION: Final = "/conversations"
_FREE: Final = (
    "/audio",
    "/containers",
    "/files",
    "/images",
    "/moderations",
    "/responses/input_tokens",
    "/uploads",
    "/vector_stores",
)


def endpoint(method: str, url: str) -> str:
    """What a request is: ``chat``, ``responses``, ``compact``, ``model`` (no tools), ``items``, or ``free``.

    Raises:
        CallRefused: The request could start a model out of the gateway's sight (assistants, batches, realtime,
            anything unknown).
    """
    path = urlsplit(url).path.rstrip("/")
    if "/." in path or "%" in path:  # another address than it seems
        raise unenforceable(f"{method.upper()} {path!r:.80}")
    if method.upper() in ("GET", "DELETE", "HEAD"):
        return "free"
    for suffix, kind in ((_COMPACT, "compact"), (_CHAT, "chat"), (_RESPONSES, "responses")):
        if path.endswith(suffix):
            return kind
    if path.endswith(_PLAIN_MODEL):
        return "model"
    start = f"/{path.partition('/v1/')[2]}" if "/v1/" in path else path
    if any(start == free or start.startswith(f"{free}/") for free in _FREE):
        return "free"
    if start.startswith("/responses/") and start.endswith("/cancel"):
        return "free"
    if start == _CONVERSATION or start.startswith(f"{_CONVERSATION}/"):
        return "items"
    raise unenforceable(f"{method.upper()} {path!r:.80}")


def results_in(kind: str, body: Mapping[str, Any]) -> list[Given]:
    """The tool results that a request carries.

    Raises:
        CallRefused: A message or an item cannot be read.
    """
    if kind == "chat":
        return [  # results of the old functions have no id
            Given(_text(message.get("tool_call_id")), message.get("content"))
            for message in _entries(body.get("messages"), "messages")
            if message.get("role") in ("tool", "function")
        ]
    items = body.get("items") if kind == "items" else body.get("input")
    if items is None or isinstance(items, str):
        return []
    return [
        Given(_text(item.get("call_id")), item.get("output"))
        for item in _entries(items, "input")
        if str(item.get("type")).endswith("_output") or str(item.get("role")) == "tool"
    ]


def _entries(value: Any, what: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise unenforceable(f"A request whose {what} are not a list of objects")
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def screened(kind: str, body: dict[str, Any], screen: Screen) -> dict[str, Any]:
    """The body with only what the run may use.

    Function tools it may not see and hosted tools the policy does not allow are taken out, and so is a
    ``tool_choice`` that names one of them. Streams of chat completions are told to report usage.

    Raises:
        CallRefused: The request asks for something that would run out of the gateway's sight.
    """
    body = dict(body)
    if kind == "chat":
        for old in ("functions", "function_call"):  # calls of the old form carry no id, so none could be answered
            body.pop(old, None)
        if body.get("web_search_options") is not None and not screen.hosted("web_search"):
            body.pop("web_search_options")
        if body.get("stream"):
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    else:
        if body.get("prompt") is not None and not screen.hosted("prompt"):
            raise unenforceable("A stored prompt, which may bring tools of its own,")
        if body.get("background"):
            raise unenforceable("A response in the background")
        approvals = [i for i in _items(body) if i.get("type") == "mcp_approval_response"]
        if approvals and not screen.hosted("mcp"):
            raise unenforceable("An approval of a tool of a hosted MCP server")
    tools = body.get("tools")
    if tools is None:
        return body
    kept = [entry for entry in _entries(tools, "tools") if _allowed(kind, entry, screen)]
    if not kept:
        for key in ("tools", "tool_choice", "parallel_tool_calls", "max_tool_calls"):
            body.pop(key, None)
        return body
    body["tools"] = kept
    if len(kept) != len(tools) and isinstance(body.get("tool_choice"), Mapping):
        body.pop("tool_choice")
    return body


def _items(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    given = body.get("input")
    return [i for i in given if isinstance(i, Mapping)] if isinstance(given, list) else []


def _allowed(kind: str, entry: Mapping[str, Any], screen: Screen) -> bool:
    if entry.get("type") == "function":
        inner = entry.get("function") if kind == "chat" else entry
        return isinstance(inner, Mapping) and inner.get("name") in screen.names
    return screen.hosted(entry.get("type"), entry)


def estimate(kind: str, body: Mapping[str, Any]) -> Estimate:
    """What a request may use at most, as far as it says so itself.

    Raises:
        CallRefused: It names no model.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise unenforceable("A request that names no model")
    limits = ("max_output_tokens",) if kind in ("responses", "compact") else ("max_completion_tokens", "max_tokens")
    most = next((body[name] for name in limits if isinstance(body.get(name), int)), 1)
    copies = body.get("n")
    most = max(int(most), 1) * (copies if isinstance(copies, int) and copies > 0 else 1)
    return Estimate(model, estimate_tokens(body), 0 if kind == "model" and "input" in body else most)


def usage_of(answer: Any) -> tuple[int | None, int | None]:
    """Tokens sent and received as an answer (or its usage block's owner) reports them; ``None`` where it does not.

    Cached tokens are part of the input and reasoning tokens part of the output in both interfaces. Where the
    total is larger than both together, the difference counts as output.
    """
    usage = getattr(answer, "usage", None)
    if usage is None:
        return None, None
    sent = _count(usage, "prompt_tokens", "input_tokens")
    received = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens")
    if sent is not None and total is not None:
        received = max(received or 0, total - sent)
    return sent, received


def _count(usage: Any, *names: str) -> int | None:
    for name in names:
        value = getattr(usage, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


ENDINGS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Events of a responses stream that carry the response with its usage."""


def usage_of_event(event: Any) -> tuple[int | None, int | None]:
    """The same for one event of a stream, of either interface."""
    return usage_of(event.response if getattr(event, "type", None) in ENDINGS else event)


CUT_OFF: Final = "the model's answer was cut off, so the call may be incomplete"


def chat_proposals(message: Mapping[str, Any], finish: object = None) -> list[Proposal]:
    """The calls of a chat message, in order; ``finish`` is the reason the answer ended, if known."""
    cut = CUT_OFF if finish in ("length", "content_filter") else ""
    found: list[Proposal] = []
    for call in message.get("tool_calls") or ():
        if call.get("type", "function") == "function" and isinstance(call.get("function"), Mapping):
            function = call["function"]
            found.append(proposal(call.get("id"), function.get("name"), function.get("arguments"), problem=cut))
        else:
            found.append(proposal(call.get("id"), "", None, problem=f"a call of type {call.get('type')!r:.40}"))
    if message.get("function_call"):
        found.append(proposal("", "", None, problem="a call of the old form, without an id"))
    return found


def response_proposals(items: Iterable[Mapping[str, Any]], status: object = None) -> list[Proposal]:
    """The calls among the output items of a response, in order."""
    found: list[Proposal] = []
    for item in items:
        if item.get("type") == "function_call":
            whole = status in (None, "completed") and item.get("status") in (None, "completed")
            problem = "" if whole else CUT_OFF
            found.append(proposal(item.get("call_id"), item.get("name"), item.get("arguments"), problem=problem))
    return found


def calls_heard(answer: Any) -> list[Proposal]:
    """The calls of a response, or of an event of its stream that carries whole ones."""
    kind = getattr(answer, "type", None)
    if kind == "response.output_item.done":
        return response_proposals([plain(answer.item)])
    response = answer.response if kind in ENDINGS else answer
    items = getattr(response, "output", None)
    return response_proposals(plain(items)) if isinstance(items, list) else []


def chat_answers(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers as tool messages."""
    return [{"role": "tool", "tool_call_id": a.call_id, "content": a.text} for a in answers]


def response_answers(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers as input items."""
    return [{"type": "function_call_output", "call_id": a.call_id, "output": a.text} for a in answers]


_FROM_PARSING: Final = frozenset({"parsed", "parsed_arguments"})


def echo(value: Any) -> Any:
    """A message or an output item as it goes back to the provider: without what parsing helpers added."""
    dumped = plain(value)
    return _without(dumped)


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without(v) for k, v in value.items() if k not in _FROM_PARSING and v is not None}
    return [_without(item) for item in value] if isinstance(value, list) else value


def gather_chunk(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    """Add one delta of a chat stream to the message it belongs to."""
    for key in ("content", "refusal"):
        if isinstance(delta.get(key), str):
            message[key] = (message.get(key) or "") + delta[key]
    for part in delta.get("tool_calls") or ():
        calls: list[dict[str, Any]] = message.setdefault("tool_calls", [])
        index = part.get("index")
        call = next((c for c in calls if c["index"] == index), None)
        if call is None:
            function: dict[str, Any] = {"name": "", "arguments": ""}
            calls.append({"index": index, "id": "", "type": "function", "function": function})
            call = calls[-1]
        call["id"] = part.get("id") or call["id"]
        call["type"] = part.get("type") or call["type"]
        added = part.get("function") or {}
        call["function"]["name"] += added.get("name") or ""
        call["function"]["arguments"] += added.get("arguments") or ""


def gathered(message: dict[str, Any]) -> dict[str, Any]:
    """The message once the stream has ended."""
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
    return message


def shown_text(content: Any) -> str:
    """The words of an answer for a person."""
    return text_of(content)
