"""What a record is: canonical, complete, tamper-evident, erasable."""

from __future__ import annotations

import dataclasses
import json
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import canonical
from agentguard.audit.records import KINDS, MAX_LINE, body_matches, erase, parse, seal, strict_json
from agentguard.domain.events import AuditRecord, Event
from agentguard.errors import AuditError

SALT = "0123456789abcdef" * 2
PREV = "ab" * 32

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.from_regex(r"[A-Za-z0-9_.:/-]{1,12}", fullmatch=True)
values = st.one_of(texts, st.integers(), st.booleans(), st.none())


def sealed(facts: Any = None, body: bytes = b'{"a":1}', **over: Any) -> AuditRecord:
    given_: dict[str, Any] = {
        "tenant": "acme",
        "run_id": "run_1",
        "seq": 2,
        "prev": PREV,
        "at": 1_700_000_000_000_000_001,
    } | over
    return seal(event=Event("call.intent", {"tool": "mail"} if facts is None else facts, body), salt=SALT, **given_)


@given(facts=st.dictionaries(names, values, max_size=8), tenant=texts, run=texts, body=st.binary(max_size=50))
def test_every_line_is_the_canonical_json_of_its_content(
    facts: dict[str, Any], tenant: str, run: str, body: bytes
) -> None:
    record = sealed(facts, body, tenant=tenant, run_id=run)
    expected = {
        "at": "1700000000000000001",
        "body": canonical.sha256(bytes.fromhex(SALT) + body) if body else "",
        "facts": facts,
        "kind": "call.intent",
        "prev": PREV,
        "run": run,
        "seq": 2,
        "tenant": tenant,
        "v": 1,
    }
    assert record.line == canonical.dumps(expected)
    assert record.hash == canonical.sha256(record.line)
    assert parse(record.line) == expected


