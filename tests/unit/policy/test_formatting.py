"""The layout of policy files: what is brought into order, and that nothing else ever changes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agentguard.documents import load, load_file
from agentguard.errors import PolicyError
from agentguard.policy import Policy, formatting
from agentguard.policy.formatting import NotFormatted, format_text
from tests.unit.policy.support import CASES

ROOT = Path(__file__).parents[3]
POLICIES = [group["policy"] for group in load_file(CASES / "decisions.yaml").value["groups"]]
FILES = sorted(path for path in ROOT.glob("examples/**/*.yaml") if "rules" in path.read_text())

MESSY = """\

# yaml-language-server: $schema=agentguard.schema.json
version: 1\t


name: 'shop'   # inline
rules:
  #a comment above
  - when:
      args: {n: {maximum: 10}}  # why
    # about the verb
    # in two lines
    allow: 'pay'

    id: 'small'
  - allow: look  # the first stays
    # a way to call it
    id: looking
  - message: |
      Ask.___

      #not a comment

    ask: look
    description: 'back\\slash'
  # the end

""".replace("_", " ").replace("ask:", "require_approval:")
TIDY = """\
# yaml-language-server: $schema=agentguard.schema.json
version: 1

name: "shop"   # inline
rules:
  # a comment above
  - id: "small"
    # about the verb
    # in two lines
    allow: "pay"

    when:
      args: {n: {maximum: 10}}  # why
  # a way to call it
  - id: looking
    allow: look  # the first stays
  - description: 'back\\slash'
    ask: look
    message: |
      Ask.___

      #not a comment

  # the end
""".replace("_", " ").replace("ask:", "require_approval:")


def test_a_messy_file_becomes_tidy() -> None:
    assert format_text(MESSY) == TIDY
    assert format_text(TIDY) == TIDY


@pytest.mark.parametrize("text", [*POLICIES, *(path.read_text() for path in FILES)])
def test_a_file_says_the_same_afterwards_and_formatting_is_idempotent(text: str) -> None:
    made = format_text(text)
    assert load(made).value == load(text).value
    assert Policy.from_string(made).digest == Policy.from_string(text).digest
    assert format_text(made) == made


@pytest.mark.parametrize("seed", range(40))
def test_rules_whose_settings_are_shuffled_come_out_alike(seed: int) -> None:
    chance = random.Random(seed)
    settings = [
        ["id: a"], ["description: 'what for'"], ["allow: [x, y]"], ["# note", "when:", "  agent: bot"],
        ["message: >", "  folded", "  text"], ["redact: args.key"],
    ]  # fmt: skip
    made = set()
    for _ in range(3):
        chance.shuffle(settings)
        lines = [line for setting in settings for line in setting if line != "# note"]
        made.add(format_text("rules:\n  - " + "\n    ".join(lines) + "\n  - deny: z\n"))
    assert len(made) == 1


def test_line_ends_and_marks_of_other_systems_are_removed() -> None:
    assert format_text("\ufeffversion: 1\r\nrules: []\r\n\r\n") == "version: 1\nrules: []\n"
    assert format_text("rules: []") == "rules: []\n"


@pytest.mark.parametrize(
    "text",
    [
        "rules:\n  - {id: a, allow: x}\n",
        "rules: [{when: {agent: b}, allow: x}]\n",
        "rules:\n  -   when: {agent: b}\n      id: a\n      allow: x\n",
        "rules:\n  -\n    when: {agent: b}\n    allow: x\n",
        "rules:\n  - {when: {agent: b},\n     allow: x}\n",
        "store: 'a\"b'\nrules: []\n",
        "store: 'it''s'\nrules: []\n",
        "rules:\n- id: a\n  allow: x\n",
        "#!shebang\n## heading\nrules: []\n",
    ],
)
def test_what_is_laid_out_otherwise_on_purpose_stays(text: str) -> None:
    made = format_text(text)
    assert load(made).value == load(text).value
    if "-   when" not in text:
        assert made == text


@pytest.mark.parametrize("text", ["rulse: []\n", "rules: [\n", "[]\n", "rules: 7\n", ""])
def test_what_is_no_policy_is_not_formatted(text: str) -> None:
    with pytest.raises(PolicyError):
        format_text(text)


def test_a_block_text_that_keeps_its_empty_lines_is_left_alone_or_the_same() -> None:
    text = "rules:\n  - message: |+\n      one\n\n\n    allow: x\n"
    try:
        assert load(format_text(text)).value == load(text).value
    except NotFormatted:
        pass


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda lines, document: [line.replace("pay", "pya") for line in lines], "values"),
        (lambda lines, document: [line.partition("#")[0] for line in lines], "comment"),
        (lambda lines, document: [*lines, "more: ["], "cannot be told apart"),
    ],
)
def test_a_change_that_is_more_than_layout_is_never_written(
    spoil: object, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted faults: whatever goes wrong in the rearranging, the comparison sees it."""
    monkeypatch.setattr(formatting, "_ordered", spoil)
    with pytest.raises(NotFormatted, match=why):
        format_text("rules:\n  # a comment\n  - allow: pay\n")


def test_a_layout_that_does_not_settle_is_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formatting, "_quoted", lambda lines, document: [lines[0] + " ", *[" " + x for x in lines[1:]]])
    with pytest.raises(NotFormatted, match="twice"):
        format_text("rules:\n  - allow: pay\n")


def test_a_changed_policy_is_seen_even_if_its_values_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formatting, "tagged", lambda value: b"")
    monkeypatch.setattr(formatting, "_ordered", lambda lines, document: [x.replace("pay", "pya") for x in lines])
    with pytest.raises(NotFormatted, match="policy"):
        format_text("rules: [{allow: pay}]\n")
