"""The command ``demo``."""

from __future__ import annotations


def demo() -> None:
    """Run a support agent."""
