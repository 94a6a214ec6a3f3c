"""``check``, ``eval`` and ``tools``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import POLICY, Cli

MISSPELT = POLICY.replace("amount: {minimum", "amuont: {minimum")


def test_a_good_file_has_no_findings(cli: Cli, shop: Path) -> None:
    done = cli("check", "agentguard.yaml", "--tools", "shop_tools:TOOLS")
    assert (done.code, done.out) == (0, "")
    assert "0 errors, 0 warnings against shop_tools:TOOLS" in done.err


def test_without_tools_it_says_that_it_did_not_look_at_them(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(MISSPELT)
    done = cli("check")
    assert done.code == 0
    assert "not against tools; pass --tools" in done.err


def test_a_misspelt_argument_is_shown_with_its_place_and_a_caret(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(MISSPELT)
    done = cli("check", "--tools", "shop_tools:TOOLS")
    first, line, caret = done.out.splitlines()
    assert done.code == 1
    assert first.startswith('agentguard.yaml:12:19: AG203 unknown argument "amuont" of refunds.create (did you mean')
    assert line[caret.index("^")] == "a"
    assert "1 error" in done.err


def test_the_findings_as_json(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(MISSPELT)
    done = cli("check", "--tools", "shop_tools:TOOLS", "--format", "json")
    (finding,) = done.json["findings"]
    assert done.code == 1
    assert (finding["code"], finding["line"], finding["column"]) == ("AG203", 12, 19)
    assert done.err == "noise while importing\n"


def test_the_findings_for_github(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(MISSPELT + "  - {id: everything, allow: '*'}\n")
    done = cli("check", "--tools", "shop_tools:TOOLS", "--format", "github")
    error, warning = done.out.splitlines()
    assert error.startswith("::error file=agentguard.yaml,line=12,col=19,title=AG203::unknown argument")
    assert warning.startswith("::warning file=agentguard.yaml,line=17,col=")


def test_github_commands_cannot_be_broken_out_of(cli: Cli, shop: Path) -> None:
    file = shop / "a,b%:c.yaml"
    file.write_text("version: 1\nrules: 7\n")
    done = cli("check", file.name, "--format", "github")
    assert done.out.startswith("::error file=a%2Cb%25%3Ac.yaml,line=2,col=8,title=AG111::")


def test_the_findings_as_sarif(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(MISSPELT)
    log = cli("check", shop / "agentguard.yaml", "--tools", "shop_tools:TOOLS", "--format", "sarif").json
    (run,) = log["runs"]
    (result,) = run["results"]
    assert log["version"] == "2.1.0"
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "AG203"
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == (shop / "agentguard.yaml").as_uri()
    assert place["region"] == {"startLine": 12, "startColumn": 19}


def test_a_finding_about_the_whole_file_has_no_region(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text("version: 1\nrules: []\n")
    log = cli("check", "--format", "sarif").json
    assert "region" not in log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert cli("check", "--format", "github").out.startswith("::warning file=agentguard.yaml,title=AG305::")


def test_a_missing_file_is_a_usage_error(cli: Cli) -> None:
    done = cli("check", "nowhere.yaml")
    assert done.code == 2
    assert "AG100" in done.out


@pytest.mark.parametrize("text", ["", "version: 1\nversion: 1\n", "a: [\n", "version: 1\nrulez: []\n"])
def test_a_broken_file_is_a_finding(cli: Cli, shop: Path, text: str) -> None:
    (shop / "agentguard.yaml").write_text(text)
    done = cli("check")
    assert done.code in (1, 2)
    assert "AG1" in done.out


def test_warnings_alone_are_no_failure(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text("version: 1\nrules: [{id: everything, allow: '*'}]\n")
    done = cli("check")
    assert done.code == 0
    assert done.out.startswith("warning: agentguard.yaml:2:")
    assert "1 warning" in done.err


def test_the_tools_section_is_checked_too(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(POLICY + "tools:\n  refunds.create: {risk: hihg}\n")
    done = cli("check", "--tools", "shop_tools:TOOLS")
    assert done.code == 1
    assert "agentguard.yaml:18:" in done.out


# --- eval --------------------------------------------------------------------------------------------


def evaluate(cli: Cli, amount: int, *more: str) -> object:
    arguments = json.dumps({"order_id": "A-17", "amount": amount})
    return cli("eval", "--tools", "shop_tools:TOOLS", "--tool", "refunds.create", "--args", arguments, *more)


@pytest.mark.parametrize(
    ("amount", "code", "text"), [(40, 0, "allowed"), (250, 1, "needs approval"), (900, 1, "denied")]
)
def test_a_decision_and_its_exit_code(cli: Cli, shop: Path, amount: int, code: int, text: str) -> None:
    done = evaluate(cli, amount)
    assert done.code == code
    assert ["decision", *text.split()] in [line.split() for line in done.out.splitlines()]


def test_a_decision_names_rules_reasons_and_what_would_be_allowed(cli: Cli, shop: Path) -> None:
    done = evaluate(cli, 250)
    assert "require_approval large (agentguard.yaml:13)" in done.out
    assert "unlock        approval by a person with role finance" in done.out
    assert "rule          default" in evaluate(cli, 900).out


def test_a_decision_as_json(cli: Cli, shop: Path) -> None:
    value = evaluate(cli, 250, "--format", "json").json
    assert value["verdict"] == "require_approval"
    assert value["rules"] == [
        {"id": "large", "file": "agentguard.yaml", "line": 13, "verb": "require_approval", "layer": "shop"}
    ]
    assert value["approval"] == {
        "roles": [["finance"]],
        "quorum": 1,
        "expires_s": 3600.0,
        "separate": True,
        "edit": True,
    }


def test_the_identity_counts(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(
        "version: 1\nrules:\n  - id: only\n    allow: orders.get\n    redact: [output.secret]\n    when: {agent: bot, tenant: acme, "
        "environment: prod, user: u-1, role: [admin], run: {labels: {all: [clean]}}}\n"
    )
    who = [
        "--agent",
        "bot",
        "--tenant",
        "acme",
        "--environment",
        "prod",
        "--user",
        "u-1",
        "--role",
        "admin",
        "--label",
        "clean",
    ]
    call = ["eval", "--tools", "shop_tools:TOOLS", "--tool", "orders.get", "--args", '{"order_id": "A"}']
    allowed = cli(*call, *who)
    assert allowed.code == 0
    assert '["secret"]' in allowed.out
    for index in range(0, len(who), 2):
        assert cli(*call, *who[:index], *who[index + 2 :]).code == 1


def test_observed_layers_are_named(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text("version: 1\nmode: observe\nrules: []\n")
    done = evaluate(cli, 40)
    assert done.code == 0
    assert "denied (observe mode" in done.out


def test_the_tools_section_tightens_before_deciding(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(
        "version: 1\ntools: {orders.get: {risk: critical}}\nrules: [{id: low, allow: {risk: low}}]\n"
    )
    assert cli("eval", "--tools", "shop_tools", "--tool", "orders.get", "--args", '{"order_id": "A"}').code == 1


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("{", "--args is not JSON"),
        ("[]", "--args must be a JSON object"),
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ('{"a": NaN}', "NaN is no JSON value"),
        ("@nowhere.json", "cannot be read"),
    ],
)
def test_unreadable_arguments_are_a_usage_error(cli: Cli, shop: Path, args: str, text: str) -> None:
    done = cli("eval", "--tools", "shop_tools:TOOLS", "--tool", "orders.get", "--args", args)
    assert done.code == 2
    assert text in done.err


def test_arguments_come_from_a_file_or_from_stdin(cli: Cli, shop: Path) -> None:
    (shop / "args.json").write_text('{"order_id": "A"}')
    call = ("eval", "--tools", "shop_tools:TOOLS", "--tool", "orders.get", "--args")
    assert cli(*call, "@args.json").code == 0
    assert cli(*call, "-", stdin='{"order_id": "A"}').code == 0


def test_invalid_arguments_are_denied(cli: Cli, shop: Path) -> None:
    done = cli("eval", "--tools", "shop_tools:TOOLS", "--tool", "orders.get", "--args", '{"order": "A"}')
    assert done.code == 1
    assert "order_id" in done.out


def test_an_unknown_tool_is_a_usage_error_with_a_guess(cli: Cli, shop: Path) -> None:
    done = cli("eval", "--tools", "shop_tools:TOOLS", "--tool", "orders.gte")
    assert done.code == 2
    assert 'did you mean "orders.get"?' in done.err


@pytest.mark.parametrize("option", ["--agent", "--user", "--role", "--label"])
def test_an_identity_that_is_no_name_is_refused(cli: Cli, shop: Path, option: str) -> None:
    done = evaluate(cli, 40, option, "a b")
    assert done.code == 2
    assert "AG134" in done.err


def test_a_policy_that_does_not_load_is_a_configuration_error_of_eval(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text(MISSPELT)
    done = evaluate(cli, 40)
    assert done.code == 2
    assert "agentguard.yaml:12:19: AG203" in done.err
    assert done.out == ""


# --- tools ---------------------------------------------------------------------------------------------


def test_tools_are_listed(cli: Cli, shop: Path) -> None:
    done = cli("tools", "list", "--tools", "shop_tools")
    head, *rows = done.out.splitlines()
    assert head.split()[:3] == ["TOOL", "EFFECT", "RISK"]
    assert [row.split()[0] for row in rows] == ["old.thing", "orders.get", "refunds.create"]
    assert "deprecated, use orders.get" in rows[0]
    assert "noise while importing" not in done.out


def test_tools_are_listed_as_json_with_the_file_applied(cli: Cli, shop: Path) -> None:
    (shop / "agentguard.yaml").write_text("version: 1\ntools: {orders.get: {risk: high}}\nrules: []\n")
    plain = cli("tools", "list", "--tools", "shop_tools:REGISTRY", "--format", "json").json
    tightened = cli(
        "tools", "list", "--tools", "shop_tools:REGISTRY", "--config", "agentguard.yaml", "--format", "json"
    ).json
    assert [tool["risk"] for tool in plain] == ["low", "high"]
    assert [tool["risk"] for tool in tightened] == ["high", "high"]


def test_a_file_without_tools_changes_nothing(cli: Cli, shop: Path) -> None:
    listed = cli("tools", "list", "--tools", "shop_tools:TOOLS", "--config", "agentguard.yaml")
    assert len(listed.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ("openai", ("function", "name")),
        ("openai-responses", ("name",)),
        ("anthropic", ("name",)),
        ("mcp", ("name",)),
        ("json", ("name",)),
    ],
)
def test_tools_are_exported_in_every_form(cli: Cli, shop: Path, form: str, path: tuple[str, ...]) -> None:
    first = cli("tools", "export", "--tools", "shop_tools:TOOLS", "--format", form).json[0]
    for key in path:
        first = first[key]
    assert first in ("orders_get", "orders.get")


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("shop_tols:TOOLS", "shop_tols cannot be imported: ModuleNotFoundError"),
        ("shop_tools:TOLS", 'did you mean "TOOLS"?'),
        ("shop_tools:NUMBER", "a int is no registry"),
        ("shop_tools:make", "name what it returns"),
        ("shop_tools:", "write module:attribute"),
        ("json", "no decorated function in json"),
        ("nowhere.py:TOOLS", "there is no file nowhere.py"),
        ("broken:TOOLS", "broken cannot be imported: ZeroDivisionError"),
        ("leaving:TOOLS", "importing leaving ended the process (3)"),
    ],
)
def test_whatever_is_wrong_with_an_import_is_said(cli: Cli, shop: Path, where: str, text: str) -> None:
    (shop / "broken.py").write_text("1 / 0\n")
    (shop / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    done = cli("tools", "list", "--tools", where)
    assert done.code == 2
    assert text in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("attribute", ["TOOLS", "REGISTRY", "get_order", "get_order.tool", "GATEWAY"])
def test_many_things_hold_tools(cli: Cli, shop: Path, attribute: str) -> None:
    more = "from agentguard import ToolGateway\nGATEWAY = ToolGateway(TOOLS)\n"
    (shop / "more.py").write_text(f"from shop_tools import *\n{more}")
    done = cli("tools", "list", "--tools", f"more.py:{attribute}")
    assert done.code == 0, done.err
    assert "orders.get" in done.out
