"""``python -m agentguard.cli``: the same as the command ``agentguard``."""

from agentguard.cli import main

main()
