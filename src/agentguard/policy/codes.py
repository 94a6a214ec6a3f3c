"""Every finding code a policy file can produce, with one sentence of explanation each; codes are never reused."""

from __future__ import annotations

from agentguard.documents import CODES

FINDING_CODES: dict[str, str] = {
    **CODES,
    "AG110": "A key is not known here; the finding names the one that was probably meant.",
    "AG111": "A value has the wrong shape, for example a list where a mapping is needed.",
    "AG112": "A rule lacks something it needs, for example its verb.",
    "AG113": "A duration, size, time or date cannot be read.",
    "AG114": "The word belongs to the policy language, but this version cannot evaluate it.",
    "AG115": "A value is not one of the words permitted here.",
    "AG116": "A pattern is no regular expression that can be matched in linear time.",
    "AG117": "An argument condition is malformed.",
    "AG118": "Two rules of one policy have the same id.",
    "AG119": "A setting does not belong to the verb of its rule.",
    "AG120": "A tool name or glob is malformed.",
    "AG201": "A rule names a tool that is not registered.",
    "AG202": "A glob matches no registered tool.",
    "AG203": "A rule names an argument that the tool does not have.",
    "AG204": "An operator does not fit the type of the argument, so it could never be evaluated.",
    "AG205": "A value in a condition is outside what the tool's schema permits.",
    "AG206": "No registered tool requires this permission.",
    "AG207": "No registered tool has this owner or output label.",
    "AG208": "An obligation cannot be applied to this argument.",
    "AG301": "An allow rule without conditions covers every tool.",
    "AG302": "Two rules say the same.",
    "AG303": "Some selected tools lack an argument of the condition, so the rule always or never matches them.",
    "AG304": "A selector matches no registered tool at present.",
    "AG305": "The policy has no rule that allows anything.",
    "AG306": "An allow pattern is not anchored at both ends, so it matches anywhere in the text.",
    "AG307": "A condition can never be true.",
    "AG410": "An escalation step comes after the approval has expired.",
}
"""Finding code -> one-sentence explanation."""
