"""``audit``: look at the trail, prove that nothing was changed, and hand it out.

What must stay true: ``verify`` says ok only for what it has read to the end; whatever it cannot read is a
finding or an error, never skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Final

import typer

from agentguard.audit.anchoring import anchor as anchor_of
from agentguard.audit.exporting import read_line
from agentguard.audit.verifying import AuditProblem, ChainReport, verify_chain, verify_export
from agentguard.cli.opening import opened, wrong
from agentguard.cli.options import ConfigOption, Format, FormatOption, StoreOption, TenantOption
from agentguard.cli.printing import Step, document, note, out, plain, progress
from agentguard.cli.timeline import Entry, entries, show_entries
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import ReadAudit
from agentguard.domain.runs import RunRecord
from agentguard.errors import AuditError
from agentguard.gateway import ToolGateway

app = typer.Typer(help="Look at, verify and export the audit trail.", no_args_is_help=True)

_TAIL_RUNS: Final = 100
_ALL_RUNS: Final = 1_000_000
_PAGE: Final = 1000
_TRIES: Final = 5
_POLL_S: Final = 1.0

RunOption = Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only this run.")]


def _records(gateway: ToolGateway, run: RunRecord, after: int = 0) -> Iterator[AuditRecord]:
    context = run.context
    while page := gateway.store.perform(ReadAudit(context.tenant, context.run_id, after, _PAGE)):
        yield from page
        after = page[-1].seq


def _chosen(gateway: ToolGateway, run: str | None, tenant: str | None, limit: int) -> tuple[RunRecord, ...]:
    if run is not None:
        return (gateway.runs.get(run, tenant=tenant),)
    return gateway.runs.list(tenant=tenant, limit=limit)


# --- tail --------------------------------------------------------------------------------------------


@app.command("tail")
def tail(
    run: RunOption = None,
    tenant: TenantOption = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="So many of the last records.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as records come, until stopped.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show the last records of a run, or of the 100 newest runs together in the order of time."""
    with opened(store, config) as gateway:
        seen: dict[tuple[str, str], int] = {}
        found: list[Entry] = []
        for record in _chosen(gateway, run, tenant, _TAIL_RUNS):
            seen[record.context.tenant, record.context.run_id] = record.audit_seq
            found += _upto(entries(_records(gateway, record, max(record.audit_seq - lines, 0))), record.audit_seq)
        found.sort(key=lambda entry: (entry.at, entry.run, entry.seq))
        _show(found[-lines:], form, runs=run is None, stream=follow)
        while follow:
            sys.stdout.flush()
            time.sleep(_POLL_S)
            fresh = list(_fresh(gateway, run, tenant, seen))
            if fresh:
                _show(sorted(fresh, key=lambda e: (e.at, e.run, e.seq)), form, runs=run is None, stream=True)


def _upto(found: Iterable[Entry], last: int) -> list[Entry]:
    return [entry for entry in found if entry.seq <= last]


def _fresh(
    gateway: ToolGateway, run: str | None, tenant: str | None, seen: dict[tuple[str, str], int]
) -> Iterator[Entry]:
    for record in _chosen(gateway, run, tenant, _TAIL_RUNS):
        key = record.context.tenant, record.context.run_id
        after = seen.get(key, 0)
        if record.audit_seq > after:
            seen[key] = record.audit_seq
            yield from _upto(entries(_records(gateway, record, after)), record.audit_seq)


def _show(found: list[Entry], form: Format, *, runs: bool, stream: bool) -> None:
    if form is Format.TEXT:
        show_entries(found, runs=runs)
    elif stream:
        for entry in found:
            out(_line(entry))
    else:
        document([entry.as_object() for entry in found])


def _line(entry: Entry) -> str:
    return json.dumps(plain(entry.as_object()), separators=(",", ":"))


# --- verify ------------------------------------------------------------------------------------------


