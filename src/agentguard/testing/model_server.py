"""A scripted model behind a local HTTP server that speaks the wire formats of OpenAI and Anthropic.

Real SDKs talk to it: chat completions, responses and messages, as one answer or as a stream of events. Requests are
recorded. Standard library only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, TypeAlias


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """A tool call the model makes: ``arguments`` as an object, or as text that is sent as it is."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ScriptedTurn:
    """One answer of the model.

    Attributes:
        text: Its words.
        calls: Its tool calls.
        input_tokens: Reported as sent.
        output_tokens: Reported as received.
        usage: Whether usage is reported at all.
        finish: Replaces the reason the answer gives for its end (``length``, ``max_tokens``).
        status: HTTP status; from 400 on an error is answered instead.
        cut: A stream breaks off in the middle.
    """

    text: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    input_tokens: int = 50
    output_tokens: int = 10
    usage: bool = True
    finish: str | None = None
    status: int = 200
    cut: bool = False


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request the server got: ``path``, ``body`` and lower-cased ``headers``."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]


Turn: TypeAlias = "str | ScriptedTurn | Sequence[tuple[str, Mapping[str, Any] | str] | ScriptedCall]"
"""Words, or tool calls as pairs of name and arguments, or a full :class:`ScriptedTurn`."""


def _turn(given: Turn) -> ScriptedTurn:
    if isinstance(given, ScriptedTurn):
        return given
    if isinstance(given, str):
        return ScriptedTurn(given)
    return ScriptedTurn(calls=tuple(c if isinstance(c, ScriptedCall) else ScriptedCall(*c) for c in given))


