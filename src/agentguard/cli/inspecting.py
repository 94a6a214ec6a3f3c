"""``runs`` and ``budgets``: what agents did, what they used, and what is left."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer

from agentguard.cli.opening import opened
from agentguard.cli.options import ConfigOption, Format, FormatOption, LimitOption, StoreOption, TenantOption
from agentguard.cli.printing import amount, compact, document, fields, iso, out, plain, short_time, table
from agentguard.cli.timeline import entries, show_entries
from agentguard.domain.calls import CallRecord
from agentguard.domain.operations import ReadBudgets
from agentguard.domain.runs import RunRecord
from agentguard.domain.usage import BudgetLine, Usage
from agentguard.gateway import ToolGateway
from agentguard.runs.report import RunReport

app = typer.Typer(help="See runs and what happened in them.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]


class Status(StrEnum):
    """States of a run."""

    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


def run_object(record: RunRecord) -> dict[str, Any]:
    """A run for programs."""
    context = record.context
    return {
        "run_id": context.run_id,
        "tenant": context.tenant,
        "agent": context.agent,
        "environment": context.environment,
        "user": context.user,
        "roles": list(context.roles),
        "session": context.session,
        "team": context.team,
        "parent": context.parent,
        "task": record.contract.task,
        "status": record.status,
        "stop_reason": plain(record.stop_reason),
        "labels": list(record.labels),
        "started_at": iso(record.started_at),
        "ended_at": iso(record.ended_at),
        "audit_records": record.audit_seq,
        "audit_head": record.audit_head,
    }


@app.command("list")
def list_runs(
    tenant: TenantOption = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only runs of this agent.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only runs for this user.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Only runs of this session.")] = None,
    status: Annotated[Status | None, typer.Option("--status", help="Only runs in this state.")] = None,
    limit: LimitOption = 100,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """List runs, newest first."""
    with opened(store, config) as gateway:
        found = gateway.runs.list(
            tenant=tenant,
            agent=agent,
            user=user,
            session=session,
            status=status.value if status else None,
            limit=limit,
        )
    if form is Format.JSON:
        document([run_object(record) for record in found])
        return
    table(
        ("RUN", "TENANT", "AGENT", "USER", "STATUS", "STOP REASON", "STARTED", "ENDED", "TASK"),
        (
            (
                r.context.run_id,
                r.context.tenant,
                r.context.agent,
                r.context.user or "-",
                r.status,
                _reason(r) or "-",
                short_time(r.started_at),
                short_time(r.ended_at) or "-",
                _short(r.contract.task or ""),
            )
            for r in found
        ),
        empty="There are no such runs.",
    )


def _reason(record: RunRecord) -> str:
    if record.stop_reason is None:
        return "approval_pending" if record.status == "waiting" else ""
    return record.stop_reason.value


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


@app.command("show")
def show_run(
    run: RunArgument,
    tenant: TenantOption = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Also everything that happened, in order.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show one run: identity, result, usage, calls, and with --timeline everything that happened in it."""
    with opened(store, config) as gateway:
        record = gateway.runs.get(run, tenant=tenant)
        owner = record.context.tenant
        report = gateway.resume(run, tenant=owner).report
        calls = gateway.runs.calls(run, tenant=owner)
        steps = list(entries(gateway.runs.timeline(run, tenant=owner))) if timeline else []
    if form is Format.JSON:
        value = run_object(record) | {
            "result": plain(report.result),
            "evidence": plain(report.evidence),
            "warnings": list(report.warnings),
            "details": plain(report.details),
            "usage": plain(report.usage),
            "calls": [_call_object(call) for call in calls],
        }
        document(value | ({"timeline": [step.as_object() for step in steps]} if timeline else {}))
        return
    _show(record, report)
    if calls:
        out()
        show_calls(calls)
    if timeline:
        out()
        show_entries(steps)


def _call_object(call: CallRecord) -> dict[str, Any]:
    return {
        "call_id": call.call_id,
        "tool": call.tool,
        "status": call.status,
        "effect": call.effect,
        "started_at": iso(call.started_at),
        "ended_at": iso(call.ended_at),
        "approval_id": call.approval_id,
    }


