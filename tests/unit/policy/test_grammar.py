"""The JSON Schema of the file says what the readers say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from jsonschema import Draft202012Validator

from agentguard import config
from agentguard.budget.budget import SCOPES, WINDOWS
from agentguard.documents import Document, load, load_file
from agentguard.errors import PolicyError
from agentguard.policy import conditions, loading
from agentguard.policy.grammar import file_schema
from agentguard.tools.registry import _ONLY_NEW, ToolRegistry
from agentguard.tools.settings import SETTINGS
from tests.unit.policy.support import CASES

ROOT = Path(__file__).parents[3]
SCHEMA = file_schema()
VALIDATOR = Draft202012Validator(SCHEMA)

WHOLE = """\
# yaml-language-server: $schema=agentguard.schema.json
version: 1
name: support
default: deny
mode: enforce
store: sqlite:///agentguard.db
tools:
  email.send: {risk: high, effect: irreversible, cost_usd: "0.001", timeout: 10s, owner: comms, breaker: 3,
               retry: {attempts: 1, wait: 0}, output_trust: {body: untrusted}, permissions: [a, b], concurrency: 2}
budgets:
  - {scope: run, max_steps: 25, max_tool_calls: 12, max_cost_usd: "0.50", max_seconds: 300, per_tool: {email.send: 2}}
  - {scope: tenant, per: day, max_cost_usd: "50", warn_at: 0.8}
  - {scope: agent, match: "research-*", per: hour, max_tokens: 2000000, counters: {pages: 3}}
approvals: {required_for: ["db.write", {risk: critical}], roles: ops, quorum: 1}
logging: {tool_calls: true, stop_reasons: false}
architecture: {tool_gateway: owned, runtime: managed}
loops: {max_repeats: off}
credentials: {env: AGENT_}
sinks: [{jsonl: audit.jsonl, required: true}]
rules:
  - id: read
    description: Reading is fine.
    allow: ["orders.get", {permission: [a, b], risk: low, effect: [read, pure], owner: x, label: y, tool: "k.*"}]
    valid: {from: 2026-01-01, until: 2026-12-31T18:00+01:00}
    when:
      environment: [prod, staging]
      user: {not: mallory}
      time: {between: ["08:00", "18:00"], days: [mon, fri], zone: Europe/Berlin}
      run: {labels: {none: [secret]}}
      args:
        limit: {maximum: 100, optional: true}
        path: {not: {within: /srv}}
        kind: [a, b]
        one: 1
        line: {command: {allow: [ls]}}
        list: {items: {type: integer}, contains: {minimum: 1}, minContains: 2}
        odd: {if: {type: string}, then: {pattern: ^a$}, dependentRequired: {a: b}, properties: {a: true}}
  - id: big
    require_approval: refunds.create
    approval: {roles: [finance], quorum: 2, expires: 30m, separate: true, edit: true,
               escalate: [{after: 10m, roles: [lead]}]}
    redact: [args.api_key, output.secret, output]
    clamp: {args.limit: {maximum: 50}}
    rewrite: {args.mode: safe}
    limits: {timeout: 30s, memory: 4GB, cpu: 2, network: none}
    message: Ask a person.
  - {constrain: "*", message: Be careful.}
