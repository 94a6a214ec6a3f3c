"""``approvals``: what waits for a person, and the answer.

What must stay true: what is approved is what was shown. The complete effective arguments are printed before the
answer is given; edits start from them; somebody else's edit in between makes the answer not count.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from agentguard.approval.describing import describe
from agentguard.cli.checking import read_object
from agentguard.cli.opening import opened, wrong
from agentguard.cli.options import (
    ByOption,
    ConfigOption,
    Format,
    FormatOption,
    LimitOption,
    StoreOption,
    TenantOption,
    ToolsOption,
)
from agentguard.cli.printing import document, iso, note, out, plain, short_time, table, watched
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity
from agentguard.domain.usage import NANO
from agentguard.errors import ApprovalError
from agentguard.gateway import ToolGateway
from agentguard.units import seconds

app = typer.Typer(help="List, show and decide approval requests.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the request.")]
RolesOption = Annotated[
    list[str] | None, typer.Option("--role", help="A role of the one who decides; repeat for more.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation on a terminal.")]

_ALL: Final = "all"


class Status(StrEnum):
    """States of a request."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CONSUMED = "consumed"
    SUPERSEDED = "superseded"
    TERMINATED = "terminated"
    ALL = _ALL


class Scope(StrEnum):
    """How far an approval reaches."""

    CALL = "call"
    ARGUMENTS = "arguments"
    RUN = "run"
    UNTIL = "until"


def request_object(request: ApprovalRequest) -> dict[str, Any]:
    """A request for programs."""
    value: dict[str, Any] = plain(request)
    for name in ("created_at", "expires_at", "until_ns", "decided_at"):
        value[name] = iso(value[name])
    value["until"] = value.pop("until_ns")
    for vote in value["votes"]:
        vote["at"] = iso(vote["at"])
    more = value.pop("extra")
    for name in ("escalated", "withdrawn"):
        value[name] = [{**entry, "at": iso(entry["at"])} for entry in more.get(name, ())]
    for name in ("call_key", "nonce"):
        del value[name]
    return value


