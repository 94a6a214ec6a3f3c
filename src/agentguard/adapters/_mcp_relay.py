"""JSON-RPC messages between an MCP client and an MCP server, with the gateway in between.

What must stay true: a ``tools/call`` of the client reaches the server only as a request of our own, sent while the
gateway carries the call out; an answer reaches the client only if it belongs to a request that was passed on; methods
that are not known here are refused. Everything else passes as it came, whatever version of the protocol it speaks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn

from agentguard.adapters._mcp_calls import CALL_ID, AnswerLost, Door
from agentguard.canonical import sha256

log = logging.getLogger("agentguard")

SESSION: Final = frozenset({"initialize", "ping", "server/discover", "logging/setLevel", "subscriptions/listen"})
"""Requests that every session makes."""

CONTENT: Final = frozenset(
    {"resources/list", "resources/templates/list", "resources/read", "resources/subscribe", "resources/unsubscribe"}
    | {"prompts/list", "prompts/get", "completion/complete"}
)
"""Requests for what a server offers besides tools."""

NOTIFICATIONS: Final = frozenset(
    {"notifications/initialized", "notifications/progress", "notifications/roots/list_changed"}
)
_CHANGED: Final = "notifications/tools/list_changed"
_MAX_PAGES: Final = 1000

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
"""Error codes of JSON-RPC 2.0, section 5.1."""

Send = Callable[[dict[str, Any]], Awaitable[None]]


class ServerError(Exception):
    """The server answered a request with an error."""

    def __init__(self, error: Any) -> None:
        told = dict(error) if isinstance(error, Mapping) else {"code": INTERNAL_ERROR, "message": "no error object"}
        super().__init__(str(told.get("message", ""))[:500])
        self.error = told


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def read_message(line: bytes) -> dict[str, Any]:
    """Read one message.

    Raises:
        ValueError: It is no JSON object, or one that two readers could read differently.
    """
    try:
        value = json.loads(line, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is not one object (batches are not supported)")
    return value


def write_message(message: Mapping[str, Any]) -> bytes:
    """One message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _key(request_id: Any) -> str | None:
    """An id as a key: ``1`` and ``"1"`` differ; ``None`` for what is no id."""
    if isinstance(request_id, bool) or not isinstance(request_id, (str, int)):
        return None
    return json.dumps(request_id)


