"""What a request to a model may contain: tools the run may see, and hosted tools the policy allows.

Hosted tools run at the provider, out of the gateway's reach. They are taken out of every request unless the
policy allows a tool called ``hosted.<type>`` without a person's approval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agentguard.domain.calls import Refused
from agentguard.domain.decisions import StopReason
from agentguard.errors import CallRefused
from agentguard.tools.tool import Tool, tool

if TYPE_CHECKING:
    from agentguard.gateway import Run

HOSTED: Final = "hosted."
"""Prefix of the names under which a policy speaks about hosted tools."""

_SECRET: Final = frozenset({"authorization", "authorization_token", "headers", "type"})
_VERSION: Final = re.compile(r"_\d{4}_?\d{2}_?\d{2}$", re.ASCII)
_KIND: Final = re.compile(r"[a-z][a-z0-9_]{0,50}", re.ASCII)


def hosted_tool(kind: str, *, description: str = "") -> Tool:
    """A stand-in for a tool that runs at the model provider, so that policies can speak about it.

    Register it with the gateway; a policy that allows ``hosted.<kind>`` then lets the adapters leave tools of
    that type in requests. Its arguments are the settings of the tool in the request (for ``mcp``:
    ``server_label``, ``server_url`` and so on) without secrets.

    Args:
        kind: Type of the tool without its version: ``web_search``, ``file_search``, ``mcp``, ``code_execution``.
        description: For people.
    """

    def at_provider(**_: Any) -> None:
        raise RuntimeError(f"{kind} runs at the model provider and cannot be called here.")

    schema = {"type": "object", "properties": {}, "additionalProperties": True}
    made = tool(
        at_provider,
        name=HOSTED + kind,
        description=description or f"The {kind} tool of the model provider.",
        input_schema=schema,
    )
    return made if isinstance(made, Tool) else made.tool


def kind_of(entry_type: str) -> str:
    """Type of a hosted tool without its version: ``web_search_20250305`` is ``web_search``."""
    return _VERSION.sub("", entry_type)


class Screen:
    """What one request of a run may contain, read from the gateway when the request is made."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._gateway = run._gateway
        seen = self._gateway.visible(run)
        self.names: frozenset[str] = frozenset(
            seen.wire_name(item.spec.name) for item in seen if not item.spec.name.startswith(HOSTED)
        )

    def hosted(self, entry_type: object, settings: Mapping[str, Any] | None = None) -> bool:
        """Whether the policy lets a hosted tool run without a person."""
        if not isinstance(entry_type, str):
            return False
        kind = kind_of(entry_type)
        if not _KIND.fullmatch(kind):
            return False
        shown = {k: v for k, v in (settings or {}).items() if k not in _SECRET and v is not None}
        decision = self._gateway.decide(HOSTED + kind, shown, self._run.context, labels=self._run.labels)
        return decision.verdict == "allow"


def unenforceable(what: str) -> CallRefused:
    """The refusal of a request that the gateway cannot look into."""
    detail = f"{what} cannot be governed, so the request was not sent. Use a client of its own for what is no agent's."
    return CallRefused(Refused(StopReason.UNENFORCEABLE, None, "The request was not sent.", False, detail, "", "AG653"))