"""


def policies() -> Iterator[str]:
    """Every policy of the shared cases that loads, and a file that uses everything."""
    yield WHOLE
    for group in load_file(CASES / "decisions.yaml").value["groups"]:
        yield group["policy"]


def send(to: str) -> str:
    """Send a message."""
    return ""


def loads(value: Any) -> bool:
    """Whether the readers take a file of this content; whether its rules fit the registered tools is left out."""
    try:
        settings = config.settings_of(Document(value, "<test>", ""), Path())
        if settings.has_tools:
            ToolRegistry().with_document(settings.document, bodies={"email.send": send})
    except PolicyError:
        return False
    return True


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    ("place", "known"),
    [
        ((), {*loading.POLICY_KEYS, *loading.GATEWAY_KEYS} - {"rates"}),
        (("$defs", "rule"), set(loading.RULE_KEYS)),
        (("$defs", "approval"), set(loading.APPROVAL_TERMS)),
        (("properties", "approvals"), {"required_for", *loading.APPROVAL_TERMS}),
        (("$defs", "condition"), set(conditions.KEYWORDS)),
        (("$defs", "when"), {*conditions.WHO, "time", "run", "args"}),
        (("$defs", "budget"), set(config._BUDGET_KEYS)),
        (("$defs", "tool"), {*SETTINGS, *_ONLY_NEW} - {"sandbox"}),
        (("properties", "architecture"), set(config._ARCHITECTURE)),
    ],
)
def test_every_key_of_the_readers_is_in_the_schema_and_no_other(place: tuple[str, ...], known: set[str]) -> None:
    """``rates`` and ``sandbox`` are words that every file with them is refused for."""
    node: Any = SCHEMA
    for step in place:
        node = node[step]
    assert set(node["properties"]) == known
    assert node["additionalProperties"] is False


def test_the_words_of_budgets_are_those_that_budgets_take() -> None:
    budget = SCHEMA["$defs"]["budget"]["properties"]
    assert budget["scope"]["enum"] == list(SCOPES)
    assert budget["per"]["enum"] == list(WINDOWS)
    known = {name: tuple(words["enum"]) for name, words in SCHEMA["properties"]["architecture"]["properties"].items()}
    assert known == dict(config._ARCHITECTURE)
    days = SCHEMA["$defs"]["when"]["properties"]["time"]["properties"]["days"]["anyOf"][0]["enum"]
    assert tuple(days) == conditions._DAYS


@pytest.mark.parametrize("text", list(policies()))
def test_a_file_that_loads_satisfies_the_schema(text: str) -> None:
    assert loads(load(text).value)
    assert [error.message for error in VALIDATOR.iter_errors(load(text).value)] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("**/agentguard*.yaml")) + sorted(ROOT.glob("examples/**/*.yaml")))
def test_every_file_of_the_project_satisfies_the_schema(path: Path) -> None:
    if "/." in str(path.relative_to(ROOT)):
        return
    assert [error.message for error in VALIDATOR.iter_errors(load_file(path).value)] == []


def mutants(value: Any) -> Iterator[Any]:
    """The same file with one part taken out, doubled, renamed or replaced."""
    others: list[Any] = [None, True, 0, -1, 2.5, "", "x", "10s", "args.x", [], ["x"], {}, {"x": 1}]
    if isinstance(value, dict):
        for key in value:
            rest = {k: v for k, v in value.items() if k != key}
            yield rest
            yield {**rest, key + "x": value[key]}
            for changed in mutants(value[key]):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield [*value[:index], *value[index + 1 :]]
            for changed in mutants(item):
                yield [*value[:index], changed, *value[index + 1 :]]
    yield from (other for other in others if other != value)


def test_whatever_the_readers_take_the_schema_takes() -> None:
    quick = jsonschema_rs.validator_for(SCHEMA)
    taken = refused = 0
    for text in (WHOLE, next(p for p in policies() if "exclusiveMinimum" in p and p is not WHOLE)):
        for changed in mutants(load(text).value):
            if loads(changed):
                taken += 1
                assert quick.is_valid(changed), json.dumps(changed)
            elif not quick.is_valid(changed):
                refused += 1
    assert taken > 200
    assert refused > 500  # most mistakes are seen without agentguard


def test_what_the_registry_takes_the_schema_takes() -> None:
    def body(**given: Any) -> str:
        return ""

    validator = VALIDATOR.evolve(schema={**SCHEMA["$defs"]["tool"], "$defs": SCHEMA["$defs"]})
    entry = {
        "description": "Send.", "permissions": "mail", "owner": "a", "version": 2, "deprecated": True,
        "replaced_by": "b", "cost_usd": 1, "effect": "idempotent", "risk": "low", "output_labels": ["x"],
        "output_trust": {"*": "trusted"}, "cosmetic_args": ["n"], "timeout": 1.5, "retry": 2, "breaker": {"reset": "5s"},
        "concurrency": 3, "idempotency_key": ["n"], "audit": True, "inline": None,
        "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}}, "output_schema": {},
    }  # fmt: skip
    assert len(ToolRegistry.from_mapping({"t": entry}, bodies={"t": body})) == 1
    assert validator.is_valid(entry)
    assert set(entry) | {"fallback", "credentials"} == set(SCHEMA["$defs"]["tool"]["properties"])
    for key, value in (("retry", 0), ("risk", "hihg"), ("cost_usd", 0.5), ("sandbox", {}), ("timeout", "soon")):
        assert not validator.is_valid({**entry, key: value})


@pytest.mark.parametrize("code", ["AG110", "AG112", "AG114", "AG115", "AG119", "AG120", "AG113", "AG111"])
def test_a_refused_file_of_these_codes_does_not_satisfy_the_schema(code: str) -> None:
    cases = [c for c in load_file(CASES / "refused.yaml").value["cases"] if c["code"] == code]
    assert cases
    for case in cases:
        assert not VALIDATOR.is_valid(load(case["policy"]).value), case["say"]
