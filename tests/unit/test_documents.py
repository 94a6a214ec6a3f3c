"""Strict YAML: what is read, what is refused, and where the finding points."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
import yaml

from agentguard.documents import MAX_BYTES, MAX_NODES, did_you_mean, load, load_file, printable
from agentguard.errors import PolicyError


def refused(text: str | bytes) -> str:
    with pytest.raises(PolicyError) as caught:
        load(text, "f.yaml")
    (finding,) = caught.value.findings
    assert finding.file == "f.yaml"
    return f"{finding.line}:{finding.column}:{finding.code}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", 1),
        ("a: -2", -2),
        ("a: 0", 0),
        ("a: 2.50", 2.5),
        ("a: true", True),
        ("a: false", False),
        ("a: null", None),
        ("a:", None),
        ("a: 'null'", "null"),
        ('a: "1"', "1"),
        ("a: no", "no"),
        ("a: on", "on"),
        ("a: yes", "yes"),
        ("a: 10:00", "10:00"),
        ("a: 2026-01-01", "2026-01-01"),
        ("a: 1.2.3", "1.2.3"),
        ("a: '0100'", "0100"),
        ("a: 5m", "5m"),
        ("a: .", "."),
        ("a: nan", "nan"),
        ("a: |\n  x\n  y\n", "x\ny\n"),
        ("a: [1, [x], {b: 2}]", [1, ["x"], {"b": 2}]),
        ("a: é", "é"),
        ("\ufeffa: 1", 1),
        ("a: x\r\n", "x"),
    ],
)
def test_scalars_have_the_types_of_json_and_everything_else_is_text(text: str, value: object) -> None:
    got = load(text).value["a"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "1:1:AG100"),
        ("# only a comment\n", "1:1:AG100"),
        ("a: 1\nb: \xff".encode("latin-1"), "2:4:AG101"),
        ("a: x\u200by", "1:5:AG101"),
        ("a: x\u202ey", "1:5:AG101"),
        ("a: \x1b[0m", "1:4:AG101"),
        ("# \u2066\na: 1", "1:3:AG101"),
        ('a: "\\0"', "1:4:AG101"),
        ('a: "\\r"', "1:4:AG101"),
        ("a: \ud800", "1:4:AG101"),
        ("a: e\u0301", "1:4:AG101"),
        ("a: " + "x" * MAX_BYTES, "1:1:AG102"),
        ("a: " + "é" * (MAX_BYTES // 2), "1:1:AG102"),
        (b"a: " + b"x" * MAX_BYTES, "1:1:AG102"),
        ("[" * 50_000, "1:21:AG102"),
        ("{a: " * 50_000, "1:81:AG102"),
        ("[" + "1," * (MAX_NODES + 1) + "]", f"1:{2 * MAX_NODES}:AG102"),
        ("a: [1, 2", "2:1:AG103"),
        ("a:\n\t- b", "2:1:AG103"),
        ("a: b: c", "1:5:AG103"),
        ('a: "\\ud800"', "1:7:AG103"),
        ("a: 1\na: 2", "2:1:AG104"),
        ("x: {a: 1, 'a': 2}", "1:11:AG104"),
        ("a: &x 1", "1:4:AG105"),
        ("a: *x", "1:4:AG105"),
        ("&x a: 1", "1:1:AG105"),
        ("a: !!int 1", "1:4:AG105"),
        ("a: ! 1", "1:4:AG105"),
        ("a: !!python/object:os.system x", "1:4:AG105"),
        ("<<: {a: 1}", "1:1:AG105"),
        ("a: 1\n---\nb: 2", "2:1:AG105"),
        ("%YAML 1.1\n---\na: 1", "1:1:AG105"),
        ("a: 0100", "1:4:AG106"),
        ("a: 0x1F", "1:4:AG106"),
        ("a: 0o17", "1:4:AG106"),
        ("a: 0b1", "1:4:AG106"),
        ("a: 1_000", "1:4:AG106"),
        ("a: +5", "1:4:AG106"),
        ("a: .5", "1:4:AG106"),
        ("a: 5.", "1:4:AG106"),
        ("a: 1e3", "1:4:AG106"),
        ("a: .nan", "1:4:AG106"),
        ("a: -.inf", "1:4:AG106"),
        ("a: " + "9" * 5_000, "1:4:AG106"),
        ("a: True", "1:4:AG106"),
        ("a: NULL", "1:4:AG106"),
        ("a: ~", "1:4:AG106"),
        ("1: a", "1:1:AG107"),
        ("true: a", "1:1:AG107"),
        ("? [a]\n: b", "1:3:AG107"),
    ],
)
def test_what_is_not_plain_is_refused_where_it_stands(text: str | bytes, where: str) -> None:
    assert refused(text) == where


def test_a_position_is_known_for_every_key_and_value() -> None:
    document = load("rules:\n  - id: a\n    allow: [x, yy]\n", "p.yaml")
    assert document.where(("rules", 0, "id")) == (2, 9)
    assert document.key_where(("rules", 0, "allow")) == (3, 5)
    assert document.where(("rules", 0, "allow", 1)) == (3, 16)
    assert document.key_where(("rules", 0)) == (2, 5)


def test_a_path_that_does_not_exist_points_at_the_nearest_part_above() -> None:
    document = load("a:\n  b: 1\n")
    assert document.where(("a", "c", 3)) == (2, 3)
    assert load("a: 1").where(("zzz",)) == (1, 1)


def test_the_root_position_is_known_even_for_a_document_without_one() -> None:
    from agentguard.documents import Document

    assert Document({}, "x", "").where(("a",)) == (1, 1)


def test_a_finding_shows_the_line_with_a_caret() -> None:
    finding = load("a: 1\nrulse: 2\n", "p.yaml").finding(
        "AG110", "unknown key", ("rulse",), key=True, hint=did_you_mean("rulse", ["rules", "name"])
    )
    assert str(finding) == 'p.yaml:2:1: AG110 unknown key (did you mean "rules"?)\n    rulse: 2\n    ^'


def test_a_finding_far_to_the_right_comes_without_the_line() -> None:
    document = load("a: [" + "x, " * 200 + "y]")
    assert document.finding("AG110", "m", ("a", 199)).excerpt is None


def test_excerpts_never_carry_control_characters() -> None:
    with pytest.raises(PolicyError) as caught:
        load("a: \x1b[31m")
    assert "\x1b" not in str(caught.value)


def test_hints_are_given_only_for_something_close() -> None:
    assert did_you_mean("amuont", ["amount", "order_id"]) == 'did you mean "amount"?'
    assert did_you_mean("AMOUNT", ["amount"]) == 'did you mean "amount"?'
    assert did_you_mean("zzz", ["amount"]) == ""


def test_long_text_is_shortened_for_messages() -> None:
    assert printable("a\nb\tc") == "a b c"
    assert printable("x" * 100, 10) == "xxxxxxx..."


def test_a_file_is_read_under_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("a: 1\n")
    assert load_file(file).value == {"a": 1}
    assert load_file(str(file)).source == str(file)


def test_unreadable_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    large = tmp_path / "large"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    (tmp_path / "file").write_text("a: 1")
    for path, code, words in [
        (tmp_path / "nothing.yaml", "AG100", "does not exist"),
        (tmp_path, "AG100", "not a regular file"),
        (fifo, "AG100", "not a regular file"),
        (tmp_path / "file" / "x", "AG100", "cannot be read"),
        (Path("nul\0byte"), "AG100", "cannot be read"),
        (large, "AG102", "larger than 256 KiB"),
    ]:
        with pytest.raises(PolicyError) as caught:
            load_file(path)
        assert caught.value.code == code
        assert words in str(caught.value)


def test_without_the_c_parser_the_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert load("a: [no, 1, '1', {b: null}]").value == {"a": ["no", 1, "1", {"b": None}]}
    assert refused("a: 1\na: 2") == "2:1:AG104"
    assert refused("[" * 50_000) == "1:21:AG102"
    assert refused("a: \U000e0001") == "1:4:AG101"
    assert refused("a: &x 1") == "1:4:AG105"
    assert refused("a: [1, 2").endswith("AG103")


def test_an_error_of_the_reader_without_a_mark_is_a_finding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*_: object, **__: object) -> object:
        raise yaml.YAMLError("broken")

    monkeypatch.setattr(yaml, "parse", parse)
    assert refused("a: 1") == "1:1:AG103"


@pytest.mark.parametrize(
    "text",
    [
        "? " * 20_000,
        "- " * 100_000,
        "---\na\n" * 20_000,
        "a: " + "x " * 130_000,
        '"' * 100_000,
        "#" * 250_000,
        "a" + ":" * 200_000,
        "%" * 200_000,
        "{" + "? " * 20_000,
        "".join(" " * i + "a:\n" for i in range(600)),
        'a: "' + "x\n\n" * 80_000 + '"',
        "\n".join(f"k{i}: v" for i in range(12_000)),
        "[" + "1," * 49_000 + "]",
    ],
)
def test_hostile_text_is_answered_within_a_second(text: str) -> None:
    start = time.thread_time()
    with contextlib.suppress(PolicyError):
        load(text)
    assert time.thread_time() - start < 1
