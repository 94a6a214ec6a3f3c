"""The proxy's process: standard streams towards the client, a child process with the server.

What must stay true: standard output carries messages and nothing else; the child does not outlive the proxy; the run
is left in order however the session ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final

from agentguard._version import __version__
from agentguard.adapters._mcp_calls import Door
from agentguard.adapters._mcp_relay import Relay, write_message
from agentguard.errors import ConfigurationError

MAX_LINE: Final = 64 * 1024 * 1024
"""Longest message, in bytes."""

PATIENCE_S: Final = 3.0
"""How long a server may take to end after its input was closed, and again after it was asked to."""


class _Output(asyncio.streams.FlowControlMixin):
    """Lets a writer wait until everything is written."""

    def __init__(self) -> None:
        super().__init__()
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is closed."""
        super().connection_lost(exc)
        if not self._closed.done():
            self._closed.set_result(None)

    def _get_close_waiter(self, _stream: asyncio.StreamWriter) -> asyncio.Future[None]:
        return self._closed


async def _own_streams() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # Copies, so that closing them leaves the streams of the process as they were.
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE)
    given, taken = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), given)
    transport, protocol = await loop.connect_write_pipe(_Output, taken)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _sender(writer: asyncio.StreamWriter) -> Callable[[dict[str, Any]], Awaitable[None]]:
    async def send(message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # its reader finds out in its own way
            writer.write(write_message(message))
            await writer.drain()

    return send


async def _pump(reader: asyncio.StreamReader, take: Callable[[bytes], Awaitable[None]]) -> None:
    while line := await reader.readline():
        if line.strip():
            await take(line)


@contextlib.asynccontextmanager
async def _server(command: Sequence[str]) -> AsyncGenerator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=MAX_LINE)
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        for ask in (None, child.terminate, child.kill):
            if ask is not None and child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    ask()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), PATIENCE_S)
                break


async def relay_stdio(
    command: Sequence[str],
    open_door: Callable[[list[Any]], Awaitable[Door]],
    *,
    only_tools: bool = False,
) -> int | None:
    """Start a server and stand between it and whoever talks to our standard streams, until one of them ends.

    Args:
        command: The server's command line.
        open_door: Makes the door out of the server's tools.
        only_tools: Refuse resources, prompts and completions.

    Returns:
        The exit code of a server that ended by itself, ``None`` when the client left.

    Raises:
        AgentGuardError: The door cannot be made: the configuration does not fit the server's tools, for example.
        OSError: The server cannot be started.
    """
    async with _server(command) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        reader, writer = await _own_streams()
        relay = Relay(_sender(writer), _sender(child.stdin), open_door, only_tools=only_tools)
        client = asyncio.create_task(_pump(reader, relay.from_client))
        server = asyncio.create_task(_pump(child.stdout, relay.from_server))
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def stop() -> None:
            if not stopped.done():
                stopped.set_result(None)

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            await asyncio.wait({client, server, stopped, relay.broken}, return_when=asyncio.FIRST_COMPLETED)
            if relay.broken.done():
                relay.broken.result()
            if client.done() and not client.cancelled():
                client.result()
            if server.done():
                server.result()
                code = await child.wait()
                await relay.server_left(f"the server has ended with exit code {code}")
                return code
            await relay.client_left()
            return None
        finally:
            for task in (client, server):
                task.cancel()
            await asyncio.gather(client, server, return_exceptions=True)
            await relay.client_left()
            relay.broken.cancel()
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), PATIENCE_S)


_HELLO: Final = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "agentguard", "version": __version__},
}
"""What a client without any abilities says in the handshake of that version of the protocol."""


async def ask_for_tools(command: Sequence[str]) -> list[Any]:
    """Start a server, list its tools, end it.

    Raises:
        ConfigurationError: AG693, the server ends or answers with an error before that.
        OSError: It cannot be started.
    """
    tools: list[Any] = []

    async def open_door(found: list[Any]) -> Door:
        tools.extend(found)
        raise _Known

    async with _server(command) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        relay = Relay(answers.put, _sender(child.stdin), open_door)
        server = asyncio.create_task(_pump(child.stdout, relay.from_server))

        async def ask(message: dict[str, Any]) -> dict[str, Any]:
            await relay.from_client(write_message({"jsonrpc": "2.0", "id": 1, **message}))
            while True:
                answer = asyncio.ensure_future(answers.get())
                await asyncio.wait({answer, server}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    answer.cancel()
                    await relay.server_left("it has ended")
                    return {"error": {"message": "it has ended"}}
                if answer.result().get("id") == 1 and "method" not in answer.result():
                    return answer.result()

        try:
            answer = await ask({"method": "initialize", "params": _HELLO})
            if "error" not in answer:
                await relay.from_client(write_message({"jsonrpc": "2.0", "method": "notifications/initialized"}))
                answer = await ask({"method": "tools/list"})
        finally:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
        if isinstance(relay.broken.exception() if relay.broken.done() else None, _Known):
            return tools
        relay.broken.cancel()
        told = answer.get("error", {})
        why = told.get("message") if isinstance(told, dict) else told
        raise ConfigurationError(f"AG693 the server does not say which tools it has: {why!r:.500}", code="AG693")


class _Known(Exception):
    """The tools are known; no door is needed."""