def _show(record: RunRecord, report: RunReport) -> None:
    context = record.context
    narrowed = " and ".join(" ".join(names) for names in context.scope or ())
    fields(
        [
            ("run", context.run_id),
            ("agent", context.agent),
            ("tenant", context.tenant),
            ("environment", context.environment),
            ("user", (context.user or "") + (f" ({', '.join(context.roles)})" if context.roles else "")),
            ("session", context.session or ""),
            ("team", context.team or ""),
            ("parent", context.parent or ""),
            ("scope", narrowed),
            ("task", record.contract.task or ""),
            ("status", record.status),
            ("stop reason", report.stop_reason.value if report.stop_reason else ""),
            ("labels", ", ".join(record.labels)),
            ("started", iso(record.started_at) or ""),
            ("ended", iso(record.ended_at) or ""),
            ("result", "" if report.result is None else compact(report.result)),
            ("evidence", compact(report.evidence) if report.evidence else ""),
            *(("warning", warning) for warning in report.warnings),
            *((name, str(text)) for name, text in report.details.items()),
            ("usage", usage_text(report.usage)),
            ("audit", f"{record.audit_seq} records, head {record.audit_head}"),
        ]
    )


def usage_text(usage: Usage) -> str:
    """What was used, on one line."""
    parts = [f"{usage.steps} steps", f"{usage.tool_calls} tool calls", f"{usage.tokens} tokens"]
    unpriced = f" and {usage.unpriced_calls} model calls of unknown price" if usage.unpriced_calls else ""
    parts.append(f"{usage.cost_usd:f} USD{unpriced}")
    parts.append(f"{usage.working_seconds:.1f} s working of {usage.seconds:.1f} s")
    parts += [f"{name} {value}" for name, value in usage.counters.items()]
    return ", ".join(parts)


def show_calls(calls: Iterable[CallRecord]) -> None:
    """The calls of a run as a table."""
    table(
        ("CALL", "TOOL", "STATUS", "EFFECT", "STARTED", "ENDED", "APPROVAL"),
        (
            (
                call.call_id,
                call.tool,
                call.status,
                call.effect,
                short_time(call.started_at),
                short_time(call.ended_at) or "-",
                call.approval_id or "-",
            )
            for call in calls
        ),
    )


# --- budgets ------------------------------------------------------------------------------------------


def budgets(
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only the accounts of this run.")] = None,
    tenant: TenantOption = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only accounts of runs of this agent.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only accounts of runs for this user.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Only accounts of runs of this session.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Look at so many runs, newest first.")] = 20,
    everything: Annotated[
        bool, typer.Option("--all", help="Also dimensions that are counted without a limit.")
    ] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show what is used, reserved and left of the budgets of runs and of everything they are charged to."""
    with opened(store, config) as gateway:
        if run is not None:
            records: tuple[RunRecord, ...] = (gateway.runs.get(run, tenant=tenant),)
        else:
            records = gateway.runs.list(tenant=tenant, agent=agent, user=user, session=session, limit=limit)
        lines = [line for line in _lines(gateway, records) if everything or line.limit is not None]
    if form is Format.JSON:
        document([_line_object(line) for line in lines])
        return
    table(
        ("BUDGET", "DIMENSION", "USED", "RESERVED", "LIMIT", "LEFT"),
        (
            (
                line.label,
                line.dimension,
                amount(line.dimension, line.used),
                amount(line.dimension, line.held),
                amount(line.dimension, line.limit) or "-",
                amount(line.dimension, _left(line)) or "-",
            )
            for line in lines
        ),
        empty="No run here has a limit; --all shows what is counted.",
    )


def _lines(gateway: ToolGateway, records: Iterable[RunRecord]) -> list[BudgetLine]:
    meters = {(meter.account, meter.per, meter.label): meter for record in records for meter in record.meters}
    found = gateway.store.perform(ReadBudgets(tuple(meters.values()))) if meters else ()
    unique = {(line.account, line.dimension): line for line in found}
    return sorted(unique.values(), key=lambda line: (line.scope == "run", line.label, line.dimension))


def _left(line: BudgetLine) -> int | None:
    return None if line.limit is None else max(line.limit - line.used - line.held, 0)


def _line_object(line: BudgetLine) -> dict[str, Any]:
    shown = {name: _number(line.dimension, value) for name, value in (("used", line.used), ("held", line.held))}
    limits = {"limit": _number(line.dimension, line.limit), "left": _number(line.dimension, _left(line))}
    return {"label": line.label, "scope": line.scope, "dimension": line.dimension, **shown, **limits}


def _number(dimension: str, value: int | None) -> int | str | None:
    # Money as text, so that no reader makes a float of it.
    return value if value is None or dimension != "cost_usd" else amount(dimension, value)
