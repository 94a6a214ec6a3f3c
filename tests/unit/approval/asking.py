"""A call that needs approval, for the tests of this room: a refund of 250 dollars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentguard.approval import routing
from agentguard.approval.binding import canonical_arguments
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity
from agentguard.domain.decisions import ApprovalTerms, EscalationStep
from agentguard.domain.operations import ApprovalDemand, Begin
from agentguard.domain.usage import NANO

NOW = 1_800_000_000 * NANO
MINUTE = 60 * NANO

ANN = ApproverIdentity("ann", ("finance",))
BOB = ApproverIdentity("bob", ("finance", "legal"))
EVE = ApproverIdentity("eve", ("guest",))
LEAD = ApproverIdentity("lea", ("finance-lead",))

FINANCE = ApprovalTerms(role_sets=(("finance",),), expires_s=1800.0)
LADDER = replace(FINANCE, escalate=(EscalationStep(600.0, ("finance-lead",)),))
TWO = replace(FINANCE, quorum=2)

ARGUMENTS: Mapping[str, Any] = {"order": "A-17", "amount": 250, "note": "thanks", "items": [{"sku": "x", "n": 1}]}


def begin(**changes: Any) -> Begin:
    call = Begin(
        tenant="acme",
        run_id="run-1",
        agent="support-bot",
        user="u-17",
        environment="prod",
        call_id="c1",
        key="4:call4:acme5:run-12:c1",
        tool="refunds.create",
        effect="irreversible",
        fingerprint="f" * 64,
        policy_digest="p" * 64,
        run_version=None,
        meters=(),
        amounts=(("tool_calls", 1), ("cost_usd", 1_500_000), ("tool_calls", 1)),
        lease_ns=NANO,
    )
    return replace(call, **changes)


def demand(arguments: Mapping[str, Any] = ARGUMENTS, terms: ApprovalTerms = FINANCE, **changes: Any) -> ApprovalDemand:
    wanted = ApprovalDemand(
        terms=terms,
        arguments=arguments,
        proposed={**ARGUMENTS, "amount": 999},
        canonical=canonical_arguments(arguments, ("note",)),
        tool_digest="t" * 64,
        risk="high",
        effect="irreversible",
        rules=("big-refunds (policy.yaml:12)",),
        reasons=("amount is over 100",),
        id="ap_" + "0" * 32,
        nonce="n" * 32,
    )
    return replace(wanted, **changes)


def opened(terms: ApprovalTerms = FINANCE, **changes: Any) -> ApprovalRequest:
    return replace(routing.open_request(begin(), demand(terms=terms), NOW), **changes)
