"""Mutated and crafted policy files: a PolicyError or a policy, within a second, and nothing else."""

from __future__ import annotations

import os
import random
import sys
import time

import pytest

from agentguard.errors import PolicyError
from agentguard.policy import Policy, compile_layers
from tests.unit.policy.support import CASES, case_registry

SEED = """version: 1
name: support
default: deny
rules:
  - id: read-orders
    allow: ["orders.get", "kb.*"]
    when:
      environment: [prod, staging]
      args: {limit: {maximum: 100, optional: true}}
  - id: refunds
    require_approval: refunds.create
    when: {args: {amount: {exclusiveMinimum: 100, maximum: 5000}}, time: {between: ["08:00", "18:00"], zone: UTC}}
    approval: {roles: [finance], quorum: 2, expires: 30m, escalate: [{after: 10m, roles: [lead]}]}
  - deny: {permission: "fs:*"}
    when: {args: {path: {not: {within: /srv/agents}}}, run: {labels: {any: [secret]}}}
    valid: {until: 2030-01-01}
  - constrain: shell.run
    limits: {timeout: 30s, memory: 4GB, cpu: 2, network: none}
    clamp: {args.limit: {maximum: 50}}
approvals: {required_for: ["email.send"]}
budgets: {max_steps: 25}
"""
PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    "- ",
    "&a ",
    "*a",
    "!!str ",
    "\t",
    "\n",
    "\x00",
    "'",
    '"',
    "|",
    ">",
    "%",
    "#",
    "é",
    "\u202e",
]
PIECES += [
    "null",
    "true",
    ".nan",
    "1e9",
    "0x1",
    "9" * 30,
    "? ",
    "<<: ",
    "---\n",
    "deny: x\n",
    "{}",
    "[]",
    "''",
    "a.b.*.c",
]
LIMIT = 1.0 if sys.gettrace() is None else 5.0  # seconds; measuring coverage takes its share
AMOUNT = int(os.environ.get("AGENTGUARD_FUZZ", "500"))


def mutated(rng: random.Random) -> str:
    text = SEED
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        until = min(len(text), at + rng.randint(1, 30))
        match rng.randrange(6):
            case 0:
                text = text[:at] + rng.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[until:]
            case 2:
                text = text[:at] + text[at:until] * 2 + text[until:]
            case 3:
                text = text[:at] + rng.choice(PIECES) + text[until:]
            case 4:
                lines = text.split("\n")
                rng.shuffle(lines)
                text = "\n".join(lines) if rng.random() < 0.1 else text
            case _:
                words = text.split(" ")
                words[rng.randrange(len(words))] = rng.choice(words)
                text = " ".join(words)
    return text


def outcome(text: str) -> str:
    start = time.thread_time()
    try:
        compile_layers([Policy.from_string(text, "f.yaml")], case_registry())
        answer = "loaded"
    except PolicyError as error:
        answer = (
            "refused" if error.findings and all(f.code and (f.line or not f.file) for f in error.findings) else "mute"
        )
    assert time.thread_time() - start < LIMIT, text[:200]
    return answer


def test_the_unchanged_file_loads() -> None:
    assert outcome(SEED) == "loaded"


def test_mutated_files_load_or_are_refused_with_a_place() -> None:
    rng = random.Random(16)
    answers = [outcome(mutated(rng)) for _ in range(AMOUNT)]
    assert set(answers) == {"loaded", "refused"}


@pytest.mark.parametrize(
    "text",
    [
        "rules:\n" + "  - {allow: kb.search, when: {args: {q: {pattern: '^x$'}}}}\n" * 4000,
        "rules:\n"
        + "".join(f"  - {{deny: kb.search, when: {{args: {{q: {{pattern: 'x{{{n}}}y'}}}}}}}}\n" for n in range(900)),
        "rules:\n"
        + "".join(f"  - {{deny: kb.search, when: {{args: {{limit: {{minimum: {n}}}}}}}}}\n" for n in range(2000)),
        "rules:\n" + "".join(f"  - deny: kb.serch{n}\n" for n in range(5000)),
        "rules:\n" + "".join(f"  - denny{n}: x\n" for n in range(5000)),
        "rules:\n"
        + "".join(
            f"  - {{deny: kb.search, when: {{args: {{q: {{pattern: '[a-z]{{90}}{n}'}}}}}}}}\n" for n in range(4000)
        ),
        "rules:\n"
        + "".join(
            f"  - {{deny: kb.search, when: {{args: {{q: {{pattern: '\\p{{L}}{{50}}{n}'}}}}}}}}\n" for n in range(4000)
        ),
        "rules: [" + "{" * 19,
        "".join(f"kee{n}: 1\n" for n in range(20000)),
        "rules: [{deny: kb.search, when: {args: {q: {enum: [" + "a, " * 40_000 + "b]}}}}]",
        "rules: [{deny: [" + "kb.search, " * 20_000 + "kb.search]}]",
        "rules: [{deny: " + "*" * 128 + "}]",
        "rules: [{deny: kb.search, when: {args: {" + "a." * 500 + "b: 1}}}]",
        "rules: [{deny: kb.search, when: {args: {q: {" + "not: {" * 14 + "const: a" + "}" * 14 + "}}}}]",
    ],
)
def test_crafted_files_are_answered_within_a_second(text: str) -> None:
    assert outcome(text) in {"loaded", "refused"}


def test_the_shared_cases_are_strict_yaml_themselves() -> None:
    assert {path.name for path in CASES.glob("*.yaml")} >= {"decisions.yaml", "refused.yaml"}
