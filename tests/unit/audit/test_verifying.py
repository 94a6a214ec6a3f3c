"""Whatever is done to a recorded history is found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest

from agentguard import canonical
from agentguard.audit.anchoring import Head
from agentguard.audit.exporting import Anchor, export_lines, export_record, read_line
from agentguard.audit.records import erase, parse, seal
from agentguard.audit.verifying import (
    MAX_PROBLEMS,
    AuditProblem,
    ExportReport,
    anchor,
    verify_chain,
    verify_export,
)
from agentguard.domain.events import AuditRecord, Event
from agentguard.errors import AuditError

KINDS = ("run.opened", "call.intent", "call.outcome", "step", "run.completed")
Chain = tuple[AuditRecord, ...]


def chain(kinds: Sequence[str] = KINDS, run: str = "run_1", tenant: str = "acme") -> Chain:
    out: list[AuditRecord] = []
    for seq, kind in enumerate(kinds, 1):
        body = b"" if kind == "step" else f'{{"n":{seq}}}'.encode()
        event = Event(kind, {"n": seq, "tool": "mail"}, body)  # type: ignore[arg-type]
        out.append(seal(tenant, run, seq, out[-1].hash if out else "", 10 + seq, event, f"{seq:032x}"))
    return tuple(out)


GOOD = chain()
HEAD = Head("acme", "run_1", len(GOOD), GOOD[-1].hash)


def check(records: Sequence[AuditRecord], **over: Any) -> tuple[str, ...]:
    settings: dict[str, Any] = {"head": HEAD.hash, "count": HEAD.records, "ended": True} | over
    return tuple(problem.code for problem in verify_chain(records, **settings).problems)


def test_an_untouched_chain_verifies() -> None:
    report = verify_chain(iter(GOOD), head=HEAD.hash, count=5, tenant="acme", run="run_1", ended=True)
    assert report.ok
    assert (report.records, report.runs, report.erased, report.head) == (5, 1, 0, HEAD.hash)
    assert (report.tenant, report.run) == ("acme", "run_1")


MUTATIONS: dict[str, list[Any]] = {
    "tenant": ["other", ""],
    "run_id": ["run_2", ""],
    "seq": [0, 7, -1],
    "line": [b"", b"{}", b"rubbish"],
    "hash": ["", "00" * 32, "x"],
    "salt": ["", "ff" * 16, "x"],
    "body": [b"other", b"{}", None],
}


@pytest.mark.parametrize("place", range(len(GOOD)))
@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(AuditRecord)])
def test_changing_any_single_field_of_any_record_is_found(place: int, field: str) -> None:
    for value in MUTATIONS[field]:
        changed = dataclasses.replace(GOOD[place], **{field: value})
        if changed == GOOD[place]:
            continue  # the step has no salt to begin with
        records = (*GOOD[:place], changed, *GOOD[place + 1 :])
        assert check(records), (field, value)
        assert check(records, tenant="acme", run="run_1"), (field, value)


@pytest.mark.parametrize("key", ["at", "body", "facts", "kind", "prev", "run", "seq", "tenant", "v"])
@pytest.mark.parametrize("place", range(len(GOOD)))
def test_changing_any_part_of_a_line_is_found_even_when_its_hash_is_made_to_fit(place: int, key: str) -> None:
    value = parse(GOOD[place].line)
    new = {
        "at": "99",
        "body": "12" * 32,
        "facts": {"n": 77},
        "kind": "budget.warning",
        "prev": "34" * 32,
        "run": "run_2",
        "seq": 9,
        "tenant": "other",
        "v": 2,
    }[key]
    line = canonical.dumps(value | {key: new})
    forged = dataclasses.replace(GOOD[place], line=line, hash=canonical.sha256(line))
    assert check((*GOOD[:place], forged, *GOOD[place + 1 :]))


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_flipping_any_byte_of_a_line_is_found(place: int) -> None:
    line = GOOD[place].line
    for index in range(len(line)):
        changed = line[:index] + bytes([line[index] ^ 1]) + line[index + 1 :]
        assert check((*GOOD[:place], dataclasses.replace(GOOD[place], line=changed), *GOOD[place + 1 :]))


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_a_removed_record_is_found(place: int) -> None:
    assert check(GOOD[:place] + GOOD[place + 1 :])


@pytest.mark.parametrize("place", range(len(GOOD) - 1))
def test_a_removed_record_is_found_without_knowing_the_head(place: int) -> None:
    assert "AG713" in check(GOOD[:place] + GOOD[place + 1 :], head=None, count=None)


@pytest.mark.parametrize("place", range(len(GOOD) - 1))
def test_two_exchanged_records_are_found(place: int) -> None:
    records = (*GOOD[:place], GOOD[place + 1], GOOD[place], *GOOD[place + 2 :])
    assert "AG713" in check(records, head=None, count=None)


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_a_repeated_record_is_found(place: int) -> None:
    assert "AG713" in check((*GOOD[: place + 1], *GOOD[place:]), head=None, count=None)


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_chain_cut_off_at_the_end_is_found_against_its_head(length: int) -> None:
    assert "AG715" in check(GOOD[:length], count=None)
    assert "AG715" in check(GOOD[:length], head=None)


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_an_ended_run_without_its_last_record_is_found_without_a_head(length: int) -> None:
    assert "AG716" in check(GOOD[:length], head=None, count=None)


def test_a_running_run_needs_no_terminal_record() -> None:
    assert check(GOOD[:3], head=None, count=None, ended=False) == ()


def test_a_rebuilt_chain_is_found_against_the_head() -> None:
    rebuilt = chain(("run.opened", "call.intent", "call.outcome", "sink.gap", "run.completed"))
    assert check(rebuilt) == ("AG715",)


def test_a_record_of_another_chain_with_the_right_number_is_found() -> None:
    other = chain(run="run_2")
    assert check((*GOOD[:2], other[2], *GOOD[3:])) == ("AG711", "AG712", "AG712")


def test_a_link_to_another_record_is_found() -> None:
    other = chain(("run.opened", "step", "call.outcome", "step", "run.completed"))
    assert "AG712" in check((*GOOD[:2], *other[2:]), head=None)


def test_a_whole_chain_under_another_name_is_found() -> None:
    assert "AG711" in check(GOOD, tenant="other")
    assert "AG711" in check(GOOD, run="other")


@pytest.mark.parametrize("kind", ["run.resumed", "run.stopped", "call.intent", "approval.requested", "llm.reserved"])
def test_new_work_after_the_end_is_found(kind: str) -> None:
    records = chain((*KINDS, kind))
    assert check(records, head=None, count=None) == ("AG717",)


def test_what_was_in_flight_may_report_after_the_end() -> None:
    records = chain((*KINDS, "call.outcome", "call.late", "sink.gap", "approval.expired"))
    assert check(records, head=None, count=None) == ()


def test_a_number_of_another_type_is_found() -> None:
    assert check((dataclasses.replace(GOOD[0], seq=True), *GOOD[1:])) == ("AG711",)


def test_erased_bodies_are_counted_and_are_no_fault() -> None:
    records = (*GOOD[:1], erase(GOOD[1]), *GOOD[2:])
    report = verify_chain(records, head=HEAD.hash, count=5)
    assert (report.ok, report.erased) == (True, 1)


def test_an_erased_body_whose_salt_was_kept_is_found() -> None:
    assert check((*GOOD[:1], dataclasses.replace(GOOD[1], body=None), *GOOD[2:])) == ("AG714",)


def test_an_empty_chain_is_fine_only_when_nothing_is_expected() -> None:
    report = verify_chain((), head="", count=0, tenant="acme", run="run_1")
    assert (report.ok, report.tenant, report.run) == (True, "acme", "run_1")
    assert verify_chain((), head=None, count=None).ok
    assert not verify_chain((), head=None, count=1).ok


def test_one_fault_does_not_bury_the_report() -> None:
    assert check((GOOD[0], dataclasses.replace(GOOD[1], body=b"x"), *GOOD[2:])) == ("AG714",)


def test_the_number_of_findings_is_bounded() -> None:
    report = verify_chain((GOOD[0],) * (MAX_PROBLEMS + 50), head=None, count=None)
    assert len(report.problems) == MAX_PROBLEMS + 1
    assert report.problems[-1].code == "AG719"


def test_a_problem_says_what_and_where() -> None:
    problem = AuditProblem("AG710", "the hash is wrong", "acme", "run_1", 3, 9)
    assert str(problem) == "AG710 line 9: the hash is wrong (tenant 'acme', run 'run_1', record 3)"
    assert str(AuditProblem("AG721", "cut off")) == "AG721 cut off"


# --- anchors -------------------------------------------------------------------------------------


def test_an_anchor_does_not_depend_on_the_order_of_the_heads() -> None:
    heads = [("a", "1", 3, "x"), ("a", "2", 1, "y"), ("b", "1", 0, "")]
    assert anchor(heads) == anchor(reversed(heads))
    assert len(anchor(heads)) == 64


def test_an_anchor_changes_with_every_part_of_every_head() -> None:
    digests = {
        anchor(heads)
        for heads in (
            [],
            [("a", "1", 3, "x")],
            [("b", "1", 3, "x")],
            [("a", "2", 3, "x")],
            [("a", "1", 4, "x")],
            [("a", "1", 3, "y")],
            [("a", "1", 3, "x"), ("a", "2", 3, "x")],
        )
    }
    assert len(digests) == 7


def test_an_anchor_is_built_as_documented() -> None:
    text = b'agentguard audit anchor v1\n["a","1",3,"x"]\n'
    assert anchor([("a", "1", 3, "x")]) == canonical.sha256(text)


def test_two_heads_of_one_chain_are_refused() -> None:
    with pytest.raises(AuditError, match="two heads"):
        anchor([("a", "1", 3, "x"), ("a", "1", 4, "y")])


def test_a_head_without_canonical_form_is_refused() -> None:
    with pytest.raises(AuditError, match="canonical"):
        anchor([("\ud800", "1", 3, "x")])


# --- exports -------------------------------------------------------------------------------------

OTHER = chain(("run.opened", "call.intent"), run="run_2", tenant="beta")
CHAINS = (
    (HEAD, (*GOOD[:1], erase(GOOD[1]), *GOOD[2:])),
    (Head("beta", "run_2", 2, OTHER[-1].hash), OTHER),
    (Head("beta", "run_3", 0, ""), ()),
)
LINES = tuple(export_lines(CHAINS))


def codes(report: ExportReport) -> list[str]:
    return [problem.code for problem in report.problems]


def test_an_untouched_export_verifies() -> None:
    report = verify_export(LINES)
    assert report.problems == ()
    assert report.ok
    assert (report.records, report.runs, report.erased) == (7, 3, 1)
    assert report.anchor == anchor(head for head, _ in CHAINS)
    assert verify_export(LINES, anchor=report.anchor).ok


def test_an_export_verifies_as_text_without_line_feeds() -> None:
    assert verify_export(line.decode().rstrip("\n") for line in LINES).ok


def test_every_record_comes_back_as_it_was_written() -> None:
    records = [item for item in map(read_line, LINES) if isinstance(item, AuditRecord)]
    assert records == [record for _, chain_ in CHAINS for record in chain_]


@pytest.mark.parametrize("body", [b"\xff\x00", b"plain", "\u2028 é \U0001f600".encode(), b'{"a":"\\u0000"}', b""])
def test_any_body_comes_back_as_it_was_written(body: bytes) -> None:
    record = seal("t", "r", 1, "", 1, Event("step", {}, body), "ab" * 16)
    assert read_line(export_record(record)) == record
    assert b"\n" not in export_record(record)


def test_a_record_whose_line_is_no_text_cannot_be_exported() -> None:
    with pytest.raises(AuditError, match="cannot be exported") as caught:
        export_record(dataclasses.replace(GOOD[0], line=b"\xff"))
    assert caught.value.code == "AG705"


@pytest.mark.parametrize("index", range(len(LINES)))
def test_a_line_that_was_removed_from_an_export_is_found(index: int) -> None:
    assert not verify_export(LINES[:index] + LINES[index + 1 :]).ok


@pytest.mark.parametrize("index", range(len(LINES)))
def test_a_line_that_was_repeated_in_an_export_is_found(index: int) -> None:
    assert not verify_export((*LINES[: index + 1], *LINES[index:])).ok


@pytest.mark.parametrize("index", range(len(LINES) - 1))
def test_two_exchanged_lines_of_an_export_are_found(index: int) -> None:
    assert not verify_export((*LINES[:index], LINES[index + 1], LINES[index], *LINES[index + 2 :])).ok


@pytest.mark.parametrize("length", range(len(LINES)))
def test_an_export_that_was_cut_off_is_found(length: int) -> None:
    assert "AG721" in codes(verify_export(LINES[:length]))


def _flips() -> list[tuple[int, str]]:
    return [(index, key) for index, line in enumerate(LINES) for key in json.loads(line)]


@pytest.mark.parametrize(("index", "key"), _flips())
def test_changing_any_field_of_any_line_of_an_export_is_found(index: int, key: str) -> None:
    value = json.loads(LINES[index])
    old = value[key]
    value[key] = old + 1 if type(old) is int else "7" if old is None else (old + "7")
    report = verify_export((*LINES[:index], canonical.dumps(value), *LINES[index + 1 :]))
    assert not report.ok


def test_a_run_left_out_of_a_rewritten_export_is_found_with_the_kept_anchor() -> None:
    kept = verify_export(LINES).anchor
    rewritten = tuple(export_lines(CHAINS[1:]))
    assert verify_export(rewritten).ok
    assert codes(verify_export(rewritten, anchor=kept)) == ["AG722"]


def test_a_history_shortened_together_with_its_head_is_found_with_the_kept_anchor() -> None:
    kept = verify_export(LINES).anchor
    short = tuple(export_lines([(Head("acme", "run_1", 4, GOOD[3].hash), GOOD[:4]), *CHAINS[1:]]))
    assert verify_export(short).ok
    assert codes(verify_export(short, anchor=kept)) == ["AG722"]


def test_records_that_the_store_lost_show_in_the_export() -> None:
    lines = tuple(export_lines([(HEAD, GOOD[:-1])]))
    assert codes(verify_export(lines)) == ["AG715", "AG715", "AG722"]


def test_a_chain_without_its_head_is_named() -> None:
    lines = [line for line in LINES if json.loads(line)["type"] != "head"]
    assert codes(verify_export(lines)).count("AG721") == 2


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\n",
        b"rubbish\n",
        b"[]\n",
        b"{}\n",
        b"\xff\n",
        "\ud800",
        b'{"type":"note"}',
        b'{"type":["record"]}',
        b'{"type":"record"}',
        b'{"body":null,"type":"record"}',
        b'{"body_base64":"","type":"record"}',
        b'{"type":"head"}',
        b'{"type":"anchor"}',
        b'{"type":"head","type":"head"}',
        b'{"count":1.0,"hash":"","run":"r","tenant":"t","type":"head"}',
        b'{"count":true,"hash":"","run":"r","tenant":"t","type":"head"}',
        b'{"hash":"","count":1,"run":"r","tenant":"t","type":"head"}',
        b'{"hash":"","records":0,"runs":0,"type":"anchor","v":2}',
        export_record(GOOD[0]).replace(b'"body":', b'"body_base64":'),
        export_record(GOOD[0]).replace(b'"body":"', b'"body_base64":"\xc3\xa9'),
        b" " + export_record(GOOD[0]),
        export_record(GOOD[0]) + b"\r\n",
    ],
)
def test_a_line_that_cannot_be_read_is_a_finding_with_its_number(bad: bytes | str) -> None:
    report = verify_export((*LINES[:2], bad, *LINES[2:]))
    assert [(problem.code, problem.line) for problem in report.problems] == [("AG720", 3)]


def test_an_anchor_line_reads_back() -> None:
    assert read_line(LINES[-1]) == Anchor(verify_export(LINES).anchor, 7, 3)
