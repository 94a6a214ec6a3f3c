"""``test``: policy cases."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Cli

GOOD = """\
tools: shop_tools:TOOLS
file: agentguard.yaml
cases:
  - {say: anybody may look, tool: orders.get, args: {order_id: A}, verdict: allow, rules: [read]}
  - {say: small sums are paid, tool: refunds.create, args: {order_id: A, amount: 5}, verdict: allow}
"""
BAD = GOOD.replace("amount: 5", "amount: 700")


@pytest.fixture
def good(shop: Path) -> Path:
    (shop / "shop.agentguard_test.yaml").write_text(GOOD)
    return shop / "shop.agentguard_test.yaml"


def test_cases_that_hold_are_quiet_and_untouched_rules_are_named(cli: Cli, good: Path) -> None:
    done = cli("test", good.name)
    assert done.code == 0
    assert done.out == "untouched: no case touches large (agentguard.yaml:13)\n"
    assert done.err.endswith("2 cases, 0 failed; 2 of 3 rules touched\n")


def test_verbose_names_every_case(cli: Cli, good: Path) -> None:
    assert "ok    shop.agentguard_test.yaml:4: anybody may look\n" in cli("test", good.name, "-v").out


def test_a_case_that_does_not_hold_fails_with_its_place_and_reasons(cli: Cli, good: Path) -> None:
    good.write_text(BAD)
    done = cli("test", good.name)
    assert done.code == 1
    first, second, third = done.out.splitlines()[:3]
    assert first == "FAIL  shop.agentguard_test.yaml:5: small sums are paid"
    assert second.strip() == "the verdict is deny, not allow"
    assert third.strip().startswith("because ")
    assert "2 cases, 1 failed" in done.err


def test_a_rule_without_a_case_can_fail_the_test(cli: Cli, good: Path) -> None:
    assert cli("test", good.name, "--every-rule").code == 1
    more = "  - {tool: refunds.create, args: {order_id: A, amount: 200}, verdict: require_approval}\n"
    good.write_text(GOOD + more)
    assert cli("test", good.name, "--every-rule").code == 0
    refused = cli("test", good.name, "--every-rule", "--run", "x")
    assert (refused.code, "leave --run out" in refused.err) == (2, True)


def test_the_results_as_json(cli: Cli, good: Path) -> None:
    good.write_text(BAD)
    done = cli("test", good.name, "--format", "json")
    report = done.json
    assert (done.code, report["passed"], report["rules"]) == (1, False, 3)
    assert [case["passed"] for case in report["cases"]] == [True, False]
    assert report["cases"][0]["rules"][0]["id"] == "read"
    assert report["cases"][1]["verdict"] == "deny"
    assert [rule["id"] for rule in report["untouched"]] == ["small", "large"]


def test_the_results_for_build_servers(cli: Cli, good: Path) -> None:
    good.write_text(BAD.replace("anybody may look", '"<&\\u0007>"'))
    done = cli("test", good.name, "--format", "junit")
    assert done.code == 2  # a bell is no text of a case
    good.write_text(BAD.replace("anybody may look", "'<&>'"))
    done = cli("test", good.name, "--format", "junit")
    assert done.code == 1
    (suite,) = ElementTree.fromstring(done.out)
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    first, second = suite
    assert (first.get("name"), first.get("line"), list(first)) == ("<&>", "4", [])
    assert second[0].get("message") == "the verdict is deny, not allow"


def test_only_the_cases_that_were_asked_for_are_tried(cli: Cli, good: Path) -> None:
    done = cli("test", good.name, "--run", "SMALL", "-v")
    assert done.out == "ok    shop.agentguard_test.yaml:5: small sums are paid\n"
    assert done.err.endswith("1 case, 0 failed\n")
    assert cli("test", good.name, "--run", "small", "--format", "json").json["untouched"] is None


def test_nothing_tried_is_no_success(cli: Cli, good: Path, tmp_path: Path) -> None:
    done = cli("test", good.name, "--run", "banana")
    assert (done.code, "There is no case with 'banana' in it" in done.err) == (2, True)
    (tmp_path / "empty").mkdir()
    assert cli("test", "empty").code == 2
    assert cli("test", "missing.yaml").code == 2


def test_case_files_are_found_in_directories(cli: Cli, good: Path) -> None:
    (good.parent / "deeper").mkdir()
    (good.parent / "deeper" / "x.agentguard_test.yaml").write_text(GOOD.replace("file: ", "file: ../"))
    assert "4 cases, 0 failed" in cli("test").err
    assert "2 cases, 0 failed" in cli("test", "deeper").err


def test_tools_may_be_named_on_the_command_line(cli: Cli, good: Path) -> None:
    good.write_text(GOOD.partition("\n")[2])
    done = cli("test", good.name)
    assert (done.code, "pass --tools" in done.err) == (2, True)
    assert cli("test", good.name, "--tools", "shop_tools:TOOLS").code == 0


def test_a_policy_that_does_not_fit_the_tools_is_a_configuration_error(cli: Cli, good: Path) -> None:
    (good.parent / "agentguard.yaml").write_text("rules: [{allow: orders.gte}]\n")
    good.write_text(GOOD.replace(", rules: [read]", ""))
    done = cli("test", good.name)
    assert (done.code, "AG201" in done.err) == (2, True)


def test_a_misspelt_case_is_a_configuration_error_with_its_place(cli: Cli, good: Path) -> None:
    good.write_text(GOOD.replace("verdict", "verdikt"))
    done = cli("test", good.name)
    assert done.code == 2
    assert 'shop.agentguard_test.yaml:4:68: AG110 unknown key "verdikt" in a case (did you mean "verdict"?)' in done.err
