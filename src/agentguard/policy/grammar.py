"""The grammar of ``agentguard.yaml`` as a JSON Schema (2020-12), for editors and for tools that write such files.

What must stay true: a file that loads satisfies the schema, and every key that the readers know is in it and no
other (a test compares both). The schema cannot say everything: only ``agentguard check`` knows the tools, the
patterns and what several rules say together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from agentguard.domain.plans import EFFECTS, RISKS
from agentguard.policy.conditions import KEYWORDS, TYPES
from agentguard.policy.rules import FACTS, VERBS, WHO

Schema: TypeAlias = dict[str, Any]

ADDRESS: Final = "https://json-schema.org/draft/2020-12/schema"
"""The dialect (JSON Schema 2020-12, core, section 8.1.1)."""

_NAME: Final = {"type": "string", "pattern": "^[A-Za-z0-9_.:/*-]{1,128}$"}
_ID: Final = {"type": "string", "pattern": "^[A-Za-z0-9_.:/#-]{1,128}$"}
_TEXT: Final = {"type": "string", "minLength": 1}
_FLAG: Final = {"type": "boolean"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_POSITIVE: Final = {"type": "integer", "minimum": 1}
_ARGUMENT: Final = {"pattern": r"^[^.\s]{1,128}(\.[^.\s]{1,128}){0,15}$"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _texts(item: Mapping[str, Any] = _TEXT) -> Schema:
    """One text, or a list of texts."""
    return {"anyOf": [dict(item), {"type": "array", "items": dict(item), "minItems": 1}]}


def _object(properties: Mapping[str, Any], *, required: Sequence[str] = (), least: int = 0) -> Schema:
    """A mapping with these keys and no others."""
    made: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    if required:
        made["required"] = list(required)
    if least:
        made["minProperties"] = least
    return made


def _described(schema: Mapping[str, Any], text: str) -> Schema:
    return {"description": text, **schema}


def _optional(schema: Mapping[str, Any]) -> Schema:
    """The same, or nothing after the colon, which counts as not given."""
    return {"anyOf": [dict(schema), {"type": "null"}]}


def file_schema() -> Schema:
    """The schema of a whole file: a policy alone, or a policy with the settings of a gateway."""
    return {
        "$schema": ADDRESS,
        "title": "agentguard.yaml",
        "description": "Policy and settings of an agentguard gateway. Unknown keys are errors.",
        **_object(
            {
                "version": _described({"const": 1}, "Version of the policy language."),
                "name": _described(_ID, "Name of the layer in decisions."),
                "default": _described(
                    {"enum": ["deny", "abstain"]},
                    "What is said about calls that no rule matches: deny, or nothing (a layer that only restricts).",
                ),
                "mode": _described(
                    {"enum": ["enforce", "observe"]}, "enforce, or observe: decide and record without blocking."
                ),
                "rules": {
                    "description": "The rules; their order never matters.",
                    "type": "array",
                    "items": _ref("rule"),
                },
                **gateway_keys(),
            }
        ),
        "$defs": {
            "rule": rule(),
            "selector": selector(),
            "when": when(),
            "argument": argument(),
            "condition": condition(),
            "approval": _object(approval_terms()),
            "budget": budget(),
            "tool": tool(),
            "duration": {
                "description": "A time: 500ms, 30s, 5m, 2h, 1d, or a number of seconds.",
                "anyOf": [
                    {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]{1,9})?(ms|s|m|h|d)$"},
                    {"type": "number", "minimum": 0},
                ],
            },
            "size": {
                "description": "An amount of memory: 512MB, 4GiB, or a number of bytes.",
                "anyOf": [
                    {
                        "type": "string",
                        "pattern": r"^[0-9]{1,19}(\.[0-9]{1,9})? ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)$",
                    },
                    _POSITIVE,
                ],
            },
            "money": {
                "description": 'An exact amount of US dollars, in quotes: "0.50".',
                "anyOf": [{"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{1,40})?$"}, _COUNT],
            },
        },
    }


# -- rules -------------------------------------------------------------------------------------------------------------

_VERB_TEXTS: Final = {
    "allow": "Tools that may be called.",
    "deny": "Tools that may not be called; beats every other verb.",
    "require_approval": "Tools whose calls a person has to approve.",
    "constrain": "Tools whose calls get obligations; allows nothing by itself.",
}


def rule() -> Schema:
    """One rule: one verb and its settings."""
    made = _object(
        {
            "id": _described(_ID, "Name of the rule in decisions and records; unique in the file."),
            "description": {"type": "string", "minLength": 1, "maxLength": 2000},
            **{verb: _described(_ref("selector"), _VERB_TEXTS[verb]) for verb in VERBS},
            "when": _ref("when"),
            "valid": _described(
                _object({"from": _TEXT, "until": _TEXT}, least=1),
                "When the rule holds: dates (UTC) or times with zone.",
            ),
            "approval": _ref("approval"),
            "message": {
                "description": "What the model is told when the rule decides.",
                "type": "string",
                "minLength": 1,
                "maxLength": 400,
            },
            "redact": _described(
                _texts({"type": "string", "pattern": r"^(args\..+|output(\..+)?)$"}),
                "Arguments (args.<path>) or parts of the result (output, output.<path>) to remove.",
            ),
            "clamp": _described(
                _targets(_object({"minimum": {"type": "number"}, "maximum": {"type": "number"}}, least=1)),
                "Ranges that arguments are moved into.",
            ),
            "rewrite": _described(_targets({}), "Arguments that get another value."),
            "limits": _described(
                _object(
                    {
                        "timeout": _ref("duration"),
                        "memory": _ref("size"),
                        "cpu": {"type": "number", "exclusiveMinimum": 0},
                        "network": {"enum": ["none"]},
                    },
                    least=1,
                ),
                "Limits of the execution.",
            ),
        }
    )
    made["oneOf"] = [{"required": [verb]} for verb in VERBS]
    not_verb = {"not": {"required": ["require_approval"]}}
    made["allOf"] = [
        {"if": not_verb, "then": {"properties": {"approval": False}}},
        {
            "if": {"required": ["deny"]},
            "then": {"properties": dict.fromkeys(("redact", "clamp", "rewrite", "limits"), False)},
        },
    ]
    return made


def _targets(item: Mapping[str, Any]) -> Schema:
    return {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": r"^args\.[^.\s]"},
        "additionalProperties": dict(item),
    }


def selector() -> Schema:
    """Tools by name, glob or registered facts, or a list of such alternatives."""
    words: dict[str, Any] = {fact: _texts() for fact in FACTS}
    words["tool"] = _texts(_NAME)
    words["risk"] = _texts({"enum": list(RISKS)})
    words["effect"] = _texts({"enum": list(EFFECTS)})
    one = [dict(_NAME), _object(words, least=1)]
    return {"anyOf": [*one, {"type": "array", "minItems": 1, "items": {"anyOf": one}}]}


def when() -> Schema:
    """The conditions of a rule."""
    words = _texts()
    who = {"anyOf": [*words["anyOf"], _object({"not": words}, required=["not"])]}
    labels = {"anyOf": [*words["anyOf"], _object(dict.fromkeys(("any", "all", "none"), words), least=1)]}
    days = {"enum": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}
    clock = {"type": "string", "pattern": "^([01][0-9]|2[0-4]):[0-5][0-9]$"}
    time = _object(
        {
            "between": {"type": "array", "items": clock, "minItems": 2, "maxItems": 2},
            "days": _texts(days),
            "zone": _described(_TEXT, "IANA name of the time zone; UTC when left out."),
        }
    )
    time["anyOf"] = [{"required": ["between"]}, {"required": ["days"]}]
    return _described(
        _object(
            {
                **dict.fromkeys(WHO, who),
                "time": time,
                "run": _object({"labels": labels}, least=1),
                "args": {
                    "description": "Dotted path of an argument to a condition on it.",
                    "type": "object",
                    "minProperties": 1,
                    "propertyNames": _ARGUMENT,
                    "additionalProperties": _ref("argument"),
                },
            },
            least=1,
        ),
        "All of these must hold.",
    )


def argument() -> Schema:
    """A condition on an argument: a value, a list of values, or a schema fragment."""
    return {
        "anyOf": [
            {"type": ["string", "number", "boolean"]},
            {"type": "array", "minItems": 1},
            _ref("condition"),
        ]
    }


_MEANINGS: Final[Mapping[str, str]] = {
    "within": "An absolute path inside one of these directories.",
    "host": "A URL whose host is one of these; *.name for the names below it.",
    "scheme": "A URL with one of these schemes.",
    "email_domain": "One e-mail address in one of these domains.",
    "command": "A command line that begins with one of these, without any shell metacharacter.",
    "pattern": "A regular expression, matched in linear time.",
    "optional": "A missing argument makes the condition true.",
    "not": "The opposite.",
}


def condition() -> Schema:
    """A JSON Schema fragment with the keywords that the matchers evaluate."""
    nested: Schema = {"anyOf": [_FLAG, _ref("condition")]}
    several: Schema = {"type": "array", "minItems": 1, "items": nested}
    named: Schema = {"type": "object", "minProperties": 1, "additionalProperties": nested}
    of: dict[str, Schema] = {
        "const": {},
        "enum": {"type": "array", "minItems": 1},
        "type": _texts({"enum": list(TYPES)}),
        "pattern": {"type": "string", "maxLength": 1000},
        "required": _texts(),
        "dependentRequired": {"type": "object", "minProperties": 1, "additionalProperties": _texts()},
        **{key: {"type": "number"} for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")},
        "multipleOf": {"type": "number", "exclusiveMinimum": 0},
        **{key: dict(_COUNT) for key in ("minLength", "maxLength", "minItems", "maxItems")},
        **{key: dict(_COUNT) for key in ("minProperties", "maxProperties", "minContains", "maxContains")},
        **{key: dict(_FLAG) for key in ("uniqueItems", "optional")},
        "not": _ref("argument"),
        **dict.fromkeys(("items", "contains", "additionalProperties", "propertyNames"), nested),
        **dict.fromkeys(("if", "then", "else"), _ref("condition")),
        **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), several),
        **dict.fromkeys(("properties", "patternProperties"), named),
        "within": _texts({"type": "string", "pattern": "^/([^/]|$)"}),
        "host": _texts(),
        "scheme": _texts({"type": "string", "pattern": "^[a-z][a-z0-9+.-]*$"}),
        "email_domain": _texts(),
        "command": {"anyOf": [*_texts()["anyOf"], _object({"allow": _texts()}, required=["allow"])]},
    }
    made = _object(
        {word: _described(of[word], _MEANINGS[word]) if word in _MEANINGS else of[word] for word in KEYWORDS}
    )
    made["anyOf"] = [{"minProperties": 2}, {"minProperties": 1, "not": {"required": ["optional"]}}]
    made["dependentRequired"] = {
        "minContains": ["contains"],
        "maxContains": ["contains"],
        "then": ["if"],
        "else": ["if"],
    }
    return made


def approval_terms() -> dict[str, Schema]:
    """What an approval must satisfy."""
    step = _object({"after": _ref("duration"), "roles": _texts()}, required=["after", "roles"])
    return {
        "roles": _described(_texts(), "Roles, one of which an approver must hold."),
        "quorum": {"description": "How many people have to agree.", "type": "integer", "minimum": 1, "maximum": 100},
        "expires": _described(_ref("duration"), "After this time the request counts as expired; 1h when left out."),
        "separate": _described(_FLAG, "The person behind the run may not approve; true when left out."),
        "edit": _described(_FLAG, "Approvers may change the arguments; true when left out."),
        "escalate": {
            "description": "Who may decide too when nobody has.",
            "type": "array",
            "minItems": 1,
            "items": step,
        },
    }


# -- the gateway -------------------------------------------------------------------------------------------------------


def gateway_keys() -> dict[str, Schema]:
    """The sections beside the policy."""
    sink = _object({"jsonl": _TEXT, "required": _FLAG}, required=["jsonl"])
    return {
        "store": _described(_TEXT, "Address of the store, for example sqlite:///agentguard.db."),
        "tools": {
            "description": "Completes or tightens what decorators declare, or describes further tools.",
            "type": "object",
            "additionalProperties": _ref("tool"),
        },
        "budgets": _described(
            {"anyOf": [_ref("budget"), {"type": "array", "items": _ref("budget")}]}, "Limits of runs and of accounts."
        ),
        "approvals": _described(
            _object({"required_for": _ref("selector"), **approval_terms()}),
            "Short form of a require_approval rule, with its terms.",
        ),
        "logging": _object({"tool_calls": _FLAG, "stop_reasons": _FLAG}),
        "architecture": _described(
            _object(
                {
                    "tool_gateway": {"enum": ["owned"]},
                    "runtime": {"enum": ["managed_or_custom", "managed", "custom"]},
                }
            ),
            "Documentation; kept and shown.",
        ),
        "loops": _described(
            _object({"max_repeats": {"anyOf": [_POSITIVE, {"const": "off"}]}}, required=["max_repeats"]),
            "Identical consecutive calls of a model that count as a loop.",
        ),
        "credentials": _object(
            {"env": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,127}$"}}, required=["env"]
        ),
        "sinks": _described({"type": "array", "items": sink}, "Files that receive every audit record."),
    }


def budget() -> Schema:
    """One budget: a scope, and at least one limit."""
    table = {"type": "object", "additionalProperties": _POSITIVE}
    counts = ("max_steps", "max_tool_calls", "max_tokens", "max_input_tokens", "max_output_tokens", "max_repeats")
    limits: dict[str, Schema] = {
        **{key: dict(_POSITIVE) for key in counts},
        "max_cost_usd": _ref("money"),
        "max_seconds": _ref("duration"),
        "max_working_seconds": _ref("duration"),
        "per_tool": _described(table, "Limit of calls per tool name."),
        "counters": _described(table, "Limit per counter of your own."),
    }
    made = _object(
        {
            "scope": _described(
                {"enum": ["run", "session", "agent", "user", "team", "tenant", "everything"]},
                "Whose account it is; run when left out.",
            ),
            "per": {"enum": ["minute", "hour", "day", "month"]},
            "match": _described(_TEXT, "Only for names of the scope that this glob matches."),
            "warn_at": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            **limits,
        }
    )
    made["anyOf"] = [{"required": [name]} for name in limits]
    return made


def tool() -> Schema:
    """Settings of one tool; names as in ``@tool``."""
    words = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "uniqueItems": True}]}
    name = {"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,128}$"}
    retry = _object(
        {"attempts": {"type": "integer", "minimum": 1, "maximum": 100}}
        | dict.fromkeys(("wait", "max_wait", "jitter"), _ref("duration"))
    )
    breaker = _object({"failures": _POSITIVE, "reset": _ref("duration")})
    of: dict[str, Schema] = {
        "description": {"type": "string"},
        "permissions": _described(words, "What a caller must be permitted to do."),
        "owner": _TEXT,
        "version": {"anyOf": [_TEXT, {"type": "integer"}]},
        "deprecated": _FLAG,
        "replaced_by": name,
        "cost_usd": _described(_ref("money"), "Price of one attempt."),
        "effect": _described({"enum": list(EFFECTS)}, "What a call does to the world; irreversible when left out."),
        "risk": {"enum": list(RISKS)},
        "output_labels": _described(words, "Data labels that a run carries after it has seen the output."),
        "output_trust": {
            "description": "Who may have written each field of the output.",
            "type": "object",
            "additionalProperties": {"enum": ["trusted", "untrusted"]},
        },
        "cosmetic_args": words,
        "timeout": _ref("duration"),
        "retry": {"anyOf": [_POSITIVE, retry]},
        "breaker": {"anyOf": [_POSITIVE, breaker]},
        "concurrency": _POSITIVE,
        "fallback": name,
        "credentials": words,
        "idempotency_key": words,
        "inline": _FLAG,
        "audit": _FLAG,
        "input_schema": {"type": "object"},
        "output_schema": {"type": "object"},
    }
    return _object({key: _optional(schema) for key, schema in of.items()})
