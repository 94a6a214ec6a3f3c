"""``init``, ``doctor``, ``version``, and what happens when something is wrong."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from agentguard import ToolGateway, __version__
from agentguard.cli import diagnosing, printing
from tests.cli.conftest import POLICY, Cli, Place, Stream

# --- init ------------------------------------------------------------------------------------------------


def test_the_first_files_fit_together_and_run(cli: Cli, tmp_path: Path) -> None:
    done = cli("init")
    assert done.out == "wrote agentguard.yaml\nwrote agentguard_tools.py\n"
    checked = cli("check", "--tools", "agentguard_tools:TOOLS")
    assert (checked.code, checked.out) == (0, "")
    ran = subprocess.run(
        [sys.executable, "agentguard_tools.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "refunded 40 for A-17" in ran.stdout
    assert "denied:" in ran.stdout
    assert "approvals approve" in ran.stdout
    assert len(cli("approvals", "list", "--format", "json").json) == 1


def test_nothing_is_overwritten(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "agentguard_tools.py").write_text("mine")
    done = cli("init")
    assert done.code == 2
    assert "agentguard_tools.py exist already; nothing was written" in done.err
    assert not (tmp_path / "agentguard.yaml").exists()
    assert (tmp_path / "agentguard_tools.py").read_text() == "mine"


def test_another_directory_can_be_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert cli("init", "sub").code == 0
    assert (tmp_path / "sub" / "agentguard.yaml").exists()
    assert cli("init", "nowhere").code == 2


# --- version -----------------------------------------------------------------------------------------------


def test_the_version_is_said_in_three_ways(cli: Cli) -> None:
    assert cli("--version").out == f"agentguard {__version__}\n"
    assert cli("version").out.startswith(f"agentguard {__version__} (Python 3.")
    value = cli("version", "--format", "json").json
    assert value["agentguard"] == __version__
    assert value["libraries"]["pydantic"] == metadata.version("pydantic")


# --- doctor ------------------------------------------------------------------------------------------------


def checks(done: Any) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["status"], check["detail"]) for check in done.json["checks"]}


def test_a_healthy_place_passes(cli: Cli, place: Place) -> None:
    done = cli("doctor", "--tools", "shop_tools:TOOLS", "--verify", "--format", "json")
    found = checks(done)
    assert done.code == 0
    assert done.json["ok"] is True
    assert found["configuration"] == ("ok", "agentguard.yaml: 3 rules fit 2 tools")
    assert "journal wal, synchronous full" in found["store, durable"][1]
    assert "schema 1" in found["store"][1]
    assert found["store, permissions"][0] == "ok"
    assert "exactly 40 of 60" in found["store, raced"][1]
    assert {status for name, (status, _) in found.items() if not name.startswith("extra")} == {"ok"}
    assert not list(place.folder.glob(".agentguard-doctor*"))


def test_the_table_is_for_people(cli: Cli, place: Place) -> None:
    done = cli("doctor")
    assert "CHECK" in done.out.splitlines()[0]
    assert "not checked against tools" in done.out
    assert "everything works" in done.err


def test_looking_changes_nothing(cli: Cli, place: Place) -> None:
    before = cli("audit", "verify").out
    cli("doctor", "--verify")
    assert cli("audit", "verify").out == before


def test_an_empty_place_is_no_failure(cli: Cli, tmp_path: Path) -> None:
    done = cli("doctor", "--format", "json")
    found = checks(done)
    assert done.code == 0
    assert found["configuration"][0] == found["store"][0] == "warn"
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_will_be_created_is_a_warning(cli: Cli, shop: Path) -> None:
    done = cli("doctor", "--format", "json")
    assert checks(done)["store"] == ("warn", "shop.db does not exist yet; the first gateway creates it")
    assert not (shop / "shop.db").exists()


def test_a_policy_that_does_not_load_fails(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(POLICY + "tools: {orders.get: {risk: high}}\n")
    assert cli("doctor", "--tools", "shop_tools:TOOLS").code == 0
    (shop / "agentguard.yaml").write_text(POLICY.replace("amount", "amuont"))
    done = cli("doctor", "--tools", "shop_tools:TOOLS")
    assert done.code == 1
    assert "AG203" in done.out
    assert "of" in done.err
    assert "checks failed" in done.err


def test_a_named_store_that_is_not_there_fails(cli: Cli, shop: Path) -> None:
    assert cli("doctor", "--store", "memory:").code == 1
    (shop / "junk.db").write_text("no database" * 200)
    done = cli("doctor", "--store", "junk.db", "--format", "json")
    assert checks(done)["store"][0] == "fail"


def test_files_that_others_may_read_or_write_are_reported(cli: Cli, place: Place) -> None:
    (place.folder / "shop.db").chmod(0o644)
    assert checks(cli("doctor", "--format", "json"))["store, permissions"][0] == "warn"
    (place.folder / "shop.db").chmod(0o666)
    assert checks(cli("doctor", "--format", "json"))["store, permissions"][0] == "fail"


def test_a_broken_chain_fails(cli: Cli, place: Place) -> None:
    connection = sqlite3.connect(place.folder / "shop.db")
    with connection:
        connection.execute("DELETE FROM records WHERE run_id = 'run_b' AND seq = 2")
    connection.close()
    assert checks(cli("doctor", "--format", "json"))["audit"] == (
        "fail",
        "run run_b does not verify; see 'agentguard audit verify'",
    )


def test_a_clock_behind_the_store_fails(cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing.time, "time_ns", lambda: 1_000_000_000)
    assert checks(cli("doctor", "--format", "json"))["clock"][0] == "fail"


def test_missing_libraries_are_reported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    there = metadata.version

    def version(name: str) -> str:
        if name in ("pybreaker", "anthropic"):
            raise metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(diagnosing.metadata, "version", version)
    done = cli("doctor", "--format", "json")
    found = checks(done)
    assert done.code == 1
    assert found["pybreaker"][0] == "fail"
    assert found["extra anthropic"] == ("warn", "not installed; if you need it: pip install 'agentguard[anthropic]'")


def test_a_store_that_grants_too_much_would_be_noticed(cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentguard.gateway.Run.count", lambda self, counter, amount=1: None)
    done = cli("doctor", "--verify", "--format", "json")
    assert (done.code, checks(done)["store, raced"][0]) == (1, "fail")


# --- usage and errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["frobnicate"], "frobnicate"),
        (["runs", "lsit"], "lsit"),
        (["runs", "list", "--frmat", "json"], "--frmat"),
        (["runs", "list", "--format", "xml"], "xml"),
        (["runs", "list", "--limit", "0"], "--limit"),
        (["runs", "show"], "RUN"),
        (["approvals", "approve", "ap_1"], "--by"),
        (["kill", "--tool", "x", "--by", "ana"], "--reason"),
        (["eval", "--tools", "x"], "--tool"),
        (["check", "a", "b"], "b"),
    ],
)
def test_a_misspelt_command_line_is_a_usage_error(cli: Cli, args: list[str], text: str) -> None:
    done = cli(*args)
    assert (done.code, done.out) == (2, "")
    assert "Usage: agentguard" in done.err
    assert "error: " in done.err
    assert text in done.err


def test_help_is_plain_and_names_the_exit_codes(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert "Exit codes: 0 fine;" in " ".join(done.out.split())
    assert "╭" not in done.out
    assert "\x1b" not in done.out


def all_commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", {})
    found = [] if inner else [(path, command)]
    for name, sub in inner.items():
        found += all_commands(sub, (*path, name))
    return found


def test_every_command_and_option_explains_itself() -> None:
    import typer

    from agentguard.cli import app

    commands = all_commands(typer.main.get_command(app))
    assert len(commands) >= 22
    for path, command in commands:
        assert command.help, path
        for parameter in command.params:
            assert getattr(parameter, "help", None), (path, parameter.name)


def test_an_internal_error_is_short_and_a_traceback_comes_on_demand(
    cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, **filters: object) -> object:
        raise RuntimeError("oh\x1b[2Jno")

    monkeypatch.setattr("agentguard.gateway.parts.Runs.list", broken)
    done = cli("runs", "list")
    assert done.code == 3
    assert "internal error: RuntimeError: oh\\x1b[2Jno" in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in cli("--debug", "runs", "list").err
    monkeypatch.setenv("AGENTGUARD_DEBUG", "1")
    assert "Traceback" in cli("runs", "list").err


def test_without_the_extra_the_pip_line_is_printed(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ImportError('no typer')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "agentguard.cli", "version"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: typer is not installed; run: pip install 'agentguard[cli]'\n"


def test_the_pip_line_is_printed_in_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import agentguard.cli

    err = Stream()
    monkeypatch.setitem(sys.modules, "agentguard.cli.application", None)
    monkeypatch.delitem(sys.modules, "agentguard.cli.application")
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as left:
        agentguard.cli.main()
    assert left.value.code == 2
    assert "pip install 'agentguard[cli]'" in err.text


def test_the_package_has_no_other_lazy_names() -> None:
    import agentguard.cli

    with pytest.raises(AttributeError, match="no attribute 'apq'"):
        _ = agentguard.cli.apq


def test_the_command_itself_works_in_a_process(cli: Cli, place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agentguard.cli", "runs", "list", "--format", "json"],
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)) == 2


def test_a_reader_that_leaves_early_is_no_error(place: Place) -> None:
    command = f"{sys.executable} -m agentguard.cli audit export --store {place.url} | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=place.folder, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


# --- printing --------------------------------------------------------------------------------------------------


def test_a_terminal_gets_colour_and_everybody_else_does_not(
    cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    assert "\x1b[" in cli("runs", "list", tty=True).out
    assert "\x1b[" in cli("runs", "show", "run_a", tty=True).out
    assert "\x1b[" not in cli("runs", "list").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in cli("runs", "list", tty=True).out


def test_what_cannot_be_seen_is_written_out() -> None:
    assert printing.safe("a\x1b[31m\u202eb\nc") == "a\\x1b[31m\\u202eb\\nc"
    assert printing.safe("caf\u00e9 \\d") == "caf\u00e9 \\d"


def test_values_become_json() -> None:
    from decimal import Decimal

    from agentguard import StopReason, Usage

    assert printing.plain({"a": (Decimal("1E+2"), StopReason.KILLED, object(), {1})}) == {
        "a": ["100", "killed", "<object>", [1]]
    }
    assert printing.plain(Usage())["cost_usd"] == "0"


def test_long_work_shows_a_bar_on_a_terminal_and_short_work_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for seconds, shown in ((0.1, False), (2.0, True)):
        err, now = Stream(tty=True), [0.0]
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(printing.time, "monotonic", lambda now=now: now[0])
        with printing.progress("counting", 3) as step:
            now[0] += seconds
            step()
            step()
        assert ("counting" in err.text) is shown
    quiet = Stream()
    monkeypatch.setattr(sys, "stderr", quiet)
    with printing.progress("counting", 3) as step:
        step()
    assert quiet.text == ""


def test_a_gateway_is_closed_after_every_command(cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    close = ToolGateway.close
    monkeypatch.setattr(ToolGateway, "close", lambda self: (closed.append(1), close(self))[1])
    cli("runs", "list")
    cli("runs", "show", "nothing")
    assert len(closed) == 2
