"""Policies as values: construction, digest, loading of whole files, checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentguard.documents import load
from agentguard.errors import PolicyError
from agentguard.policy import FINDING_CODES, Policy, compile_layers
from agentguard.policy.loading import GATEWAY_KEYS, POLICY_KEYS
from agentguard.policy.schemas import alternatives, null_depths, step
from tests.unit.policy.support import FakeRegistry, book, case_registry, decide, shape, spec


def codes(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        Policy.from_string(text)
    return [finding.code for finding in caught.value.findings]


# -- in Python ---------------------------------------------------------------------------------------------------------


def test_python_and_yaml_say_the_same() -> None:
    python = Policy(allow={"b", "a"}, require_approval=["c"], deny="d*")
    yaml = Policy.from_string("rules: [{deny: 'd*'}, {allow: [b, a]}, {require_approval: c}]")
    assert python == yaml
    assert hash(python) == hash(yaml)
    assert python.digest == yaml.digest
    assert [rule.id for rule in python.rules] == ["allow", "require_approval", "deny"]
    assert "3 rules" in repr(python)
    assert python != "policy"


@pytest.mark.parametrize(
    "bad",
    [
        {"allow": 5},
        {"allow": ["a", None]},
        {"deny": "a b"},
        {"deny": ""},
        {"default": "allow"},
        {"mode": "off"},
        {"name": ""},
        {"name": 3},
    ],
)
def test_python_arguments_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        Policy(**bad)


def test_a_policy_cannot_be_changed() -> None:
    policy = Policy(allow="a")
    with pytest.raises(AttributeError):
        policy.default = "abstain"
    with pytest.raises(AttributeError):
        del policy.rules


def test_a_misspelt_name_in_python_is_an_error_too() -> None:
    with pytest.raises(PolicyError, match=r'AG201 rule allow: unknown tool "kb.serch" \(did you mean "kb.search"\?\)'):
        compile_layers([Policy(allow="kb.serch")], case_registry())


# -- digest ------------------------------------------------------------------------------------------------------------

BASE = "rules: [{id: r, deny: [a, b], when: {agent: [x, y], args: {p: [1, 2], q: {maximum: 5}}}}]"


@pytest.mark.parametrize(
    "text",
    [
        "# comment\n" + BASE,
        BASE.replace("[a, b]", "[b, a, a]"),
        BASE.replace("[x, y]", "[y, x]"),
        BASE.replace("p: [1, 2], q: {maximum: 5}", "q: {maximum: 5.0}, p: {enum: [2, 1]}"),
        "version: 1\nname: policy\ndefault: deny\nmode: enforce\n" + BASE,
        BASE.replace("deny:", "description: why, deny:"),
        BASE + "\nbudgets: {max_steps: 3}\nstore: x",
    ],
)
def test_the_digest_does_not_depend_on_layout(text: str) -> None:
    assert Policy.from_string(text).digest == Policy.from_string(BASE).digest


@pytest.mark.parametrize(
    "text",
    [
        BASE.replace("deny", "allow"),
        BASE.replace("[a, b]", "[a]"),
        BASE.replace("maximum: 5", "maximum: 6"),
        BASE.replace("maximum: 5", "exclusiveMaximum: 5"),
        BASE.replace("[1, 2]", "['1', 2]"),
        BASE.replace("[1, 2]", "[true, 2]"),
        BASE.replace("[x, y]", "{not: [x, y]}"),
        BASE.replace("id: r", "id: s"),
        BASE.replace("id: r", "id: r, message: no"),
        BASE.replace("id: r", "id: r, valid: {until: 2030-01-01}"),
        BASE.replace("agent: [x, y]", "agent: [x, y], time: {days: mon}"),
        BASE.replace("agent: [x, y]", "agent: [x, y], run: {labels: z}"),
        "mode: observe\n" + BASE,
        "default: abstain\n" + BASE,
        "name: other\n" + BASE,
        BASE + "\napprovals: {required_for: c}",
    ],
)
def test_the_digest_depends_on_the_meaning(text: str) -> None:
    assert Policy.from_string(text).digest != Policy.from_string(BASE).digest


def test_the_order_of_rules_does_not_change_the_digest_and_the_order_of_layers_does() -> None:
    one, two = "rules: [{deny: kb.search}, {allow: orders.get}]", "rules: [{allow: orders.get}, {deny: kb.search}]"
    assert Policy.from_string(one).digest == Policy.from_string(two).digest
    other = "rules: [{allow: kb.search}]"
    assert book(one, other).digest != book(other, one).digest


def test_approval_terms_and_obligations_are_part_of_the_digest() -> None:
    terms = ["{}", "{quorum: 2}", "{roles: [a]}", "{edit: false}", "{escalate: [{after: 1m, roles: [b]}]}"]
    texts = [f"rules: [{{require_approval: a, approval: {t}}}]" for t in terms]
    texts += [f"rules: [{{constrain: a, {t}}}]" for t in ("redact: args.x", "redact: output.x", "rewrite: {args.x: 1}")]
    assert len({Policy.from_string(text).digest for text in texts}) == len(texts)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_full_file_loads_and_the_gateway_part_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "agentguard.yaml"
    sections = "".join(f"{key}: {{x: 1}}\n" for key in GATEWAY_KEYS if key not in ("rates", "approvals"))
    file.write_text(
        f"version: 1\n{sections}approvals: {{required_for: [kb.search], quorum: 2, expires: 5m}}\nrules: []\n"
    )
    policy = Policy.from_yaml(file)
    (rule,) = policy.rules
    assert rule.approval is not None
    assert (rule.approval.quorum, rule.approval.expires_s) == (2, 300)
    assert not set(POLICY_KEYS) & set(GATEWAY_KEYS)


def test_approvals_without_required_for_add_no_rule() -> None:
    assert Policy.from_string("approvals: {quorum: 2}\nrules: []").rules == ()


def test_a_missing_file_is_a_policy_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="does not exist"):
        Policy.from_yaml(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", ["AG111"]),
        ("version: 2", ["AG115"]),
        ("version: true", ["AG115"]),
        ("name: 3", ["AG111"]),
        ("name: 'a b'", ["AG111"]),
        ("default: allow", ["AG115"]),
        ("rules:", ["AG111"]),
        ("rules: {}", ["AG111"]),
        ("rules: [x]", ["AG111"]),
        ("rules: [{}]", ["AG112"]),
        ("rules: [{deny: []}]", ["AG111"]),
        ("rules: [{deny: {}}]", ["AG111"]),
        ("rules: [{deny: 5}]", ["AG111"]),
        ("rules: [{deny: }]", ["AG111"]),
        ("rules: [{deny: {risk: []}}]", ["AG111"]),
        ("rules: [{deny: {effect: 5}}]", ["AG111"]),
        ("rules: [{deny: {effect: writes}}]", ["AG115"]),
        ("rules: [{deny: {tool: 'a b'}}]", ["AG120"]),
        ("rules: [{deny: a, id: 7}]", ["AG111"]),
        ("rules: [{deny: a, description: 7}]", ["AG111"]),
        ("rules: [{deny: a, message: ''}]", ["AG111"]),
        ("rules: [{deny: a, when: {}}]", ["AG111"]),
        ("rules: [{deny: a, when: x}]", ["AG111"]),
        ("rules: [{deny: a, when: {agent: []}}]", ["AG111"]),
        ("rules: [{deny: a, when: {agent: [1]}}]", ["AG111"]),
        ("rules: [{deny: a, when: {agent: {nt: x}}}]", ["AG110", "AG111"]),
        ("rules: [{deny: a, when: {run: {}}}]", ["AG111"]),
        ("rules: [{deny: a, when: {run: {labels: {}}}}]", ["AG111"]),
        ("rules: [{deny: a, when: {run: {labels: {some: x}}}}]", ["AG110"]),
        ("rules: [{deny: a, when: {time: {}}}]", ["AG111"]),
        ("rules: [{deny: a, when: {time: {days: [monday]}}}]", ["AG115"]),
        ("rules: [{deny: a, when: {time: {between: ['08:00']}}}]", ["AG113"]),
        ("rules: [{deny: a, when: {time: {between: ['8', '25:00']}}}]", ["AG113", "AG113", "AG113"]),
        ("rules: [{deny: a, when: {time: {between: ['24:00', '08:00']}}}]", ["AG113"]),
        ("rules: [{deny: a, when: {time: {days: mon, zone: Mars/Base}}}]", ["AG113"]),
        ("rules: [{deny: a, when: {time: {days: mon, zone: 5}}}]", ["AG113"]),
        ("rules: [{deny: a, when: {time: {days: mon, zone: ../../etc/passwd}}}]", ["AG113"]),
        ("rules: [{deny: a, valid: {}}]", ["AG111"]),
        ("rules: [{deny: a, valid: {until: soon}}]", ["AG113"]),
        ("rules: [{deny: a, valid: {until: 2026-13-01}}]", ["AG113"]),
        ("rules: [{deny: a, valid: {from: 2026-02-01, until: 2026-01-01}}]", ["AG113"]),
        ("rules: [{deny: a, when: {args: {}}}]", ["AG111"]),
        ("rules: [{deny: a, when: {args: [x]}}]", ["AG111"]),
        ("rules: [{deny: a, when: {args: {x..y: 1}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: []}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: }}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {optional: true}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {const: 1, optional: 1}}}}]", ["AG111"]),
        ("rules: [{deny: a, when: {args: {x: {multipleOf: 0}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {maximum: true}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {minLength: -1}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {minContains: 1}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {enum: x}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {type: text}}}}]", ["AG115"]),
        ("rules: [{deny: a, when: {args: {x: {pattern: 5}}}}]", ["AG116"]),
        ("rules: [{deny: a, when: {args: {x: {patternProperties: {'(': true}}}}}]", ["AG116"]),
        ("rules: [{deny: a, when: {args: {x: {required: []}}}}]", ["AG111"]),
        ("rules: [{deny: a, when: {args: {x: {dependentRequired: []}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {dependentRequired: {a: [1]}}}}}]", ["AG111"]),
        ("rules: [{deny: a, when: {args: {x: {then: {const: 1}}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {anyOf: []}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {items: 5}}}}]", ["AG111", "AG117"][:1]),
        ("rules: [{deny: a, when: {args: {x: {properties: []}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {within: srv}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {within: /a/../b}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {host: 'a b'}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {host: xn--a.example}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {scheme: 'https:'}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {email_domain: '@a'}}}}]", ["AG117"]),
        ("rules: [{deny: a, when: {args: {x: {command: {alow: ls}}}}}]", ["AG110", "AG112"]),
        ("rules: [{deny: a, when: {args: {x: {command: 'ls; id'}}}}]", ["AG117"]),
        ("rules: [{require_approval: a, approval: x}]", ["AG111"]),
        ("rules: [{require_approval: a, approval: {roles: []}}]", ["AG111"]),
        ("rules: [{require_approval: a, approval: {quorum: true}}]", ["AG111"]),
        ("rules: [{require_approval: a, approval: {edit: yes}}]", ["AG111"]),
        ("rules: [{require_approval: a, approval: {expires: 0}}]", ["AG113"]),
        ("rules: [{require_approval: a, approval: {escalate: []}}]", ["AG111"]),
        ("rules: [{require_approval: a, approval: {escalate: [{after: 1m}]}}]", ["AG112"]),
        ("rules: [{constrain: a}]", ["AG112"]),
        ("rules: [{constrain: a, redact: x}]", ["AG117"]),
        ("rules: [{constrain: a, redact: args}]", ["AG117"]),
        ("rules: [{constrain: a, clamp: {}}]", ["AG111"]),
        ("rules: [{constrain: a, clamp: {x: {maximum: 1}}}]", ["AG117"]),
        ("rules: [{constrain: a, clamp: {args.x: {}}}]", ["AG112"]),
        ("rules: [{constrain: a, clamp: {args.x: {minimum: 2, maximum: 1}}}]", ["AG117"]),
        ("rules: [{constrain: a, limits: {}}]", ["AG111"]),
        ("rules: [{constrain: a, limits: {timeout: x}}]", ["AG113"]),
        ("rules: [{constrain: a, limits: {memory: 4 XB}}]", ["AG113"]),
        ("rules: [{constrain: a, limits: {cpu: 0}}]", ["AG113"]),
        ("rules: [{constrain: a, limits: {network: host}}]", ["AG115"]),
        ("approvals: [a]", ["AG111"]),
        ("approvals: {required: [a]}", ["AG110"]),
    ],
)
def test_each_malformed_part_is_found(text: str, expected: list[str]) -> None:
    found = [code for code in codes(text) if code in FINDING_CODES]
    assert found[: len(expected)] == expected, found


ANYTHING = {"type": "object", "properties": {"n": {"type": "number"}}, "additionalProperties": True}


def test_everything_permitted_loads() -> None:
    text = """