@app.command("verify")
def verify(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="An export to check, - for stdin; by default the store itself is checked."
        ),
    ] = None,
    run: RunOption = None,
    tenant: TenantOption = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", metavar="HEX", help="Anchor that was kept: of exactly these runs.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="HEX", help="Head of --run that was kept; the run may have gone on since."),
    ] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Check that no record was changed, removed, added, moved or cut off; of an export without the store.

    Whoever can write the store can also write a new chain: keep heads or the anchor elsewhere and compare.
    Exit code 1 when something is wrong.
    """
    for option, digest in (("--anchor", anchor), ("--head", head)):
        if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
            wrong(f"{option} is 64 hex digits, not {digest!r:.80}")
    if head is not None and run is None:
        wrong("--head belongs to one run; name it with --run.")
    if anchor is not None and (run is not None or (file is not None and tenant is not None)):
        wrong("--anchor speaks about all runs; use --head with --run.")
    if file is not None:
        if store is not None or config is not None:
            wrong("Name either an export or a store.")
        if tenant is not None and run is None:
            wrong("An export is checked as a whole; --tenant only tells which --run is meant.")
        found = _verify_file(file, run, tenant, anchor, head)
    else:
        with opened(store, config) as gateway:
            found = _verify_store(gateway, run, tenant, anchor, head)
    if form is Format.JSON:
        document(found)
    else:
        for problem in found["problems"]:
            out(problem["text"])
        for text in found["notes"]:
            note(text)
        erased = f", {found['erased']} bodies erased" if found["erased"] else ""
        summary = f"{found['runs']} runs, {found['records']} records{erased}, anchor {found['anchor']}"
        out(f"{'ok' if found['ok'] else 'NOT OK'}: {summary}")
    raise typer.Exit(0 if found["ok"] else 1)


def _problem(problem: AuditProblem) -> dict[str, Any]:
    return {**plain(problem), "text": str(problem)}


def _answer(
    problems: list[dict[str, Any]], runs: int, records: int, erased: int, anchor: str, notes: list[str]
) -> dict[str, Any]:
    return {
        "ok": not problems,
        "runs": runs,
        "records": records,
        "erased": erased,
        "anchor": anchor,
        "problems": problems,
        "notes": notes,
    }


def _kept(head: str, places: dict[str, int], last: int, run: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare a kept head with the hashes of a chain as they were recomputed."""
    place = places.get(head)
    if place is None:
        text = f"AG715 no record of run {run} has the head that was kept; the chain is not the one it was taken from"
        return [{"code": "AG715", "message": text, "tenant": "", "run": run, "seq": 0, "line": 0, "text": text}], []
    if place < last:
        return [], [f"the head that was kept is record {place} of {last}: the run went on since"]
    return [], []


def _verify_store(
    gateway: ToolGateway, run: str | None, tenant: str | None, anchor: str | None, head: str | None
) -> dict[str, Any]:
    chosen = _chosen(gateway, run, tenant, _ALL_RUNS)
    problems: list[dict[str, Any]] = []
    notes: list[str] = []
    heads: list[tuple[str, str, int, str]] = []
    records = erased = 0
    with progress("verifying", sum(r.audit_seq for r in chosen)) as step:
        for record in reversed(chosen):
            places: dict[str, int] = {}
            report = _chain(gateway, record, step, places if head is not None else None)
            problems += map(_problem, report.problems)
            records += report.records
            erased += report.erased
            heads.append((record.context.tenant, record.context.run_id, report.records, report.head))
            if head is not None:
                more, said = _kept(head, places, report.records, record.context.run_id)
                problems += more
                notes += said
    found = anchor_of(heads)
    if anchor is not None and anchor != found:
        text = "AG722 the chains in the store are not those of the anchor that was kept: it has grown, or was changed"
        problems.append({"code": "AG722", "message": text, "tenant": "", "run": "", "seq": 0, "line": 0, "text": text})
    return _answer(problems, len(chosen), records, erased, found, notes)


