"""Process limits: honoured or refused, never ignored.

What must stay true: a call whose tool or policy asks for a CPU, memory or network limit does not run where the
limit would not hold. This version runs every body in the gateway's own process, where none of them can, so every
such call is refused.
"""

from __future__ import annotations

from agentguard.domain.decisions import Obligations
from agentguard.domain.plans import Sandbox, ToolSpec


def refuse(spec: ToolSpec, obligations: Obligations) -> str | None:
    """Say why the limits of a call cannot be honoured, or ``None`` when there are none.

    Args:
        spec: The tool; its ``sandbox`` asks for limits, and one without any limit asks for none.
        obligations: What the policy asks for.
    """
    tool = spec.sandbox or Sandbox()
    asked = [
        f"{name} ({source})"
        for name, source, wanted in (
            ("cpu_s", "tool", tool.cpu_s is not None),
            ("memory_bytes", "tool", tool.memory_bytes is not None),
            ("network: none", "tool", tool.network != "host"),
            ("cpu", "policy", obligations.cpu is not None),
            ("memory", "policy", obligations.memory_bytes is not None),
            ("network: none", "policy", obligations.network is not None),
        )
        if wanted
    ]
    if not asked:
        return None
    return (
        f"{spec.name} must run with limits that this version cannot enforce: {', '.join(asked)}. It does not run "
        "without them; remove the limits from the tool and the policy, or run the tool in a sandboxed service"
    )