version: 1
rules:
  - id: a
    description: everything at once
    allow: [{tool: "t*", permission: p, risk: [low, medium], effect: read, owner: o, label: l}]
    when:
      agent: a
      team: {not: [x]}
      time: {days: [mon], between: ["00:00", "24:00"], zone: UTC}
      run: {labels: {any: a, all: [b], none: c}}
      args:
        s: {type: [string, "null"], minLength: 1, maxLength: 9, pattern: "^a$", optional: true}
        n: {minimum: 1, maximum: 2, exclusiveMinimum: 0, exclusiveMaximum: 3, multipleOf: 0.5}
        l: {items: {const: 1}, prefixItems: [true], contains: {const: 1}, minContains: 1, maxContains: 3, uniqueItems: true}
        m: {minItems: 0, maxItems: 1, items: false}
        o: {properties: {a: {const: 1}}, patternProperties: {"^x": true}, additionalProperties: false, required: [a]}
        p: {propertyNames: {maxLength: 3}, dependentRequired: {a: [b], c: d}, minProperties: 0, maxProperties: 9}
        q: {anyOf: [{const: 1}], oneOf: [{const: 1}], allOf: [{const: 1}], not: 5, if: {const: 1}, then: {const: 1}, else: {const: 2}}
        u: {host: [a.example, "*.b.example"], scheme: https}
        e: {email_domain: a.example}
        c: {command: {allow: ls}}
        d: {within: [/a, /b]}
        x: {not: [1, 2]}
    valid: {from: 2026-01-01, until: 2027-01-01T00:00:00Z}
    redact: [args.s, output, output.x]
    rewrite: {args.f: false}
    clamp: {args.n: {minimum: 1, maximum: 2}}
    limits: {timeout: 30s, memory: 4GB, cpu: 0.5, network: none}
    message: careful
