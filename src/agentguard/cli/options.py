"""Options that several commands share, so that one name means one thing everywhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer


class Format(StrEnum):
    """Forms of output of most commands."""

    TEXT = "text"
    JSON = "json"


FormatOption: TypeAlias = Annotated[Format, typer.Option("--format", help="Form of the output.")]
StoreOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store, for example sqlite:///agentguard.db, or the path of an SQLite file. By default that of "
        "--config, of the environment variable AGENTGUARD_STORE, or of ./agentguard.yaml.",
    ),
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file that names the store [default: agentguard.yaml]"),
]
TenantOption: TypeAlias = Annotated[
    str | None, typer.Option("--tenant", help="Only this tenant; by default all of them.")
]
ToolsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--tools",
        metavar="MODULE:ATTR",
        help="The tools: a module (or file.py) and in it a registry, a gateway, a tool or a list of tools; without "
        ":ATTR all decorated functions of the module. The module is imported, so its code runs.",
    ),
]
NeededToolsOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--tools",
        metavar="MODULE:ATTR",
        help="The tools: a module (or file.py) and in it a registry, a gateway, a tool or a list of tools; without "
        ":ATTR all decorated functions of the module. The module is imported, so its code runs.",
    ),
]
LimitOption: TypeAlias = Annotated[int, typer.Option("--limit", min=1, help="At most so many rows.")]
ByOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--by", metavar="NAME", help="Who decides. It is recorded as given: who may write the store is trusted."
    ),
]
