"""``audit``: looking, verifying, exporting."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentguard import ToolGateway
from agentguard.cli import auditing
from tests.cli.conftest import Cli, Place


def change(place: Place, statement: str) -> None:
    """What somebody with a database client might do."""
    connection = sqlite3.connect(place.folder / "shop.db")
    with connection:
        connection.execute(statement)
    connection.close()


def head(place: Place, run: str) -> str:
    with ToolGateway(store=place.url) as gateway:
        return gateway.runs.get(run).audit_head


# --- tail ----------------------------------------------------------------------------------------------


def test_the_tail_of_all_runs_is_in_the_order_of_time(cli: Cli, place: Place) -> None:
    found = cli("audit", "tail", "--lines", "4", "--format", "json").json
    assert [entry["run"] for entry in found] == ["run_b"] * 4
    everything = cli("audit", "tail", "--lines", "1000", "--format", "json").json
    assert [entry["at"] for entry in everything] == sorted(entry["at"] for entry in everything)
    assert {entry["run"] for entry in everything} == {"run_a", "run_b"}


def test_money_in_the_trail_is_shown_in_dollars(cli: Cli, place: Place) -> None:
    out = cli("audit", "tail", "--lines", "1000").out
    assert "cost_usd 0.0012 USD" in out
    assert "1200000" not in out
    charged = [
        one for one in cli("audit", "tail", "--lines", "1000", "--format", "json").json if one["kind"] == "llm.charged"
    ]
    assert [one["facts"]["cost_usd"] for one in charged] == ["1200000"]  # as it was recorded and hashed


def test_the_tail_of_one_run_has_no_column_for_it(cli: Cli, place: Place) -> None:
    done = cli("audit", "tail", "--run", "run_a", "-n", "1")
    head, row = done.out.splitlines()
    assert head.split()[0] == "TIME"
    assert re.search(r"Z +\d+ +run.waiting|approval.requested", row)
    assert cli("audit", "tail", "--tenant", "globex").out.count("run_b") == 4


def test_following_shows_what_comes(cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Callable[[], None]] = []

    def act() -> None:
        with ToolGateway(store=place.url) as gateway:
            gateway.resume("run_a").step("plan", "think")

    def stop() -> None:
        raise KeyboardInterrupt

    steps = [lambda: None, act, stop]
    monkeypatch.setattr(auditing.time, "sleep", lambda seconds: steps.pop(0)())
    done = cli("audit", "tail", "--follow", "--lines", "1", "--format", "json")
    kinds = [json.loads(line)["kind"] for line in done.out.splitlines()]
    assert kinds[0] == "run.completed"
    assert "step" in kinds[1:]
    assert done.code == 130
    steps = [act, stop]
    assert "think" in cli("audit", "tail", "--follow", "--run", "run_a").out


# --- verify --------------------------------------------------------------------------------------------


def test_an_untouched_store_verifies(cli: Cli, place: Place) -> None:
    done = cli("audit", "verify")
    assert done.code == 0
    assert re.fullmatch(r"ok: 2 runs, \d+ records, anchor [0-9a-f]{64}\n", done.out)
    one = cli("audit", "verify", "--run", "run_b", "--format", "json").json
    assert (one["ok"], one["runs"], one["records"]) == (True, 1, 4)


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        (
            "UPDATE records SET line = CAST(replace(line, 'orders.get', 'orders.gut') AS BLOB) WHERE run_id = 'run_b' AND seq = 2",
            "AG7",
        ),
        ("UPDATE records SET body = X'7B7D' WHERE run_id = 'run_b' AND seq = 2", "AG714"),
        ("DELETE FROM records WHERE run_id = 'run_b' AND seq = 2", "AG713"),
        ("DELETE FROM records WHERE run_id = 'run_b' AND seq = 4", "AG715"),
        ("UPDATE runs SET audit_head = 'x' WHERE run_id = 'run_b'", "AG715"),
        ("UPDATE records SET run_id = 'run_b', tenant = 'globex', seq = 5 WHERE run_id = 'run_a' AND seq = 5", "AG715"),
    ],
)
def test_whatever_was_changed_in_the_store_is_found(cli: Cli, place: Place, statement: str, code: str) -> None:
    change(place, statement)
    done = cli("audit", "verify", "--run", "run_b", "--tenant", "globex")
    assert done.code == 1
    assert code in done.out
    assert done.out.splitlines()[-1].startswith("NOT OK: 1 runs")


def test_a_kept_head_is_compared(cli: Cli, place: Place) -> None:
    kept = head(place, "run_a")
    assert cli("audit", "verify", "--run", "run_a", "--head", kept).err == ""
    with ToolGateway(store=place.url) as gateway:
        gateway.resume("run_a").step("plan", "think")
    grown = cli("audit", "verify", "--run", "run_a", "--head", kept)
    assert grown.code == 0
    assert re.search(r"the head that was kept is record \d+ of \d+: the run went on since", grown.err)
    other = cli("audit", "verify", "--run", "run_a", "--head", head(place, "run_b"))
    assert (other.code, "AG715 no record of run run_a has the head" in other.out) == (1, True)


def test_a_kept_anchor_is_compared(cli: Cli, place: Place) -> None:
    anchor = cli("audit", "verify", "--format", "json").json["anchor"]
    assert cli("audit", "verify", "--anchor", anchor).code == 0
    change(place, "DELETE FROM runs WHERE run_id = 'run_b'")
    change(place, "DELETE FROM records WHERE run_id = 'run_b'")
    assert cli("audit", "verify").code == 0
    done = cli("audit", "verify", "--anchor", anchor)
    assert (done.code, "AG722" in done.out) == (1, True)


def test_erased_bodies_are_counted_and_no_fault(cli: Cli, place: Place) -> None:
    change(place, "UPDATE records SET body = NULL, salt = '' WHERE run_id = 'run_b' AND seq = 2")
    assert "1 bodies erased" in cli("audit", "verify").out


def test_a_run_that_grows_while_it_is_verified_is_read_again(
    cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, times = auditing.verify_chain, [0]

    def growing(records: object, **expected: object) -> object:
        if not times[0]:
            times[0] += 1
            with ToolGateway(store=place.url) as gateway:
                gateway.resume("run_a").step("plan", "in between")
        return verify(records, **expected)  # type: ignore[arg-type]

    monkeypatch.setattr(auditing, "verify_chain", growing)
    kept = head(place, "run_a")
    assert cli("audit", "verify", "--run", "run_a", "--head", kept).code == 0
    assert times == [1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--head", "x", "--run", "run_a"], "64 hex digits"),
        (["--anchor", "A" * 64], "64 hex digits"),
        (["--head", "a" * 64], "name it with --run"),
        (["--anchor", "a" * 64, "--run", "run_a"], "use --head with --run"),
        (["export.jsonl", "--store", "sqlite:///shop.db"], "either an export or a store"),
        (["export.jsonl", "--tenant", "acme"], "as a whole"),
        (["nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["."], "Is a directory"),
        (["--run", "run_x"], "There is no run"),
    ],
)
def test_options_that_do_not_fit_are_refused(cli: Cli, place: Place, options: list[str], text: str) -> None:
    done = cli("audit", "verify", *options)
    assert (done.code, done.out) == (2, "")
    assert text in done.err


# --- export --------------------------------------------------------------------------------------------


@pytest.fixture
def export(cli: Cli, place: Place) -> Path:
    assert cli("audit", "export", "--output", "export.jsonl").code == 0
    return place.folder / "export.jsonl"


def test_an_export_verifies_without_the_store(cli: Cli, place: Place, export: Path) -> None:
    anchor = cli("audit", "verify", "--format", "json").json["anchor"]
    (place.folder / "shop.db").unlink()
    done = cli("audit", "verify", "export.jsonl", "--anchor", anchor)
    assert (done.code, done.out.startswith("ok: 2 runs")) == (0, True)
    assert export.stat().st_mode & 0o077 == 0
    assert [path.name for path in place.folder.glob("export*")] == ["export.jsonl"]


def test_an_export_to_stdout_is_the_same(cli: Cli, place: Place, export: Path) -> None:
    done = cli("audit", "export")
    assert done.out == export.read_text()
    assert cli("audit", "verify", "-", stdin=done.out).code == 0


def test_one_run_can_be_exported(cli: Cli, place: Place) -> None:
    out = cli("audit", "export", "--run", "run_b").out
    assert {json.loads(line).get("run", "run_b") for line in out.splitlines()} == {"run_b"}


@pytest.mark.parametrize("number", range(6))
def test_a_changed_line_of_an_export_is_found(cli: Cli, export: Path, number: int) -> None:
    lines = export.read_text().splitlines(keepends=True)
    lines[number] = lines[number].replace("0", "1", 1)
    export.write_text("".join(lines))
    assert cli("audit", "verify", "export.jsonl").code == 1


def test_an_export_without_its_end_or_with_nothing_in_it_is_found(cli: Cli, export: Path) -> None:
    lines = export.read_text().splitlines(keepends=True)
    export.write_text("".join(lines[:-1]))
    assert "AG721" in cli("audit", "verify", "export.jsonl").out
    export.write_text("")
    assert cli("audit", "verify", "export.jsonl").code == 1


def test_a_kept_head_is_compared_with_an_export(cli: Cli, place: Place, export: Path) -> None:
    verify = ("audit", "verify", "export.jsonl", "--run", "run_a", "--tenant", "acme")
    assert cli(*verify, "--head", head(place, "run_a")).code == 0
    assert "AG715" in cli(*verify, "--head", head(place, "run_b")).out
    assert "has no records of run run_x" in cli("audit", "verify", "export.jsonl", "--run", "run_x").out
    export.write_text("rubbish\n" + export.read_text())
    assert "AG720 line 1" in cli(*verify).out


def test_an_existing_file_is_replaced_only_with_force(cli: Cli, export: Path) -> None:
    export.write_text("mine")
    done = cli("audit", "export", "--output", "export.jsonl")
    assert (done.code, export.read_text()) == (2, "mine")
    assert cli("audit", "export", "--output", "export.jsonl", "--force").code == 0
    assert cli("audit", "verify", "export.jsonl").code == 0


def test_a_failed_export_leaves_no_half_file(cli: Cli, place: Place) -> None:
    change(place, "UPDATE records SET line = X'ff' WHERE run_id = 'run_b' AND seq = 2")
    done = cli("audit", "export", "--output", "export.jsonl")
    assert (done.code, "AG705" in done.err) == (1, True)
    assert list(place.folder.glob("export*")) == []


def test_an_unreadable_record_is_shown_as_one(cli: Cli, place: Place) -> None:
    change(place, "UPDATE records SET line = X'ff' WHERE run_id = 'run_b' AND seq = 2")
    change(place, "UPDATE records SET body = X'ff00' WHERE run_id = 'run_b' AND seq = 3")
    out = cli("runs", "show", "run_b", "--timeline").out
    assert "unreadable" in out
    assert "\\xff\\x00" in out or "\\xff" in out
    assert sys.stdout is not None
