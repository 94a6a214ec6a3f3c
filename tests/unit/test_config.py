"""A configuration file as settings: everything in it is understood, or it does not load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentguard import Budget, JsonlSink, Policy, ToolGateway, config, tool
from agentguard.config import check_tools, open_sinks, read, read_text
from agentguard.errors import PolicyError
from agentguard.tools.registry import ToolRegistry

BASE = "version: 1\nrules: [{allow: pay}]\n"


@tool(name="pay", effect="irreversible")
def pay(amount: int) -> str:
    return f"paid {amount}"


def _findings(text: str) -> list[tuple[str, int, int]]:
    with pytest.raises(PolicyError) as caught:
        settings = read_text(BASE + text, "agentguard.yaml")
        check_tools(settings.document, ToolRegistry.of(pay))
    assert all(f.file == "agentguard.yaml" for f in caught.value.findings)
    return [(f.code, f.line, f.column) for f in caught.value.findings]


def test_a_file_that_says_nothing_else_has_the_defaults() -> None:
    settings = read_text(BASE)
    assert (settings.budgets, settings.store, settings.sinks, settings.credentials) == ((), None, (), None)
    assert (settings.has_tools, settings.loops_set, settings.max_repeats) == (False, False, None)
    assert (settings.log_calls, settings.log_stop_reasons, settings.architecture) == (True, True, None)
    assert settings.policy.digest == Policy.from_string(BASE).digest


def test_every_section_is_read(tmp_path: Path) -> None:
    path = tmp_path / "agentguard.yaml"
    path.write_text(
        BASE
        + """\
store: sqlite:///agentguard.db
budgets:
  - {scope: run, max_steps: 25, max_cost_usd: "0.50", max_seconds: 5m, per_tool: {pay: 2}, counters: {pages: 3}}
  - {scope: agent, match: "research-*", per: hour, max_tokens: 2000000, warn_at: 0.8}