"""
    (rule,) = Policy.from_string(text).rules
    assert rule.obligations.redact_output == ("", "x")
    registry = FakeRegistry(spec("t1", ANYTHING, permissions=("p",), effect="read", owner="o", output_labels=("l",)))
    policy = Policy.from_string(text)
    compile_layers([policy], registry)
    assert {finding.severity for finding in policy.check(registry)} == {"info"}


def test_many_mistakes_are_reported_together_and_bounded() -> None:
    found = codes("rules:\n" + "  - {deny: a, whn: 1}\n" * 200)
    assert len(found) == 50


# -- checks ------------------------------------------------------------------------------------------------------------


def warnings(text: str, registry: FakeRegistry | None = None) -> list[str]:
    findings = Policy.from_string(text, "p.yaml").check(registry or case_registry())
    assert not [str(f) for f in findings if f.severity == "error"]
    return [f.code for f in findings]


def test_what_is_probably_not_meant_is_a_warning() -> None:
    assert warnings("rules: [{allow: '*'}]") == ["AG301"]
    assert warnings("rules: [{allow: '*', when: {agent: x}}]") == []
    assert warnings("rules: [{allow: kb.search}, {id: b, allow: [kb.search]}]") == ["AG302"]
    assert warnings("rules: [{deny: kb.search}]") == ["AG305"]
    assert warnings("default: abstain\nrules: [{deny: kb.search}]") == []
    assert warnings("rules: [{allow: kb.search, when: {args: {q: {pattern: 'abc$'}}}}]") == ["AG306"]
    assert warnings("rules: [{allow: kb.search, when: {args: {q: {pattern: '^a|b$'}}}}]") == ["AG306"]
    assert warnings("rules: [{allow: kb.search, when: {args: {q: {pattern: '^a\\$'}}}}]") == ["AG306"]
    assert warnings("rules: [{allow: kb.search, when: {args: {q: {pattern: '^(a|[|)]|\\|)$'}}}}]") == []
    assert warnings("rules: [{allow: kb.search, when: {args: {limit: {minimum: 5, maximum: 4}}}}]") == ["AG307"]
    assert warnings("rules: [{allow: kb.search, when: {args: {limit: {minimum: 5, exclusiveMaximum: 5}}}}]") == [
        "AG307"
    ]
    assert warnings("rules: [{allow: kb.search}, {deny: {risk: medium, effect: pure}}]") == ["AG304"]
    late = "rules: [{require_approval: kb.search, approval: {expires: 5m, escalate: [{after: 5m, roles: [x]}]}}]"
    assert warnings(late) == ["AG410"]


def test_an_argument_that_some_globbed_tools_lack_is_a_warning() -> None:
    text = "rules: [{id: r, deny: [kb.search, 'orders.*', 'files.*'], when: {args: {limit: {maximum: 1}}}}, {allow: kb.search}]"
    (finding,) = Policy.from_string(text).check(case_registry())
    assert (finding.code, finding.severity) == ("AG303", "warning")
    assert "always matches calls of files.read" in finding.message


def test_errors_of_check_are_those_that_keep_it_from_compiling() -> None:
    policy = Policy.from_string("rules: [{deny: nope}, {allow: '*'}]")
    found = policy.check(case_registry())
    assert [f.code for f in found if f.severity == "error"] == ["AG201"]
    with pytest.raises(PolicyError) as caught:
        compile_layers([policy, policy], case_registry())
    assert [f.code for f in caught.value.findings] == ["AG201", "AG201"]


def test_every_tool_of_an_empty_registry_is_no_mistake() -> None:
    rulebook = book("rules: [{allow: '*'}]", tools=FakeRegistry())
    assert decide(rulebook, "a").verdict == "deny"


def test_errors_per_file_are_bounded() -> None:
    text = "rules:\n" + "".join(f"  - deny: nope{n}\n" for n in range(300))
    with pytest.raises(PolicyError) as caught:
        book(text)
    assert 50 <= len(caught.value.findings) <= 60


DEEP: dict[str, Any] = {
    "type": "object",
    "$defs": {
        "item": {"type": "object", "properties": {"sku": {"type": "string"}, "next": {"$ref": "#/$defs/item"}}},
        "loop": {"$ref": "#/$defs/loop"},
        "a/b": {"enum": [1, 2]},
    },
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
        "maybe": {"anyOf": [{"$ref": "#/$defs/item"}, {"type": "null"}], "default": None},
        "loop": {"$ref": "#/$defs/loop"},
        "far": {"$ref": "https://example.com/x"},
        "lost": {"$ref": "#/$defs/none"},
        "slash": {"$ref": "#/$defs/a~1b"},
        "all": {"allOf": [{"type": "string"}, {"minLength": 2}]},
        "one": {"allOf": [{"type": "string"}]},
        "free": {"type": "object"},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "text": {"type": "string", "minLength": 2, "maxLength": 3},
        "num": {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 5},
        "int": {"type": "integer", "maximum": 5, "exclusiveMinimum": 0},
        "fixed": {"const": "x"},
        "bare": {"properties": {"a": {"type": "string"}}},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
        "never": False,
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ("items.*.sku: x", None),
        ("items.3.next.next.sku: x", None),
        ("items.*.next.sk: x", "AG203"),
        ("pair.0: x", None),
        ("pair.*: x", None),
        ("pair.0: 1", "AG205"),
        ("pair.2: 1", "AG203"),
        ("maybe.sku: x", None),
        ("maybe: {type: 'null'}", None),
        ("loop: 1", None),
        ("far.x.y: 1", None),
        ("lost: 1", None),
        ("slash: 3", "AG205"),
        ("all: 5", None),
        ("one: 5", "AG205"),
        ("free.x.y: 1", None),
        ("map.k: x", "AG205"),
        ("map.*: {maximum: 3}", None),
        ("text: abcd", "AG205"),
        ("text: a", "AG205"),
        ("num: -1", "AG205"),
        ("num: 5", "AG205"),
        ("num: 4.5", None),
        ("num: {const: null}", None),
        ("int: 4.5", "AG205"),
        ("int: 6", "AG205"),
        ("int: 0", "AG205"),
        ("int: {type: number}", None),
        ("fixed: y", "AG205"),
        ("bare.a: 1", "AG205"),
        ("bare.*: {pattern: x}", None),
        ("tags: {contains: {const: c}}", "AG205"),
        ("tags: {const: [a, c]}", "AG205"),
        ("tags: {items: {pattern: x}, maxItems: 2}", None),
        ("tags: {maximum: 2}", "AG204"),
        ("tags: {anyOf: [{maximum: 2}, {maxItems: 3}]}", "AG204"),
        ("items: {contains: {properties: {sku: {maximum: 2}}}}", "AG204"),
        ("items: {contains: {properties: {sq: {maximum: 2}}}}", "AG203"),
        ("never: 1", "AG203"),
        ("pair: {items: {const: 7}}", None),
    ],
)
def test_conditions_are_checked_against_nested_schemas(args: str, code: str | None) -> None:
    text = f"rules: [{{allow: t}}, {{deny: t, when: {{args: {{{args}}}}}}}]"
    found = [f.code for f in Policy.from_string(text).check(FakeRegistry(spec("t", DEEP))) if f.severity == "error"]
    assert found[:1] == ([code] if code else [])


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("clamp: {args.int: {maximum: 3}}", None),
        ("clamp: {args.int: {maximum: 2.5}}", "AG208"),
        ("clamp: {args.int: {maximum: 50}}", "AG208"),
        ("clamp: {args.num: {maximum: 3}}", "AG208"),
        ("clamp: {args.free.x: {maximum: 3}}", "AG208"),
        ("clamp: {args.map.*: {maximum: 3}}", None),
        ("clamp: {args.nope: {maximum: 3}}", "AG203"),
        ("redact: args.one", None),
        ("redact: args.text", "AG208"),
        ("rewrite: {args.num: null}", None),
        ("rewrite: {args.fixed: y}", "AG208"),
    ],
)
def test_obligations_are_checked_against_schemas(setting: str, code: str | None) -> None:
    text = f"rules: [{{allow: t}}, {{constrain: t, {setting}}}]"
    found = [f.code for f in Policy.from_string(text).check(FakeRegistry(spec("t", DEEP))) if f.severity == "error"]
    assert found == ([code] if code else [])


def test_null_defaults_are_found_at_every_depth() -> None:
    inner = {"type": "object", "properties": {"x": {"type": ["integer", "null"], "default": None}}}
    schema = shape(o={"anyOf": [inner, {"type": "null"}], "default": None}, p={"type": "string"})
    assert null_depths(schema, ["o", "x"]) == {1, 2}
    assert null_depths(schema, ["p"]) == frozenset()
    assert alternatives(7, schema) == [{}]
    assert step([{"type": "string"}], "x", schema) == []


def test_an_optional_path_through_a_null_default_counts_as_absent() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "integer"}}}
    registry = FakeRegistry(spec("t", shape(o={"anyOf": [inner, {"type": "null"}], "default": None})))
    rulebook = book("rules: [{allow: t, when: {args: {o.x: {maximum: 3, optional: true}}}}]", tools=registry)
    assert decide(rulebook, "t", {"o": None}).allowed
    assert decide(rulebook, "t", {}).allowed
    assert not decide(rulebook, "t", {"o": {"x": 4}}).allowed
    assert not decide(rulebook, "t", {"o": 5}).allowed


def test_findings_of_python_rules_have_no_place() -> None:
    policy = Policy(allow="*")
    (finding,) = policy.check(case_registry())
    assert (
        str(finding) == "AG301 rule allow: rule allow allows every tool, also those registered later (name the tools)"
    )


def test_finding_codes_are_documented_in_full_sentences() -> None:
    assert all(text.endswith(".") and text[0].isupper() for text in FINDING_CODES.values())


def test_from_document_is_what_from_string_uses() -> None:
    assert Policy.from_document(load("rules: [{allow: a}]")) == Policy.from_string("rules: [{allow: a}]")
