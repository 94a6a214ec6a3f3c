"""``schema`` and ``explain``."""

from __future__ import annotations

from pathlib import Path

from jsonschema import Draft202012Validator

from agentguard import StopReason
from agentguard.cli.describing import catalogue
from agentguard.documents import load
from tests.cli.conftest import POLICY, Cli


def test_the_schema_is_printed_as_json_that_an_editor_can_use(cli: Cli) -> None:
    done = cli("schema")
    assert (done.code, done.err) == (0, "")
    assert Draft202012Validator(done.json).is_valid(load(POLICY).value)
    assert not Draft202012Validator(done.json).is_valid(load(POLICY.replace("allow:", "alow:")).value)


def test_schema_takes_no_arguments(cli: Cli) -> None:
    assert cli("schema", "nonsense").code == 2


def test_a_code_is_explained(cli: Cli) -> None:
    done = cli("explain", "ag203")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("code        AG203\n")
    assert "what to do  " in done.out


def test_a_stop_reason_is_explained(cli: Cli) -> None:
    assert cli("explain", "policy_denied", "--format", "json").json == {
        "code": "policy_denied",
        "title": "stop reason",
        "meaning": "No rule allows the call, or one denies it.",
    }


def test_without_a_code_all_are_listed(cli: Cli) -> None:
    assert "AG203  " in cli("explain").out
    listed = {about["code"] for about in cli("explain", "--format", "json").json}
    assert {"AG100", *map(str, StopReason)} <= listed


def test_an_unknown_code_is_a_usage_error_that_names_the_next_one(cli: Cli) -> None:
    done = cli("explain", "polcy_denied")
    assert done.code == 2
    assert 'There is no code polcy_denied (did you mean "policy_denied"?)' in done.err
    assert cli("explain", "").code == 2


def test_the_catalogue_that_is_shipped_is_the_one_the_pages_are_made_of() -> None:
    root = Path(__file__).parents[2]
    shipped = root / "src" / "agentguard" / "cli" / "codes.toml"
    assert shipped.read_bytes() == (root / "docs" / "codes.toml").read_bytes(), "run: python docs/generate.py"
    assert all(about["title"] and about["meaning"] for about in catalogue().values())
