"""``fmt``."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli

MESSY = "version: 1   \nrules:\n  - allow: 'x'\n    id: a\n"
TIDY = 'version: 1\nrules:\n  - id: a\n    allow: "x"\n'


def test_a_file_is_formatted_in_place(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(MESSY)
    path.chmod(0o640)
    done = cli("fmt", "a.yaml")
    assert (done.code, done.out, done.err) == (0, "formatted a.yaml\n", "")
    assert path.read_text() == TIDY
    assert path.stat().st_mode & 0o777 == 0o640
    assert [child.name for child in tmp_path.iterdir()] == ["a.yaml"]
    assert cli("fmt", "a.yaml").out == ""


def test_check_writes_nothing_and_fails_when_a_file_would_change(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MESSY)
    (tmp_path / "b.yaml").write_text(TIDY)
    done = cli("fmt", "--check", "a.yaml", "b.yaml")
    assert (done.code, done.out) == (1, "would format a.yaml\n")
    assert (tmp_path / "a.yaml").read_text() == MESSY
    assert cli("fmt", "--check", "b.yaml").code == 0


def test_other_line_ends_count_as_a_change(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(TIDY.replace("\n", "\r\n").encode())
    assert cli("fmt", "--check", "a.yaml").code == 1


def test_the_results_as_json(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MESSY)
    assert cli("fmt", "a.yaml", "--format", "json").json == [{"file": "a.yaml", "changed": True, "left_alone": None}]


def test_a_file_that_cannot_be_formatted_safely_is_left_alone_with_a_message(cli: Cli, tmp_path: Path) -> None:
    text = "version: 1\nrules:\n  - {allow: x, message: 'one\n\n\n      two'}\n"
    (tmp_path / "a.yaml").write_text(text)
    done = cli("fmt", "a.yaml")
    assert done.code == 0
    assert done.err == "a.yaml: left alone: its values would not be the same\n"
    assert (tmp_path / "a.yaml").read_text() == text


def test_what_is_no_policy_is_a_configuration_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("rulse: []\n")
    done = cli("fmt", "a.yaml")
    assert (done.code, "AG110" in done.err) == (2, True)
    assert cli("fmt", "missing.yaml").code == 2
    assert cli("fmt").code == 2