class Relay:
    """Passes messages on, and brings tool calls to a door.

    Args:
        to_client: Sends a message to the client.
        to_server: Sends a message to the server.
        open_door: Makes the door out of the server's tools, once they are known.
        only_tools: Refuse resources, prompts and completions.
    """

    def __init__(
        self,
        to_client: Send,
        to_server: Send,
        open_door: Callable[[list[Any]], Awaitable[Door]],
        *,
        only_tools: bool = False,
    ) -> None:
        self._to_client = to_client
        self._to_server = to_server
        self._open_door = open_door
        self._passed = SESSION if only_tools else SESSION | CONTENT
        self._only_tools = only_tools
        self._door: Door | None = None
        self._stale = False
        self._opening = asyncio.Lock()
        self._prefix = f"agentguard-{secrets.token_hex(8)}-"
        self._sent = 0
        self._methods: dict[str, str] = {}
        self._asked_of_client: set[str] = set()
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._work: dict[str, asyncio.Task[None]] = {}
        self._gone: str | None = None
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the exception for which nothing can be governed."""

    # --- from the client -----------------------------------------------------------------------------------------

    async def from_client(self, line: bytes) -> None:
        """Take one message of the client."""
        try:
            message = read_message(line)
        except ValueError as error:
            await self._refuse(None, PARSE_ERROR, f"The message cannot be read: {error}")
            return
        method, request_id = message.get("method"), message.get("id")
        if "method" not in message:
            key = _key(request_id)
            if key in self._asked_of_client:
                self._asked_of_client.discard(str(key))
                await self._to_server(_only(message, "id", "result", "error"))
            return
        if not isinstance(method, str):
            await self._refuse(request_id, INVALID_REQUEST, "The method is no text.")
        elif "id" not in message:
            await self._notify(method, message)
        else:
            await self._request(method, message)

    async def _notify(self, method: str, message: dict[str, Any]) -> None:
        if method == "notifications/cancelled":
            params = message.get("params")
            key = _key(params.get("requestId")) if isinstance(params, Mapping) else None
            task = self._work.get(key or "")
            if task is not None:
                task.cancel()
                return
        elif method not in NOTIFICATIONS:
            log.warning("mcp-proxy: a notification that is not known was not passed on: %.80r", method)
            return
        await self._to_server(_only(message, "method", "params"))

    async def _request(self, method: str, message: dict[str, Any]) -> None:
        key = _key(message["id"])
        if key is None or key in self._methods or key in self._work or key.startswith('"' + self._prefix):
            await self._refuse(message["id"], INVALID_REQUEST, "The id is no text or whole number, or is in use.")
        elif method in ("tools/call", "tools/list"):
            work = self._call if method == "tools/call" else self._list
            task = asyncio.create_task(self._carry_out(work, message))
            self._work[key] = task
            task.add_done_callback(lambda _: self._work.pop(key, None))
        elif method in self._passed:
            self._methods[key] = method
            await self._to_server(_only(message, "id", "method", "params"))
        else:
            reason = "Only tools are passed on here." if method in CONTENT else "This method is not governed."
            await self._refuse(message["id"], METHOD_NOT_FOUND, f"{method:.80}: {reason}")

    async def _carry_out(self, work: Callable[[dict[str, Any]], Awaitable[Any]], message: dict[str, Any]) -> None:
        try:
            answer = {"result": await work(message)}
        except ServerError as error:
            answer = {"error": error.error}
        except AnswerLost:
            answer = {"error": {"code": INTERNAL_ERROR, "message": "The server has ended."}}
        except Exception as error:
            log.error("mcp-proxy: %s: %s", type(error).__name__, error)
            answer = {"error": {"code": INTERNAL_ERROR, "message": "The request could not be checked."}}
            if self._door is None and not self.broken.done():
                self.broken.set_exception(error)
        await self._to_client({"jsonrpc": "2.0", "id": message["id"], **answer})

    async def _call(self, message: dict[str, Any]) -> Any:
        params = message.get("params")
        if not isinstance(params, dict) or not isinstance(params.get("name"), str):
            raise ServerError({"code": INVALID_PARAMS, "message": "tools/call needs the name of a tool."})
        if params.get("task") is not None:
            raise ServerError(
                {"code": INVALID_PARAMS, "message": "Calls as tasks are not governed; call without task."}
            )
        door = await self._ready(params)

        async def forward(effective: dict[str, Any]) -> tuple[Any, Mapping[str, Any]]:
            result = await self._ask("tools/call", {**params, "arguments": effective})
            return result, result

        reply = await door.call(params["name"], params.get("arguments"), call_id(params), forward)
        if reply.error is not None:
            raise reply.error
        return in_era_of(params, reply.made) if reply.made is not None else reply.own

    async def _list(self, message: dict[str, Any]) -> Any:
        given = message.get("params")
        params = given if isinstance(given, dict) else {}
        door = await self._ready(params)
        result = await self._ask("tools/list", params if "params" in message else None)
        tools = result.get("tools")
        tools = tools if isinstance(tools, list) else []
        self._warn(door.watch.learn(tools))
        return {**result, "tools": door.shown(tools, lambda tool: str(tool.get("name")))}

    # --- the server's tools --------------------------------------------------------------------------------------

    async def _ready(self, params: Mapping[str, Any]) -> Door:
        async with self._opening:
            if self._door is None:
                self._door = await self._open_door(await self._tools(params))
            elif self._stale:
                self._stale = False
                try:
                    self._warn(self._door.watch.learn(await self._tools(params), whole=True))
                except BaseException:
                    self._stale = True
                    raise
            return self._door

    async def _tools(self, params: Mapping[str, Any]) -> list[Any]:
        """All pages of the server's list, asked for in the way of the client's request."""
        meta = params.get("_meta")
        kept = {k: v for k, v in meta.items() if k != "progressToken"} if isinstance(meta, Mapping) else {}
        base: dict[str, Any] = {"_meta": kept} if kept else {}
        found: list[Any] = []
        cursor: Any = None
        for _ in range(_MAX_PAGES):
            result = await self._ask("tools/list", {**base, **({"cursor": cursor} if cursor is not None else {})})
            tools = result.get("tools")
            found += tools if isinstance(tools, list) else []
            cursor = result.get("nextCursor")
            if cursor is None:
                return found
        raise ServerError({"code": INTERNAL_ERROR, "message": "The server's list of tools does not end."})

    def _warn(self, changed: tuple[str, ...]) -> None:
        if changed:
            log.warning(
                "mcp-proxy: the server has changed or withdrawn %s since it was registered; it is not called any more",
                ", ".join(changed),
            )

    async def _ask(self, method: str, params: dict[str, Any] | None) -> dict[str, Any]:
        """Make a request of our own.

        Raises:
            ServerError: The server answered with an error.
            AnswerLost: It has ended.
        """
        if self._gone is not None:
            raise ServerError({"code": INTERNAL_ERROR, "message": "The server has ended."})
        self._sent += 1
        own = f"{self._prefix}{self._sent}"
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[own] = answer
        request = {"jsonrpc": "2.0", "id": own, "method": method, **({} if params is None else {"params": params})}
        try:
            await self._to_server(request)
            return await answer
        except asyncio.CancelledError:
            if self._gone is None:
                told = {"requestId": own, "reason": "cancelled"}
                await self._to_server({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": told})
            raise
        finally:
            self._answers.pop(own, None)

    # --- from the server -----------------------------------------------------------------------------------------

    async def from_server(self, line: bytes) -> None:
        """Take one message of the server."""
        try:
            message = read_message(line)
        except ValueError as error:
            log.warning("mcp-proxy: a message of the server cannot be read and was not passed on: %s", error)
            return
        if "method" in message:
            if message["method"] == _CHANGED:
                self._stale = True
            if "id" in message:
                self._asked_of_client.add(str(_key(message["id"])))
            await self._to_client(_only(message, "id", "method", "params"))
            return
        request_id = message.get("id")
        if isinstance(request_id, str) and request_id.startswith(self._prefix):
            self._settle(request_id, message)
            return
        method = self._methods.pop(_key(request_id) or "", None)
        if method is None and request_id is not None:
            log.warning("mcp-proxy: an answer of the server that nobody waits for was not passed on")
            return
        if method == "initialize":
            _hide_tasks(message.get("result"))
        await self._to_client(_only(message, "id", "result", "error"))

    def _settle(self, own: str, message: dict[str, Any]) -> None:
        answer = self._answers.get(own)
        if answer is None or answer.done():
            return
        result = message.get("result")
        if isinstance(result, dict) and "error" not in message:
            answer.set_result(result)
        else:
            answer.set_exception(ServerError(message.get("error")))

    # --- the end -------------------------------------------------------------------------------------------------

    async def server_left(self, how: str) -> None:
        """The server has ended: what was sent to it has no answer any more. Returns when that has been recorded."""
        self._gone = how
        for answer in list(self._answers.values()):
            if not answer.done():
                answer.set_exception(AnswerLost(how))
        await self._settled()

    async def client_left(self) -> None:
        """The client has gone: break off what it asked for. Returns when that has been recorded."""
        for task in list(self._work.values()):
            task.cancel()
        await self._settled()

    async def _settled(self) -> None:
        if self._work:
            await asyncio.wait(list(self._work.values()))

    async def _refuse(self, request_id: Any, code: int, message: str) -> None:
        given = request_id if _key(request_id) is not None else None
        await self._to_client({"jsonrpc": "2.0", "id": given, "error": {"code": code, "message": message}})


def call_id(params: Mapping[str, Any]) -> str | None:
    """The client's own id of a call. A call that goes on with what the server asked for is a call of its own."""
    meta = params.get("_meta")
    given = meta.get(CALL_ID) if isinstance(meta, Mapping) else None
    if not isinstance(given, str) or not given:
        return None
    state, answers = params.get("requestState"), params.get("inputResponses")
    if state is None and answers is None:
        return given
    return f"{given}/{sha256(json.dumps([state, answers], sort_keys=True).encode())[:16]}"


def in_era_of(params: Mapping[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A result in the form of the request's protocol version: since 2026-07-28 requests name their version, and
    results say that they are complete."""
    meta = params.get("_meta")
    modern = isinstance(meta, Mapping) and "io.modelcontextprotocol/protocolVersion" in meta
    plain = {key: value for key, value in result.items() if key != "resultType"}
    return {**plain, "resultType": "complete"} if modern else plain


def _only(message: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", **{key: message[key] for key in keys if key in message}}


def _hide_tasks(result: Any) -> None:
    """Calls as tasks are refused, so a client need not try."""
    capabilities = result.get("capabilities") if isinstance(result, dict) else None
    if isinstance(capabilities, dict):
        capabilities.pop("tasks", None)
