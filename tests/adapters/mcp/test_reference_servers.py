"""A policy that allows everything changes nothing about servers that others wrote."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.mcp.far import EVERYTHING, Far

pytestmark = pytest.mark.anyio

NPM = os.environ.get("AGENTGUARD_NPM")
"""A folder with a ``node_modules``, see the session ``mcp`` in noxfile.py."""

Call = Callable[[Any], Any]


def calls(name: str, *several: dict[str, Any]) -> list[Call]:
    return [lambda session, given=given: session.call_tool(name, given) for given in several]


TIME: list[Call] = [
    lambda session: session.list_tools(),
    *calls(
        "convert_time",
        {"source_timezone": "UTC", "time": "10:00", "target_timezone": "Asia/Tokyo"},
        {"source_timezone": "Mars", "time": "10:00", "target_timezone": "UTC"},
    ),
]
EVERY: list[Call] = [
    lambda session: session.list_tools(),
    lambda session: session.list_resources(),
    lambda session: session.list_resource_templates(),
    lambda session: session.list_prompts(),
    lambda session: session.send_ping(),
    *calls("echo", {"message": "hä \u2028 \U0001f600"}),
    *calls("get-sum", {"a": 1, "b": 2}, {"a": 1.5, "b": 2}),
    *calls("get-tiny-image", {}),
    *calls("get-annotated-message", {"messageType": "error", "includeImage": True}),
    *calls("get-structured-content", {"location": "Chicago"}),
    *calls("get-resource-links", {"count": 3}),
    *calls("get-resource-reference", {"resourceType": "Text", "resourceId": 1}),
    *calls("trigger-long-running-operation", {"duration": 0.2, "steps": 2}),
]


def files(folder: str) -> list[Call]:
    place = f"{folder}/a.txt"
    return [
        lambda session: session.list_tools(),
        *calls("write_file", {"path": place, "content": "hi\nyou"}),
        *calls("read_text_file", {"path": place}, {"path": place, "head": 1}, {"path": "/etc/passwd"}),
        *calls("list_directory", {"path": folder}),
        *calls("directory_tree", {"path": folder}),
        *calls("search_files", {"path": folder, "pattern": "*.txt"}),
        *calls("edit_file", {"path": place, "edits": [{"oldText": "hi", "newText": "ho"}], "dryRun": True}),
    ]


def servers() -> list[str]:
    return ["time", "everything", "filesystem"] if NPM is not None else ["time"]


@pytest.mark.parametrize("name", servers())
async def test_everything_passes_as_in_a_direct_connection(name: str, far: Far) -> None:
    far.config.write_text(EVERYTHING)
    folder = str(far.folder)
    packages = f"{NPM}/node_modules/@modelcontextprotocol"
    commands = {
        "time": [str(Path(sys.executable).parent / "mcp-server-time")],
        "everything": ["node", f"{packages}/server-everything/dist/index.js"],
        "filesystem": ["node", f"{packages}/server-filesystem/dist/index.js", folder],
    }
    far.command = commands[name]
    made = {"time": TIME, "everything": EVERY, "filesystem": files(folder)}[name]
    async with far.direct() as direct, far.governed() as governed:
        for call in made:
            assert await call(governed) == await call(direct)