def _chain(gateway: ToolGateway, record: RunRecord, step: Step, places: dict[str, int] | None) -> ChainReport:
    """Check one chain against the head that the store has for it.

    A run that is under way may grow between the reading of its head and of its records; then it is read again.
    """
    context = record.context
    tries = 0
    while True:
        tries += 1
        if places is not None:
            places.clear()
        report = verify_chain(
            _counted(_records(gateway, record), step, places),
            head=record.audit_head,
            count=record.audit_seq,
            tenant=context.tenant,
            run=context.run_id,
            ended=record.ended_at is not None,
        )
        again = gateway.runs.get(context.run_id, tenant=context.tenant)
        if report.ok or again.audit_seq == record.audit_seq or tries == _TRIES:
            return report
        record = again


def _counted(records: Iterator[AuditRecord], step: Step, places: dict[str, int] | None) -> Iterator[AuditRecord]:
    for number, record in enumerate(records, 1):
        if places is not None:
            # Of the line itself: what the record claims to be its hash is checked elsewhere.
            places[hashlib.sha256(record.line).hexdigest()] = number
        step()
        yield record


@contextlib.contextmanager
def _reading(file: Path) -> Generator[IO[bytes], None, None]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with file.open("rb") as stream:
        yield stream


def _verify_file(
    file: Path, run: str | None, tenant: str | None, anchor: str | None, head: str | None
) -> dict[str, Any]:
    places: dict[str, int] = {}
    counted = [0]
    with _reading(file) as stream, progress("verifying") as step:

        def lines() -> Iterator[bytes]:
            for raw in stream:
                step()
                if run is not None:
                    _place(raw, run, tenant, places, counted)
                yield raw

        report = verify_export(lines(), anchor=anchor)
    problems = [_problem(problem) for problem in report.problems]
    notes: list[str] = []
    if run is not None and not counted[0]:
        text = f"AG721 the export has no records of run {run}"
        problems.append({"code": "AG721", "message": text, "tenant": "", "run": run, "seq": 0, "line": 0, "text": text})
    elif run is not None and head is not None:
        more, notes = _kept(head, places, counted[0], run)
        problems += more
    return _answer(problems, report.runs, report.records, report.erased, report.anchor, notes)


def _place(raw: bytes, run: str, tenant: str | None, places: dict[str, int], counted: list[int]) -> None:
    try:
        item = read_line(raw)
    except AuditError:
        return  # the verifier reports it
    if isinstance(item, AuditRecord) and item.run_id == run and tenant in (None, item.tenant):
        counted[0] += 1
        places[hashlib.sha256(item.line).hexdigest()] = counted[0]


# --- export ------------------------------------------------------------------------------------------


@app.command("export")
def export(
    run: RunOption = None,
    tenant: TenantOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here instead of to stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Write the audit trail as JSON Lines that 'audit verify FILE' checks without the store.

    The last line is the anchor: keep it elsewhere, and whole runs cannot be left out later either.
    """
    if output is not None and output.exists() and not force:
        wrong(f"{output} exists; name another file or pass --force.")
    with opened(store, config) as gateway:
        total = sum(r.audit_seq for r in _chosen(gateway, run, tenant, _ALL_RUNS))
        lines = gateway.audit.export(run, tenant=tenant)
        with progress("exporting", total) as step:
            if output is None:
                sys.stdout.flush()
                _write(lines, sys.stdout.buffer, step)
            else:
                _replace(output, lines, step)
    if output is not None:
        note(f"wrote {output}")


def _write(lines: Iterable[bytes], stream: IO[bytes], step: Step) -> None:
    for line in lines:
        stream.write(line)
        step()
    stream.flush()


def _replace(output: Path, lines: Iterable[bytes], step: Step) -> None:
    """Write a whole file or none: it may hold personal data, so it is readable by its owner only."""
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
            _write(lines, stream, step)
            os.fsync(stream.fileno())
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
