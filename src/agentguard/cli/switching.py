"""``kill``, ``restore`` and ``switches``: stop things now, and let them go on."""

from __future__ import annotations

from typing import Annotated

import typer

from agentguard.cli.opening import opened
from agentguard.cli.options import ByOption, ConfigOption, Format, FormatOption, StoreOption, TenantOption
from agentguard.cli.printing import document, iso, note, out, plain, table
from agentguard.domain.runs import Switch

AgentOption = Annotated[str | None, typer.Option("--agent", help="An agent, in every tenant or in --tenant.")]
UserOption = Annotated[str | None, typer.Option("--user", help="A user, in every tenant or in --tenant.")]
ToolOption = Annotated[str | None, typer.Option("--tool", help="A tool, in every tenant or in --tenant.")]
RunOption = Annotated[str | None, typer.Option("--run", help='A run of --tenant (by default of tenant "default").')]
EverythingOption = Annotated[bool, typer.Option("--everything", help="All calls of everybody.")]
OwnerOption = Annotated[str | None, typer.Option("--tenant", help="A whole tenant, or the owner of what is named.")]


def _object(switch: Switch) -> dict[str, object]:
    return {**plain(switch), "at": iso(switch.at)}


def _what(switch: Switch) -> str:
    owner = f" of tenant {switch.tenant}" if switch.tenant and switch.scope != "tenant" else ""
    return f"{switch.scope} {switch.value or switch.tenant}".strip() + owner


def kill(
    reason: Annotated[str, typer.Option("--reason", help="Why; people see it.")],
    by: ByOption,
    tenant: OwnerOption = None,
    agent: AgentOption = None,
    user: UserOption = None,
    tool: ToolOption = None,
    run: RunOption = None,
    everything: EverythingOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Turn a kill switch on: no new call of a tenant, agent, user, tool or run starts, in any process."""
    with opened(store, config) as gateway:
        switch = gateway.switches.kill(
            tenant=tenant, agent=agent, user=user, tool=tool, run=run, everything=everything, reason=reason, by=by
        )
    if form is Format.JSON:
        document(_object(switch))
    else:
        out(f"stopped: {_what(switch)} (since {iso(switch.at)}, by {switch.by}: {switch.reason})")


def restore(
    by: ByOption,
    tenant: OwnerOption = None,
    agent: AgentOption = None,
    user: UserOption = None,
    tool: ToolOption = None,
    run: RunOption = None,
    everything: EverythingOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Turn a kill switch off. Name what was killed exactly as it was named then; 'switches' lists them.

    Exit code 1 when no such switch was on.
    """
    with opened(store, config) as gateway:
        was_on = gateway.switches.restore(
            tenant=tenant, agent=agent, user=user, tool=tool, run=run, everything=everything, by=by
        )
        left = gateway.switches.list()
    if form is Format.JSON:
        document({"restored": was_on, "on": [_object(switch) for switch in left]})
    elif was_on:
        out("restored")
    if not was_on:
        note("No such switch was on; 'agentguard switches' lists those that are.")
        raise typer.Exit(1)


def switches(
    tenant: TenantOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """List the kill switches that are on."""
    with opened(store, config) as gateway:
        found = gateway.switches.list(tenant=tenant)
    if form is Format.JSON:
        document([_object(switch) for switch in found])
        return
    table(
        ("SCOPE", "TENANT", "VALUE", "SINCE", "BY", "REASON"),
        ((s.scope, s.tenant or "-", s.value or "-", iso(s.at) or "", s.by, s.reason) for s in found),
        empty="No switch is on.",
    )
