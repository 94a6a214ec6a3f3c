"""``runs``, ``budgets``, ``kill``, ``restore``, ``switches``, and how commands find their store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agentguard import Policy, RunKilled, ToolGateway
from tests.cli.conftest import SERVICE, Cli, Place

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_runs_are_listed_newest_first(cli: Cli, place: Place) -> None:
    done = cli("runs", "list")
    rows = [line.split() for line in done.out.splitlines()]
    assert [row[0] for row in rows] == ["RUN", "run_b", "run_a"]
    assert rows[2][:6] == ["run_a", "acme", "bot", "u-17", "waiting", "approval_pending"]
    assert rows[1][4:6] == ["completed", "completed"]


def test_runs_as_json_with_times_in_utc(cli: Cli, place: Place) -> None:
    second, first = cli("runs", "list", "--format", "json").json
    assert (first["run_id"], first["tenant"], first["user"], first["roles"]) == ("run_a", "acme", "u-17", ["customer"])
    assert ISO.fullmatch(first["started_at"])
    assert first["ended_at"] is None
    assert second["stop_reason"] == "completed"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--tenant", "acme"], ["run_a"]),
        (["--agent", "other-bot"], ["run_b"]),
        (["--user", "u-17"], ["run_a"]),
        (["--status", "completed"], ["run_b"]),
        (["--limit", "1"], ["run_b"]),
        (["--session", "none"], []),
        (["--tenant", "acme", "--agent", "other-bot"], []),
    ],
)
def test_filters_narrow_the_list(cli: Cli, place: Place, options: list[str], expected: list[str]) -> None:
    assert [run["run_id"] for run in cli("runs", "list", *options, "--format", "json").json] == expected


def test_nothing_found_is_a_message_and_no_data(cli: Cli, place: Place) -> None:
    done = cli("runs", "list", "--tenant", "nobody")
    assert (done.code, done.out) == (0, "")
    assert "There are no such runs." in done.err


def test_a_run_is_shown_with_calls_and_usage(cli: Cli, place: Place) -> None:
    done = cli("runs", "show", "run_a")
    assert "user         u-17 (customer)" in done.out
    assert "task         Where is my order?" in done.out
    assert "0.0012 USD" in done.out
    assert "call_1" in done.out
    assert place.request in done.out
    assert "TIME" not in done.out


def test_what_a_model_wrote_cannot_paint_on_the_terminal(cli: Cli, place: Place) -> None:
    for form in ("text", "json"):
        done = cli("runs", "show", "run_b", "--timeline", "--format", form)
        assert "\x1b" not in done.out
        assert "\\u001b[31m" in done.out


def test_the_timeline_has_everything_in_order(cli: Cli, place: Place) -> None:
    done = cli("runs", "show", "run_a", "--timeline")
    kinds = re.findall(r"Z  (\d+) +([a-z.]+)", done.out)
    assert [int(number) for number, _ in kinds] == list(range(1, len(kinds) + 1))
    assert [kind for _, kind in kinds][:5] == [
        "run.opened",
        "call.intent",
        "call.outcome",
        "call.refused",
        "llm.charged",
    ]
    assert re.search(r"call.refused +refunds.create +policy_denied +default +", done.out)
    assert "large (" in done.out


def test_a_run_as_json(cli: Cli, place: Place) -> None:
    value = cli("runs", "show", "run_b", "--timeline", "--format", "json").json
    assert value["result"] == {"answer": "done\x1b[31m"}
    assert value["evidence"] == ["B-1"]
    assert value["warnings"] == ["careful"]
    assert value["usage"]["tool_calls"] == 1
    assert value["usage"]["cost_usd"] == "0"
    assert [step["kind"] for step in value["timeline"]][-1] == "run.completed"
    assert "timeline" not in cli("runs", "show", "run_b", "--format", "json").json


def test_a_run_of_another_tenant_is_not_found(cli: Cli, place: Place) -> None:
    assert cli("runs", "show", "run_a", "--tenant", "acme").code == 0
    done = cli("runs", "show", "run_a", "--tenant", "globex")
    assert (done.code, done.out) == (2, "")
    assert "There is no run 'run_a'" in done.err


# --- budgets -------------------------------------------------------------------------------------------


def test_budgets_show_used_limit_and_left(cli: Cli, place: Place) -> None:
    done = cli("budgets", "--run", "run_a")
    rows = [re.split(r"  +", line) for line in done.out.splitlines()]
    assert rows[0] == ["BUDGET", "DIMENSION", "USED", "RESERVED", "LIMIT", "LEFT"]
    assert ["run run_a", "cost_usd", "0.0012", "0", "0.5", "0.4988"] in rows
    assert ["run run_a", "tool_calls", "1", "0", "5", "4"] in rows
    assert ["tenant acme per month", "tool_calls", "1", "0", "1000", "999"] in rows


def test_budgets_of_all_runs_name_a_shared_account_once(cli: Cli, place: Place) -> None:
    lines = cli("budgets", "--format", "json").json
    labels = [line["label"] for line in lines if line["dimension"] == "tool_calls"]
    assert labels == ["tenant acme per month", "tenant globex per month", "run run_a", "run run_b"]
    money = next(line for line in lines if line["label"] == "run run_a" and line["dimension"] == "cost_usd")
    assert (money["used"], money["limit"], money["left"]) == ("0.0012", "0.5", "0.4988")


def test_budgets_of_a_tenant_are_its_own(cli: Cli, place: Place) -> None:
    assert "globex" not in cli("budgets", "--tenant", "acme").out


def test_dimensions_without_a_limit_are_shown_on_demand(cli: Cli, place: Place) -> None:
    assert "input_tokens" not in cli("budgets").out
    assert "input_tokens" in cli("budgets", "--all").out


def test_no_budget_is_a_message(cli: Cli, place: Place) -> None:
    done = cli("budgets", "--agent", "nobody")
    assert (done.code, done.out) == (0, "")
    assert "No run here has a limit" in done.err


# --- switches --------------------------------------------------------------------------------------------


def test_a_killed_tool_is_refused_and_works_again_after_restoring(cli: Cli, place: Place) -> None:
    killed = cli("kill", "--tool", "orders.get", "--tenant", "acme", "--reason", "it lies", "--by", "ana")
    assert (killed.code, killed.out.startswith("stopped: tool orders.get of tenant acme (since ")) == (0, True)
    gateway = ToolGateway(SERVICE, Policy(allow="*"), store=place.url)
    with gateway:
        run = gateway.resume("run_a")
        with pytest.raises(RunKilled):
            run.call("orders.get", {"order_id": "A"})
        listed = cli("switches")
        assert "it lies" in listed.out
        assert cli("restore", "--tool", "orders.get", "--tenant", "acme", "--by", "ana").out == "restored\n"
        assert run.call("orders.get", {"order_id": "A"}) == {"order_id": "A"}
    assert "No switch is on." in cli("switches").err


def test_switches_as_json(cli: Cli, place: Place) -> None:
    killed = cli("kill", "--everything", "--reason", "fire", "--by", "ana", "--format", "json").json
    assert (killed["scope"], killed["tenant"], killed["by"], killed["reason"]) == ("everything", "", "ana", "fire")
    assert ISO.fullmatch(killed["at"])
    assert cli("switches", "--format", "json").json == [killed]
    assert cli("switches", "--tenant", "nobody", "--format", "json").code == 0
    assert cli("restore", "--everything", "--by", "ana", "--format", "json").json == {"restored": True, "on": []}


def test_restoring_what_is_not_killed_is_found_out(cli: Cli, place: Place) -> None:
    done = cli("restore", "--agent", "bot", "--by", "ana")
    assert (done.code, done.out) == (1, "")
    assert "No such switch was on" in done.err


@pytest.mark.parametrize("options", [[], ["--tool", "a", "--agent", "b"], ["--everything", "--tenant", "acme"]])
def test_exactly_one_thing_is_killed(cli: Cli, place: Place, options: list[str]) -> None:
    done = cli("kill", *options, "--reason", "x", "--by", "ana")
    assert done.code == 2
    assert "AG137" in done.err
    assert done.err.count("AG137") == 1


# --- finding the store -------------------------------------------------------------------------------------


def run_ids(done: Any) -> list[str]:
    return [run["run_id"] for run in done.json]


def other_store(folder: Path, run_id: str) -> str:
    url = f"sqlite:///{folder / 'other store.db'}".replace(" ", "%20")
    with ToolGateway(store=url) as gateway, gateway.run(agent="x", run_id=run_id):
        pass
    return url


def test_an_option_beats_the_environment_beats_the_file(
    cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = other_store(place.folder, "run_o")
    listing = ("runs", "list", "--format", "json")
    assert run_ids(cli(*listing)) == ["run_b", "run_a"]
    monkeypatch.setenv("AGENTGUARD_STORE", url)
    assert run_ids(cli(*listing)) == ["run_o"]
    assert run_ids(cli(*listing, "--store", place.url)) == ["run_b", "run_a"]
    assert run_ids(cli(*listing, "--config", "agentguard.yaml")) == ["run_b", "run_a"]
    assert run_ids(cli(*listing, "--config", "agentguard.yaml", "--store", url)) == ["run_o"]


def test_a_relative_store_of_a_file_starts_in_the_folder_of_the_file(
    cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = place.folder / "deep"
    deep.mkdir()
    monkeypatch.chdir(deep)
    assert run_ids(cli("runs", "list", "--config", "../agentguard.yaml", "--format", "json")) == ["run_b", "run_a"]


def test_the_path_of_a_file_is_an_address_too(cli: Cli, place: Place) -> None:
    other_store(place.folder, "run_o")
    assert run_ids(cli("runs", "list", "--store", "other store.db", "--format", "json")) == ["run_o"]


def test_what_the_demo_left_is_found(cli: Cli, place: Place) -> None:
    (place.folder / "agentguard.yaml").unlink()
    (place.folder / "shop.db").rename(place.folder / "agentguard-demo.db")
    done = cli("runs", "list", "--format", "json")
    assert run_ids(done) == ["run_b", "run_a"]
    assert "agentguard-demo.db" in done.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "No store is named"),
        (["--store", "sqlite:///nowhere.db"], "There is no store at nowhere.db"),
        (["--store", "memory:"], "lives and ends with the process"),
        (["--store", "redis://cache/0"], "AG121"),
        (["--store", "rubbish"], "'rubbish' is no address of a store"),
        (["--store", "sqlite:///junk.db"], "no SQLite database"),
        (["--store", "sqlite:///foreign.db"], "database of another program"),
        (["--config", "nowhere.yaml"], "AG100"),
        (["--config", "storeless.yaml"], "names no store"),
        (["--config", "broken.yaml"], "broken.yaml:2:1: AG110"),
    ],
)
def test_a_store_that_cannot_be_used_is_a_configuration_error(
    cli: Cli, tmp_path: Path, options: list[str], text: str
) -> None:
    import sqlite3

    (tmp_path / "junk.db").write_text("this is no database" * 100)
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    (tmp_path / "storeless.yaml").write_text("version: 1\nrules: []\n")
    (tmp_path / "broken.yaml").write_text("version: 1\nrulez: []\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    done = cli("runs", "list", *options)
    assert (done.code, done.out) == (2, "")
    assert text in done.err
    assert "Traceback" not in done.err
    left = {path.name for path in tmp_path.iterdir()} - set(before)
    assert not [name for name in left if not name.endswith((".lock", "-wal", "-shm"))]
