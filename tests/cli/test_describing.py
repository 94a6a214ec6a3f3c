"""``schema`` and ``explain``."""

from __future__ import annotations

from jsonschema import Draft202012Validator

from agentguard.documents import load
from tests.cli.conftest import POLICY, Cli


def test_the_schema_is_printed_as_json_that_an_editor_can_use(cli: Cli) -> None:
    done = cli("schema")
    assert (done.code, done.err) == (0, "")
    assert Draft202012Validator(done.json).is_valid(load(POLICY).value)
    assert not Draft202012Validator(done.json).is_valid(load(POLICY.replace("allow:", "alow:")).value)


def test_schema_takes_no_arguments(cli: Cli) -> None:
    assert cli("schema", "nonsense").code == 2
