"""``mcp-proxy``: a governed MCP server in front of any other.

What must stay true: standard output belongs to the protocol; everything for people goes to standard error.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from agentguard.cli.opening import wrong
from agentguard.cli.printing import note
from agentguard.tools.locking import Lock


def mcp_proxy(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="Command line of the server, after --.")
    ] = None,
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="Configuration file.")] = Path(
        "agentguard.yaml"
    ),
    agent: Annotated[str, typer.Option("--agent", help="Name of the agent that calls.")] = "mcp",
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant of the run.")] = "default",
    environment: Annotated[str, typer.Option("--environment", help="Environment of the run.")] = "default",
    user: Annotated[str | None, typer.Option("--user", help="Person the agent acts for.")] = None,
    role: Annotated[list[str] | None, typer.Option("--role", help="Role of that person; repeat for more.")] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="ID",
            help="Go on with this run, or open it, and leave it open; by default each session is a run of its own.",
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help='Stands before every tool name in policy and records, such as "files.".')
    ] = "",
    only_tools: Annotated[
        bool, typer.Option("--only-tools", help="Refuse resources, prompts and completions: policy is about tools.")
    ] = False,
    lock: Annotated[
        Path | None,
        typer.Option(
            "--lock", metavar="FILE", help="Hide and refuse tools that changed or appeared since this was written."
        ),
    ] = None,
    write_lock: Annotated[
        Path | None,
        typer.Option("--write-lock", metavar="FILE", help="Ask the server for its tools, write the lock, and leave."),
    ] = None,
    trust_annotations: Annotated[
        bool, typer.Option("--trust-annotations", help="Believe what the server says about effects of its tools.")
    ] = False,
) -> None:
    """Stand between an MCP client and an MCP server on standard streams, and govern every tool call.

    Put it before the server's command in the client's settings. Tools that the policy does not allow are not listed;
    calls that need approval come back with an error until somebody has decided: see 'agentguard approvals'.
    """
    from agentguard.adapters.mcp import Proxy

    if not command:
        wrong("Which server? Write its command line after --, as in: agentguard mcp-proxy -- npx some-server")
    identity: dict[str, Any] = {"agent": agent, "tenant": tenant, "environment": environment, "user": user}
    proxy = Proxy(
        config=config,
        command=command,
        prefix=prefix,
        trust_annotations=trust_annotations,
        only_tools=only_tools,
        lock=lock,
        run_id=run,
        identity={**identity, "roles": role or ()},
        say=lambda text: note(f"agentguard mcp-proxy: {text}"),
    )
    if write_lock is not None:
        registry = asyncio.run(proxy.tools())
        Lock.of(registry).write(write_lock)
        note(f"wrote {write_lock}: {len(registry)} tools")
        return
    warnings = logging.StreamHandler(sys.stderr)
    warnings.setLevel(logging.WARNING)
    logging.getLogger("agentguard").addHandler(warnings)
    ended = asyncio.run(proxy.serve_stdio())
    if ended is not None:
        note(f"agentguard mcp-proxy: the server has ended by itself (exit code {ended})")
        raise typer.Exit(1)