def test_the_record_is_an_ordinary_frozen_audit_record() -> None:
    record = sealed()
    assert type(record) is AuditRecord
    assert record == dataclasses.replace(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.seq = 3  # type: ignore[misc]


def test_the_order_in_which_facts_arrive_does_not_matter() -> None:
    assert sealed({"b": 1, "a": 2, "c": None}) == sealed({"c": None, "a": 2, "b": 1})


def test_mappings_and_enums_are_written_as_their_plain_values() -> None:
    class Word(StrEnum):
        A = "a"

    class Number(IntEnum):
        ONE = 1

    record = sealed(MappingProxyType({"w": Word.A, "n": Number.ONE, "plain": True}))
    assert parse(record.line)["facts"] == {"n": 1, "plain": True, "w": "a"}


@pytest.mark.parametrize("value", [1.5, float("nan"), b"x", [], {}, object()])
def test_a_fact_that_is_not_flat_is_refused(value: Any) -> None:
    with pytest.raises(AuditError, match="belongs into the body") as caught:
        sealed({"x": value})
    assert caught.value.code == "AG701"


@pytest.mark.parametrize("name", ["", "a b", "é", 'a"', "x" * 129, 1, None])
def test_a_fact_with_an_unfit_name_is_refused(name: Any) -> None:
    with pytest.raises(AuditError, match="cannot be called"):
        sealed({name: 1})


@pytest.mark.parametrize(
    "over",
    [
        {"seq": 0},
        {"seq": -1, "prev": ""},
        {"seq": 1},
        {"prev": ""},
        {"prev": "ab"},
        {"prev": '"' * 64},
        {"prev": "é" * 64},
        {"at": -1},
        {"at": 1.5},
        {"seq": 2.0},
        {"seq": True},
    ],
)
def test_a_place_that_cannot_be_is_refused(over: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match="cannot stand"):
        sealed(**over)


def test_an_unknown_kind_is_refused() -> None:
    event = Event("call.imagined", {})  # type: ignore[arg-type]
    with pytest.raises(AuditError, match="cannot stand"):
        seal("acme", "run_1", 1, "", 1, event, SALT)


@pytest.mark.parametrize("salt", ["", "ab", "zz" * 16, "ab" * 17])
def test_a_body_without_a_proper_salt_is_refused(salt: str) -> None:
    with pytest.raises(AuditError, match="salt"):
        seal("acme", "run_1", 1, "", 1, Event("step", {}, b"x"), salt)


def test_a_salt_in_capitals_is_kept_in_the_one_form_that_verifies() -> None:
    record = seal("acme", "run_1", 1, "", 1, Event("step", {}, b"x"), SALT.upper())
    assert record.salt == SALT
    assert body_matches(record, parse(record.line)["body"])


@pytest.mark.parametrize("over", [{"tenant": "\ud800"}, {"run_id": "\udfff"}, {"tenant": 1}, {"run_id": None}])
def test_names_without_a_canonical_form_are_refused(over: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match="no canonical form"):
        sealed(**over)


def test_a_fact_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(AuditError, match="no canonical form"):
        sealed({"x": "\ud800"})


def test_facts_that_do_not_fit_a_line_are_refused_and_never_cut() -> None:
    room = MAX_LINE - len(sealed({"x": ""}).line)
    assert len(sealed({"x": "y" * room}).line) == MAX_LINE
    with pytest.raises(AuditError, match="65536 bytes") as caught:
        sealed({"x": "y" * (room + 1)})
    assert caught.value.code == "AG702"


def test_a_long_body_is_kept_beside_the_line() -> None:
    record = sealed(body=b"y" * 1_000_000)
    assert len(record.line) < 500
    assert record.body == b"y" * 1_000_000


def test_a_record_without_a_body_has_no_salt() -> None:
    record = sealed(body=b"")
    assert (record.salt, parse(record.line)["body"]) == ("", "")
    assert body_matches(record, "")


def test_equal_bodies_with_other_salts_have_other_digests() -> None:
    event = Event("step", {}, b"yes")
    one, two = (seal("t", "r", 1, "", 1, event, salt) for salt in (SALT, SALT[::-1]))
    assert parse(one.line)["body"] != parse(two.line)["body"]


def test_erasing_a_body_removes_the_salt_and_leaves_the_line() -> None:
    record = sealed()
    gone = erase(record)
    assert (gone.body, gone.salt) == (None, "")
    assert (gone.line, gone.hash) == (record.line, record.hash)
    assert body_matches(gone, parse(gone.line)["body"])
    assert erase(gone) is gone


def test_erasing_what_never_had_a_body_changes_nothing() -> None:
    record = sealed(body=b"")
    assert erase(record) is record


@pytest.mark.parametrize(
    "change",
    [
        {"body": b"other"},
        {"body": b""},
        {"body": None},
        {"salt": ""},
        {"salt": "00" * 16},
        {"salt": SALT.upper()},
        {"salt": SALT + "00"},
    ],
)
def test_a_body_or_salt_that_is_not_the_recorded_one_does_not_match(change: dict[str, Any]) -> None:
    record = sealed()
    assert not body_matches(dataclasses.replace(record, **change), parse(record.line)["body"])


@pytest.mark.parametrize("change", [{"body": b"x"}, {"body": None}, {"salt": SALT}])
def test_nothing_matches_where_no_body_was(change: dict[str, Any]) -> None:
    assert not body_matches(dataclasses.replace(sealed(body=b""), **change), "")


GOOD: dict[str, Any] = {
    "at": "1",
    "body": "",
    "facts": {"a": 1},
    "kind": "step",
    "prev": "",
    "run": "r",
    "seq": 1,
    "tenant": "t",
    "v": 1,
}


def test_every_kind_can_be_sealed_and_read_back() -> None:
    for kind in KINDS:
        event = Event(kind, {})  # type: ignore[arg-type]
        assert parse(seal("t", "r", 1, "", 0, event, SALT).line)["kind"] == kind


@pytest.mark.parametrize(
    "change",
    [
        {"at": 1},
        {"at": "01"},
        {"at": "-1"},
        {"at": "1\n"},
        {"body": "x"},
        {"body": None},
        {"body": "AB" * 32},
        {"facts": []},
        {"facts": {"a": []}},
        {"facts": {"a b": 1}},
        {"kind": "nope"},
        {"kind": 1},
        {"prev": PREV},
        {"prev": "", "seq": 2},
        {"prev": "x", "seq": 2},
        {"prev": None, "seq": 2},
        {"seq": 0},
        {"seq": True},
        {"seq": "1"},
        {"run": 1},
        {"tenant": None},
        {"v": 2},
        {"v": True},
        {"more": 1},
    ],
)
def test_reading_a_line_is_strict_about_every_field(change: dict[str, Any]) -> None:
    parse(canonical.dumps(GOOD))
    with pytest.raises(AuditError) as caught:
        parse(canonical.dumps(GOOD | change))
    assert caught.value.code == "AG703"


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_line_that_lacks_a_field_is_refused(key: str) -> None:
    with pytest.raises(AuditError):
        parse(canonical.dumps({k: v for k, v in GOOD.items() if k != key}))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b"\xff",
        b"[" * 60_000,
        b"{" * 10,
        json.dumps(GOOD).encode(),
        canonical.dumps(GOOD).replace(b'"a":1', b'"a":1,"a":1'),
        canonical.dumps(GOOD).replace(b'"a":1', b'"a":1.5'),
        canonical.dumps(GOOD).replace(b'"a":1', b'"a":NaN'),
        canonical.dumps(GOOD).replace(b'"a":1', b'"a":"\\ud800"'),
        canonical.dumps(GOOD).replace(b'"a":1', b'"a":"\\u0041"'),
        canonical.dumps(GOOD) + b"\n",
        canonical.dumps(GOOD | {"run": "x" * MAX_LINE}),
    ],
)
def test_bytes_that_seal_cannot_have_written_are_refused(line: bytes) -> None:
    with pytest.raises(AuditError) as caught:
        parse(line)
    assert caught.value.code == "AG703"


def test_strict_json_takes_integers_of_any_size() -> None:
    assert strict_json(b"123456789012345678901234567890") == 123456789012345678901234567890