@app.command("list")
def list_requests(
    status: Annotated[Status, typer.Option("--status", help="Only requests in this state.")] = Status.PENDING,
    tenant: TenantOption = None,
    run: Annotated[str | None, typer.Option("--run", help="Only requests of this run.")] = None,
    tool: Annotated[str | None, typer.Option("--tool", help="Only requests for this tool.")] = None,
    role: Annotated[str | None, typer.Option("--role", help="Only requests that this role may decide.")] = None,
    limit: LimitOption = 100,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """List approval requests, oldest first; by default those that wait for a decision."""
    with opened(store, config) as gateway:
        found = gateway.approvals.list(
            status=None if status is Status.ALL else status.value,
            tenant=tenant,
            run_id=run,
            tool=tool,
            role=role,
            limit=limit,
        )
    if form is Format.JSON:
        document([request_object(request) for request in found])
        return
    table(
        ("ID", "STATUS", "TOOL", "RISK", "AGENT", "TENANT", "RUN", "CREATED", "EXPIRES", "NEEDS"),
        (
            (
                r.id,
                r.status,
                r.tool,
                r.risk,
                r.agent,
                r.tenant,
                r.run_id,
                short_time(r.created_at),
                short_time(r.expires_at),
                _needs(r),
            )
            for r in found
        ),
        empty="Nothing waits for a decision." if status is Status.PENDING else "There are no such requests.",
    )


def _needs(request: ApprovalRequest) -> str:
    roles = " and ".join("|".join(roles) for roles in request.terms.role_sets) or "anybody"
    return f"{request.terms.quorum} x {roles}"


def _get(gateway: ToolGateway, id: str, tenant: str | None) -> ApprovalRequest:
    try:
        return gateway.approvals.get(id, tenant=tenant)
    except ApprovalError as error:
        wrong(f"{error} 'agentguard approvals list --status all' lists what there is.")


@app.command("show")
def show_request(
    id: IdArgument,
    tenant: TenantOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show everything an approver has to know about a request."""
    with opened(store, config) as gateway:
        request = _get(gateway, id, tenant)
    if form is Format.JSON:
        document(request_object(request))
    else:
        out("\n".join(describe(request)))


@app.command("approve")
def approve(
    id: IdArgument,
    by: ByOption,
    role: RolesOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change one argument, dotted for inner ones; VALUE is JSON, or plain text where text stood. Repeat for more.",
        ),
    ] = None,
    arguments: Annotated[
        str | None,
        typer.Option("--arguments", metavar="JSON", help="Run exactly these arguments instead; @FILE reads a file."),
    ] = None,
    comment: Annotated[str | None, typer.Option("--note", help="Why.")] = None,
    scope: Annotated[
        Scope,
        typer.Option(
            "--scope",
            help="call: only this one; arguments: the same arguments again in this run; run: the tool in this run; "
            "until: the tool for this agent until --until.",
        ),
    ] = Scope.CALL,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="TIME", help="End of --scope until: 2h, 30m, or 2026-01-31T18:00:00Z."),
    ] = None,
    tools: ToolsOption = None,
    yes: YesOption = False,
    tenant: TenantOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Approve a request, with or without changes. The call runs when its run is resumed.

    With --tools changed arguments are checked against the tool's schema now; without, when the call is resumed.
    Exit code 1 when the approval does not count: decided before, expired, wrong role, own request.
    """
    if (scope is Scope.UNTIL) is not (until is not None):
        wrong("--scope until and --until TIME go together.")
    until_ns = None if until is None else _moment(until)
    with opened(store, config, tools) as gateway:
        request = _get(gateway, id, tenant)
        edited = _edited(request, set_ or [], arguments)
        note("\n".join(describe(request)))
        if edited is not None and edited != request.edited:
            note(f"will run instead: {json.dumps(edited)}")
        _confirm("Approve this?", yes)
        decided = gateway.approvals.approve(
            id,
            by=ApproverIdentity(by, tuple(role or ())),
            arguments=edited,
            note=comment,
            scope=scope.value,
            until_ns=until_ns,
            tenant=request.tenant,
        )
    if form is Format.JSON:
        document(request_object(decided))
        return
    if decided.status == "approved":
        out(f"approved: {decided.id}")
        note(f"It runs when run {decided.run_id} is resumed, or call {decided.call_id} is made again.")
    else:
        given = len({vote.by for vote in decided.votes if vote.kind == "approve"})
        out(f"counted: {decided.id} is still {decided.status}")
        note(f"{given} approved so far; it needs {_needs(decided)}.")


def _edited(request: ApprovalRequest, changes: list[str], arguments: str | None) -> dict[str, Any] | None:
    """The complete effective arguments to be approved, or ``None`` for those that were shown."""
    before = request.arguments if request.edited is None else request.edited
    if arguments is not None and changes:
        wrong("Use either --arguments or --set.")
    if arguments is not None:
        return read_object(arguments, "--arguments")
    if not changes:
        # After somebody's edit an approval must name what it approves.
        return None if request.edited is None else dict(request.edited)
    after: dict[str, Any] = copy.deepcopy(dict(before))
    for change in changes:
        _change(after, change)
    return after


def _change(arguments: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals or not name:
        wrong(f"--set {change!r}: write NAME=VALUE")
    place: Any = arguments
    path = [name] if name in arguments else name.split(".")
    for step in path[:-1]:
        if isinstance(place, Mapping) and step in place:
            place = place[step]
        elif isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
        else:
            wrong(f"--set {name}: there is no argument {name!r}; the call has {', '.join(arguments) or 'none'}")
    last: Any = path[-1]
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        last = int(last)
    elif not isinstance(place, dict) or last not in place:
        # A new name would be a typing error more often than not; --arguments can still say it.
        wrong(f"--set {name}: there is no argument {name!r}; the call has {', '.join(arguments) or 'none'}")
    place[last] = _value(name, text, place[last])


def _value(name: str, text: str, before: Any) -> Any:
    if isinstance(before, str):
        return text
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        if before is None:
            return text
        wrong(f"--set {name}: {text!r} is not JSON, and {json.dumps(before)} stood there before")
    return value


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _moment(text: str) -> int:
    """A point in time, ns since the epoch: a duration from now, or ISO 8601 with its zone."""
    if re.fullmatch(r"[0-9.]+(ms|s|m|h|d)", text):
        try:
            return time.time_ns() + int(seconds(text) * NANO)
        except ValueError as error:
            wrong(f"--until: {error}")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        wrong(f"--until {text!r}: write a duration such as 2h, or a time such as 2026-01-31T18:00:00Z")
    if moment.tzinfo is None:
        wrong(f"--until {text!r} has no zone; write {text}Z for UTC")
    return int(moment.astimezone(UTC).timestamp()) * NANO


def _confirm(question: str, yes: bool) -> None:
    # Only where both ends are a person: a script has made up its mind.
    if yes or not (watched(sys.stdin) and watched(sys.stderr)):
        return
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise typer.Abort


@app.command("reject")
def reject(
    id: IdArgument,
    by: ByOption,
    role: RolesOption = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; the model gets to read it.")] = None,
    terminate: Annotated[bool, typer.Option("--terminate", help="Also stop the run.")] = False,
    yes: YesOption = False,
    tenant: TenantOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Reject a request for good, and with --terminate stop its run too.

    Exit code 1 when the rejection does not count.
    """
    identity = ApproverIdentity(by, tuple(role or ()))
    with opened(store, config) as gateway:
        request = _get(gateway, id, tenant)
        note("\n".join(describe(request)))
        _confirm("Reject this and stop the run?" if terminate else "Reject this?", yes)
        answer = gateway.approvals.terminate if terminate else gateway.approvals.reject
        decided = answer(id, by=identity, reason=reason, tenant=request.tenant)
    if form is Format.JSON:
        document(request_object(decided))
    else:
        out(f"{decided.status}: {decided.id}")


@app.command("escalate")
def escalate(
    id: IdArgument,
    by: ByOption,
    to: Annotated[list[str], typer.Option("--to", metavar="ROLE", help="A role that may decide too; repeat for more.")],
    role: RolesOption = None,
    tenant: TenantOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Let further roles decide a request too."""
    with opened(store, config) as gateway:
        request = _get(gateway, id, tenant)
        decided = gateway.approvals.escalate(
            id, to=tuple(to), by=ApproverIdentity(by, tuple(role or ())), tenant=request.tenant
        )
    if form is Format.JSON:
        document(request_object(decided))
    else:
        out(f"escalated: {decided.id} may now be decided by {', '.join(to)} too")
