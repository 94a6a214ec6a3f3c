"""``schema``: what may stand in a file, for editors and generators."""

from __future__ import annotations

from agentguard.cli.printing import document
from agentguard.policy.grammar import file_schema


def schema() -> None:
    """Print the JSON Schema (2020-12) of agentguard.yaml, for editors.

    Write it to agentguard.schema.json, and begin the file with
    "# yaml-language-server: $schema=agentguard.schema.json".
    """
    document(file_schema())
