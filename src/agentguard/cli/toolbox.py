"""``tools``: which tools a service registers, and their definitions in the forms of the model providers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from agentguard.cli.opening import load_tools, read_config
from agentguard.cli.options import Format, FormatOption, NeededToolsOption
from agentguard.cli.printing import document, plain, table
from agentguard.domain.plans import ToolSpec
from agentguard.tools.registry import ToolRegistry

app = typer.Typer(help="List, export and lock tools.", no_args_is_help=True)

SettingsOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file whose tools: section completes the tools."),
]


class ExportFormat(StrEnum):
    """Forms of tool definitions."""

    OPENAI = "openai"
    OPENAI_RESPONSES = "openai-responses"
    ANTHROPIC = "anthropic"
    MCP = "mcp"
    JSON = "json"


def registry_of(tools: str, config: Path | None) -> ToolRegistry:
    """The tools that the options name, completed by the ``tools:`` section of the configuration."""
    registry = load_tools(tools)
    if config is None:
        return registry
    settings = read_config(config)
    return registry.with_document(settings.document) if settings.has_tools else registry


def _spec(spec: ToolSpec) -> dict[str, Any]:
    key = spec.idempotency_key
    return {**plain(spec), "idempotency_key": "<function>" if callable(key) else plain(key)}


@app.command("list")
def list_tools(tools: NeededToolsOption, config: SettingsOption = None, form: FormatOption = Format.TEXT) -> None:
    """List the registered tools with what they declare."""
    registry = registry_of(tools, config)
    if form is Format.JSON:
        document([_spec(tool.spec) for tool in registry])
        return
    table(
        ("TOOL", "EFFECT", "RISK", "PERMISSIONS", "COST USD", "TIMEOUT", "VERSION", "OWNER", "NOTES"),
        (
            (
                spec.name,
                spec.effect,
                spec.risk,
                " ".join(spec.permissions) or "-",
                f"{spec.cost_usd:f}",
                "-" if spec.timeout_s is None else f"{spec.timeout_s:g}s",
                spec.version,
                spec.owner or "-",
                f"deprecated{f', use {spec.replaced_by}' if spec.replaced_by else ''}" if spec.deprecated else "",
            )
            for spec in (tool.spec for tool in registry)
        ),
        empty="There are no tools.",
    )


@app.command("export")
def export_tools(
    tools: NeededToolsOption,
    config: SettingsOption = None,
    form: Annotated[ExportFormat, typer.Option("--format", help="Whose form of definitions.")] = ExportFormat.OPENAI,
) -> None:
    """Print the definitions of the tools as JSON, as a model provider wants them."""
    registry = registry_of(tools, config)
    forms: dict[ExportFormat, Any] = {
        ExportFormat.OPENAI: registry.to_openai,
        ExportFormat.OPENAI_RESPONSES: lambda: registry.to_openai("responses"),
        ExportFormat.ANTHROPIC: registry.to_anthropic,
        ExportFormat.MCP: registry.to_mcp,
        ExportFormat.JSON: lambda: [_spec(tool.spec) for tool in registry],
    }
    document(forms[form]())
