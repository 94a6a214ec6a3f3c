"""A real MCP server in a process of its own, a proxy in front of it, and real clients of both."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentguard import ApproverIdentity, ToolGateway

BO = ApproverIdentity("bo")
SERVER = Path(__file__).parent / "server.py"

CONFIG = """\
version: 1
name: files
store: sqlite:///ag.db
tools:
  read_file: {effect: read, risk: low}
rules:
  - {id: reads, allow: [read_file, report, raises, rename, slow, widen]}
  - {id: deletions, require_approval: delete_file}
"""

EVERYTHING = """\
version: 1
name: all
store: sqlite:///ag.db
loops: {max_repeats: off}
rules:
  - {id: all, allow: "**"}
"""


def text(result: Any) -> str:
    return "".join(part.text for part in result.content if part.type == "text")


def failed(result: Any) -> bool:
    return bool(result.model_dump(by_alias=True)["isError"])


def reason(result: Any) -> Any:
    meta = result.model_dump(by_alias=True).get("_meta") or {}
    return meta.get("agentguard/reason")


class Far:
    """Files of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "agentguard.yaml"
        self.config.write_text(CONFIG)
        self.log = folder / "server.log"
        self.errors = folder / "stderr.txt"
        self.command = [sys.executable, str(SERVER)]

    @property
    def ran(self) -> list[str]:
        """What the server's tools have done."""
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def gateway(self) -> ToolGateway:
        """The store, as another process sees it."""
        return ToolGateway(store=f"sqlite:///{self.folder / 'ag.db'}")

    @property
    def proxy(self) -> list[str]:
        return [sys.executable, "-m", "agentguard.cli", "mcp-proxy", "--config", str(self.config)]

    @asynccontextmanager
    async def session(self, command: list[str], env: dict[str, str] | None = None) -> AsyncIterator[Any]:
        """A client session with a server."""
        from mcp import ClientSession, StdioServerParameters
        from mcp.client.stdio import stdio_client

        given = {**os.environ, "UP_LOG": str(self.log), "UP_DIR": str(self.folder), **(env or {})}
        parameters = StdioServerParameters(command=command[0], args=command[1:], env=given)
        with self.errors.open("a") as errors:
            async with stdio_client(parameters, errlog=errors) as (read, write), ClientSession(read, write) as session:
                await session.initialize()
                yield session

    def direct(self) -> Any:
        return self.session(self.command)

    def governed(self, *options: str, env: dict[str, str] | None = None) -> Any:
        return self.session([*self.proxy, *options, "--", *self.command], env)