class ModelServer:
    """The server; use it as a context manager.

    Args:
        turns: Answers in order, the last one repeated; or a function from the number of the request (from 0) and
            its body to an answer.
    """

    def __init__(self, turns: Iterable[Turn] | Callable[[int, dict[str, Any]], Turn]) -> None:
        if callable(turns):
            self._script: Callable[[int, dict[str, Any]], Turn] = turns
        else:
            script = list(turns)
            if not script:
                raise ValueError("A scripted model needs at least one turn.")
            self._script = lambda number, _: script[min(number, len(script) - 1)]
        self.requests: list[RecordedRequest] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL for the Anthropic SDK."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def openai_url(self) -> str:
        """Base URL for the OpenAI SDK."""
        return f"{self.url}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Bodies of the requests so far."""
        return [request.body for request in self.requests]

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, request: RecordedRequest) -> tuple[int, str, bytes, bool]:
        """Status, content type, body and whether it breaks off, for a request."""
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
        turn = _turn(self._script(number, request.body))
        if turn.status >= 400:
            error = {"type": "error", "error": {"type": "scripted", "message": "scripted error"}}
            return turn.status, "application/json", json.dumps(error).encode(), False
        path = request.path.partition("?")[0]
        write = _chat if path.endswith("/chat/completions") else _messages if path.endswith("/messages") else _response
        whole, events = write(turn, number, request.body)
        if not request.body.get("stream"):
            return 200, "application/json", json.dumps(whole).encode(), False
        if turn.cut:
            events = events[: max(1, len(events) // 2)]
        return 200, "text/event-stream", "".join(map(_event, events)).encode(), turn.cut


def _handler(server: ModelServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is printed."""

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, kind, payload, cut = server.answer(RecordedRequest(self.path, body, headers))
            self.send_response(status)
            self.send_header("content-type", kind)
            # A stream that breaks off announces more than it sends.
            self.send_header("content-length", str(len(payload) + (1000 if cut else 0)))
            self.send_header("x-request-id", f"req_{len(server.requests)}")
            self.send_header("request-id", f"req_{len(server.requests)}")
            self.end_headers()
            self.wfile.write(payload)
            if cut:
                self.close_connection = True

    return Handler


def _event(event: Any) -> str:
    if isinstance(event, str):
        return f"data: {event}\n\n"
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n"


def _arguments(call: ScriptedCall) -> str:
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)


def _chat(turn: ScriptedTurn, number: int, body: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{number}_{i}" if call.id is None else call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call)},
            }
            for i, call in enumerate(turn.calls)
        ]
    finish = turn.finish or ("tool_calls" if turn.calls else "stop")
    usage = {
        "prompt_tokens": turn.input_tokens,
        "completion_tokens": turn.output_tokens,
        "total_tokens": turn.input_tokens + turn.output_tokens,
        "prompt_tokens_details": {"cached_tokens": turn.input_tokens // 2},
        "completion_tokens_details": {"reasoning_tokens": turn.output_tokens // 2},
    }
    base = {"id": f"chatcmpl-{number}", "created": 1, "model": body.get("model")}
    whole = {
        **base,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if turn.usage:
        whole["usage"] = usage

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {**base, "object": "chat.completion.chunk", "choices": [choice]}

    events: list[Any] = [chunk({"role": "assistant", "content": ""})]
    middle = len(turn.text) // 2
    events += [chunk({"content": part}) for part in (turn.text[:middle], turn.text[middle:]) if part]
    for i, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        half = len(function["arguments"]) // 2
        events.append(chunk({"tool_calls": [{**call, "index": i, "function": {**function, "arguments": ""}}]}))
        for part in (function["arguments"][:half], function["arguments"][half:]):
            events.append(chunk({"tool_calls": [{"index": i, "function": {"arguments": part}}]}))
    events.append(chunk({}, finish))
    if turn.usage and (body.get("stream_options") or {}).get("include_usage"):
        events.append({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return whole, [*events, "[DONE]"]


def _response(turn: ScriptedTurn, number: int, body: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    output: list[dict[str, Any]] = []
    if turn.text:
        part = {"type": "output_text", "text": turn.text, "annotations": []}
        output.append(
            {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed", "content": [part]}
        )
    output += [
        {
            "type": "function_call",
            "id": f"fc_{number}_{i}",
            "call_id": f"call_{number}_{i}" if call.id is None else call.id,
            "name": call.name,
            "arguments": _arguments(call),
            "status": "completed",
        }
        for i, call in enumerate(turn.calls)
    ]
    usage = {
        "input_tokens": turn.input_tokens,
        "output_tokens": turn.output_tokens,
        "total_tokens": turn.input_tokens + turn.output_tokens,
        "input_tokens_details": {"cached_tokens": turn.input_tokens // 2, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": turn.output_tokens // 2},
    }
    status = "incomplete" if turn.finish else "completed"
    whole = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": body.get("model"),
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": body.get("tools", []),
        "usage": usage if turn.usage else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if turn.finish else None,
        "instructions": None,
        "metadata": {},
        "temperature": 1,
        "top_p": 1,
    }
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[Any] = [{"type": "response.created", "sequence_number": 0, "response": begun}]
    for index, item in enumerate(output):
        for kind in ("added", "done"):
            place = {"sequence_number": len(events), "output_index": index, "item": item}
            events.append({"type": f"response.output_item.{kind}", **place})
    events.append({"type": f"response.{status}", "sequence_number": len(events), "response": whole})
    return whole, events


def _messages(turn: ScriptedTurn, number: int, body: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": turn.text}] if turn.text else []
    content += [
        {
            "type": "tool_use",
            "id": f"toolu_{number}_{i}" if call.id is None else call.id,
            "name": call.name,
            "input": call.arguments,
        }
        for i, call in enumerate(turn.calls)
    ]
    usage = {
        "input_tokens": turn.input_tokens - turn.input_tokens // 2,
        "cache_read_input_tokens": turn.input_tokens // 4,
        "cache_creation_input_tokens": turn.input_tokens // 2 - turn.input_tokens // 4,
        "output_tokens": turn.output_tokens,
    }
    reason = turn.finish or ("tool_use" if turn.calls else "end_turn")
    whole = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model"),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events: list[Any] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(content):
        if block["type"] == "text":
            empty: dict[str, Any] = {"type": "text", "text": ""}
            delta: dict[str, Any] = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            given = block["input"]
            delta = {"type": "input_json_delta", "partial_json": given if isinstance(given, str) else json.dumps(given)}
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    ending = {"stop_reason": reason, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": ending, "usage": {"output_tokens": turn.output_tokens}})
    return whole, [*events, {"type": "message_stop"}]
