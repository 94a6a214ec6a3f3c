"""``schema`` and ``explain``: what may stand in a file, and what the codes and words in messages mean.

What must stay true: the catalogue beside this module is a copy of ``docs/codes.toml`` (``docs/generate.py`` writes
it, a test compares them), so that the command and the pages say the same.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Annotated, Any

import typer

from agentguard.cli.opening import wrong
from agentguard.cli.options import Format, FormatOption
from agentguard.cli.printing import document, fields, table
from agentguard.documents import did_you_mean, printable
from agentguard.policy.grammar import file_schema


def schema() -> None:
    """Print the JSON Schema (2020-12) of agentguard.yaml, for editors.

    Write it to agentguard.schema.json, and begin the file with
    "# yaml-language-server: $schema=agentguard.schema.json".
    """
    document(file_schema())


def explain(
    code: Annotated[
        str | None,
        typer.Argument(metavar="[CODE]", help="A code such as AG203, or a stop reason such as policy_denied."),
    ] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Say what a code of a finding or error, or a stop reason, means and what to do; without one, list them all."""
    known = catalogue()
    if code is None:
        if form is Format.JSON:
            document(list(known.values()))
        else:
            table(("CODE", "TITLE"), ((name, about["title"]) for name, about in known.items()))
        return
    wanted = code.strip()
    about = known.get(wanted.upper()) or known.get(wanted.lower())
    if about is None:
        hint = did_you_mean(wanted, known)
        wrong(
            f"There is no code {printable(wanted, 40)}{f' ({hint})' if hint else ''}; 'agentguard explain' lists all."
        )
    if form is Format.JSON:
        document(about)
    else:
        fields([(key.replace("remedy", "what to do"), text) for key, text in about.items()])


def catalogue() -> dict[str, dict[str, Any]]:
    """Every code and stop reason, each with ``code``, ``title``, ``meaning`` and what else is known of it."""
    text = (files("agentguard.cli") / "codes.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    codes = {code: {"code": code, **about} for code, about in sorted(found["codes"].items())}
    reasons = {
        word: {"code": word, "title": "stop reason", "meaning": meaning}
        for word, meaning in found["stop_reasons"].items()
    }
    return {**codes, **reasons}