loops: {max_repeats: 5}
sinks: [{jsonl: audit.jsonl, required: true}, {jsonl: other.jsonl}]
credentials: {env: AGENT_}
logging: {tool_calls: false, stop_reasons: false}
architecture: {tool_gateway: owned, runtime: managed_or_custom}
tools: {pay: {risk: high}}
"""
    )
    settings = read(path)
    assert settings.store == "sqlite:///agentguard.db"
    assert settings.budgets == (
        Budget(max_steps=25, max_cost_usd="0.50", max_seconds="5m", per_tool={"pay": 2}, counters={"pages": 3}),
        Budget(scope="agent", match="research-*", per="hour", max_tokens=2_000_000, warn_at=0.8),
    )
    assert (settings.max_repeats, settings.loops_set, settings.has_tools) == (5, True, True)
    assert settings.sinks == ((tmp_path / "audit.jsonl", True), (tmp_path / "other.jsonl", False))
    assert settings.credentials is not None
    assert (settings.log_calls, settings.log_stop_reasons) == (False, False)
    assert settings.architecture == {"tool_gateway": "owned", "runtime": "managed_or_custom"}
    assert not (tmp_path / "audit.jsonl").exists(), "reading a file writes none"


def test_a_single_budget_needs_no_list() -> None:
    assert read_text(BASE + "budgets: {max_steps: 25}\n").budgets == (Budget(max_steps=25),)


def test_two_budgets_of_one_account_are_the_tighter() -> None:
    text = "budgets: [{max_steps: 25, max_tokens: 5}, {max_steps: 20}]\n"
    assert read_text(BASE + text).budgets == (Budget(max_steps=20, max_tokens=5),)


def test_loops_can_be_switched_off() -> None:
    settings = read_text(BASE + "loops: {max_repeats: off}\n")
    assert (settings.max_repeats, settings.loops_set) == (None, True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("budgets: {max_stepz: 5}\n", [("AG110", 3, 11)]),
        ("budgets: {max_steps: 0}\n", [("AG402", 3, 22)]),
        ("budgets: {max_steps: }\n", [("AG402", 3, 22)]),
        ("budgets:\n  - {max_steps: 5}\n  - {max_cost_usd: 0.5}\n", [("AG402", 5, 20)]),
        ("budgets: {max_steps: 5, per_tool: {pay: 0}}\n", [("AG402", 3, 35)]),
        ("budgets: {per_tool: {pya: 1}}\n", [("AG201", 3, 22)]),
        ("budgets: [{per_tool: {pay: 1}}, {scope: tenant, per_tool: {pya: 1}}]\n", [("AG201", 3, 60)]),
        ("budgets: {}\n", [("AG401", 3, 10)]),
        ("budgets: [5]\n", [("AG111", 3, 11)]),
        ("budgets: 5\n", [("AG111", 3, 10)]),
        ("budgets: [{max_steps: x}, {max_tokens: y}]\n", [("AG402", 3, 23), ("AG402", 3, 40)]),
        ("budgets: {scope: run, per: day, max_steps: 5}\n", [("AG404", 3, 10)]),
        ("store: 5\n", [("AG111", 3, 8)]),
        ('store: ""\n', [("AG111", 3, 8)]),
        ("loops: {}\n", [("AG402", 3, 8)]),
        ("loops: {max_repeats: true}\n", [("AG402", 3, 22)]),
        ("loops: {max: 5, max_repeats: 3}\n", [("AG110", 3, 9)]),
        ("loops: 5\n", [("AG111", 3, 8), ("AG402", 3, 8)]),
        ("sinks: audit.jsonl\n", [("AG111", 3, 8)]),
        ("sinks: [{required: true}]\n", [("AG111", 3, 9)]),
        ("sinks: [{jsonl: a, required: yes}]\n", [("AG111", 3, 30)]),
        ("credentials: {}\n", [("AG111", 3, 14)]),
        ("credentials: {env: 5}\n", [("AG111", 3, 20)]),
        ('credentials: {env: "a b"}\n', [("AG111", 3, 20)]),
        ("logging: {tool_calls: on}\n", [("AG111", 3, 23)]),
        ("logging: {calls: true}\n", [("AG110", 3, 11)]),
        ("architecture: {runtime: mine}\n", [("AG115", 3, 25)]),
        ("architecture: {gateway: owned}\n", [("AG110", 3, 16)]),
        ("nonsense: 5\nbudgets: {max_steps: 0}\n", [("AG110", 3, 1), ("AG402", 4, 22)]),
    ],
)
def test_what_is_not_understood_is_named_with_its_place(text: str, found: list[tuple[str, int, int]]) -> None:
    assert _findings(text) == found


def test_a_file_without_a_mapping_is_refused() -> None:
    with pytest.raises(PolicyError):
        read_text("[1, 2]")


def test_a_misspelt_tool_is_guessed() -> None:
    settings = read_text(BASE + "budgets: {per_tool: {pai: 1}}\n")
    with pytest.raises(PolicyError, match='did you mean "pay"'):
        check_tools(settings.document, ToolRegistry.of(pay))


def test_sinks_are_opened_when_they_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "agentguard.yaml"
    path.write_text(BASE + "sinks: [{jsonl: audit.jsonl, required: true}]\n")
    (sink,) = open_sinks(read(path))
    assert isinstance(sink, JsonlSink)
    assert sink.required
    sink.close()
    path.write_text(BASE + "sinks: [{jsonl: audit.jsonl}, {jsonl: none/audit.jsonl}]\n")
    with pytest.raises(PolicyError) as caught:
        open_sinks(read(path))
    assert [(f.code, f.line) for f in caught.value.findings] == [("AG111", 3)]


# --- from a file to a gateway -------------------------------------------------------------------------


def _gateway(tmp_path: Path, text: str, **settings: Any) -> ToolGateway:
    path = tmp_path / "agentguard.yaml"
    path.write_text(BASE + text)
    return ToolGateway.from_yaml(path, [pay], **settings)


def test_a_relative_store_lies_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with _gateway(tmp_path, "store: sqlite:///agentguard.db\n"):
        assert (tmp_path / "agentguard.db").exists()


def test_an_absolute_store_is_where_it_says(tmp_path: Path) -> None:
    with _gateway(tmp_path, f"store: sqlite:///{tmp_path / 'x.db'}\n"):
        assert (tmp_path / "x.db").exists()


def test_what_code_says_replaces_what_the_file_says(tmp_path: Path) -> None:
    text = (
        "store: sqlite:///agentguard.db\nbudgets: {per_tool: {pya: 1}}\nloops: {max_repeats: 1}\n"
        "sinks: [{jsonl: none/a.jsonl}]\ncredentials: {env: A_}\n"
    )
    with _gateway(
        tmp_path, text, store="memory:", budgets=Budget(max_steps=1), max_repeats=None, sinks=(), credentials={}
    ) as gateway:
        assert gateway.shared_budgets == (Budget(max_steps=1),)
        assert not (tmp_path / "agentguard.db").exists()


def test_settings_of_a_file_take_effect(tmp_path: Path) -> None:
    text = (
        "loops: {max_repeats: 1}\nsinks: [{jsonl: audit.jsonl}]\ncredentials: {env: A_}\ntools: {pay: {risk: high}}\n"
    )
    with _gateway(tmp_path, text) as gateway, gateway.run(agent="bot") as run:
        assert [run.attempt("pay", {"amount": 1}, call_id=c).__class__.__name__ for c in "ab"] == [
            "Completed",
            "Refused",
        ]
        found = gateway.registry.get("pay")
        assert found is not None
        assert found.spec.risk == "high"
    assert (tmp_path / "audit.jsonl").read_text().count("\n") >= 4


def test_a_gateway_from_a_text_with_layers_and_bodies() -> None:
    text = BASE.replace("[{allow: pay}]", "[{allow: [pay, remote]}]")
    text += "tools: {remote: {description: Far away, input_schema: {type: object}, effect: read}}\n"
    with (
        ToolGateway.from_string(
            text, [pay], bodies={"remote": lambda: "done"}, layers=[Policy(allow={"remote"})]
        ) as gateway,
        gateway.run(agent="bot") as run,
    ):
        assert run.call("remote") == "done"
        assert run.attempt("pay", {"amount": 1}).__class__.__name__ == "Refused"


def test_a_store_that_was_opened_is_closed_when_the_gateway_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigurationError):
        _gateway(tmp_path, "store: sqlite:///agentguard.db\n", max_repeats=0)
    with _gateway(tmp_path, "store: sqlite:///agentguard.db\n"):
        pass
