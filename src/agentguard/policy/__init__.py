"""Policy: rules in YAML or Python, checked against the registry, compiled into a rulebook that decides."""

from __future__ import annotations

from agentguard.policy.codes import FINDING_CODES
from agentguard.policy.compiling import compile_layers
from agentguard.policy.deciding import Rulebook
from agentguard.policy.obliging import Unenforceable, apply, redact_output
from agentguard.policy.policies import Policy
from agentguard.policy.typing import Registered, Registry

__all__ = [
    "FINDING_CODES",
    "Policy",
    "Registered",
    "Registry",
    "Rulebook",
    "Unenforceable",
    "apply",
    "compile_layers",
    "redact_output",
]
