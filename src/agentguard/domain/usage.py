"""What a run may use and has used: limits, meters and amounts, all in exact integers.

Money is counted in nano-dollars (1e-9 USD) so that a single token of a cheap model still has an exact
price; everything else in whole units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, TypeAlias

ScopeName: TypeAlias = Literal["run", "session", "agent", "user", "team", "tenant", "everything"]
Window: TypeAlias = Literal["minute", "hour", "day", "month"]

NANO = 1_000_000_000
"""Nano-dollars in a dollar, and nanoseconds in a second."""

STEPS = "steps"
TOOL_CALLS = "tool_calls"
INPUT_TOKENS = "input_tokens"
OUTPUT_TOKENS = "output_tokens"
TOKENS = "tokens"
COST = "cost_usd"
TOOL_PREFIX = "tool:"
COUNTER_PREFIX = "counter:"

Amounts: TypeAlias = tuple[tuple[str, int], ...]
"""Pairs of dimension and amount: ``(("steps", 1), ("tool_calls", 1), ("tool:email.send", 1))``."""


@dataclass(frozen=True, slots=True)
class Meter:
    """One account that calls are charged to, with the limits that apply there.

    Attributes:
        account: Key of the account without its window, tenant included, parts length-prefixed.
        scope: Which kind of account it is.
        label: What people call it, for example ``tenant acme per day``.
        limits: Limit per dimension, in the dimension's integer unit. A dimension without an entry is
            counted and not limited.
        per: Calendar window in UTC after which the account starts at zero, or ``None`` for a lifetime.
        warn_at: Share of a limit (0 to 1) at which a warning is recorded once, or ``None``.
    """

    account: str
    scope: ScopeName
    label: str
    limits: Mapping[str, int] = field(default_factory=dict)
    per: Window | None = None
    warn_at: float | None = None


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A limit that a reservation would have crossed.

    Attributes:
        dimension: For example ``tool_calls`` or ``cost_usd``.
        scope: Scope of the account.
        label: What people call the account.
        limit: The limit, in the dimension's unit.
        used: Settled amount.
        held: Amount reserved by calls in flight.
        asked: Amount that was asked for.
    """

    dimension: str
    scope: str
    label: str
    limit: int
    used: int
    held: int
    asked: int


@dataclass(frozen=True, slots=True)
class BudgetWarning:
    """A threshold that was crossed: ``used`` of ``limit`` in ``dimension`` of the account ``label``."""

    dimension: str
    label: str
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What has been used, settled amounts only.

    Attributes:
        steps: Model calls, tool calls and explicit steps.
        tool_calls: Governed calls that ran.
        input_tokens: Tokens sent to models.
        output_tokens: Tokens received from models.
        tokens: Both together.
        cost_usd: Known cost in US dollars, exact; lacks the calls counted in ``unpriced_calls``.
        unpriced_calls: Model calls whose price is unknown; while it is not 0, ``cost_usd`` is a lower bound.
        seconds: Wall time since the run began.
        working_seconds: The same without waiting for people.
        per_tool: Calls per tool.
        counters: Custom counters.
    """

    steps: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced_calls: int = 0
    seconds: float = 0.0
    working_seconds: float = 0.0
    per_tool: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """One limited dimension of one account, for tables and reports."""

    label: str
    scope: str
    dimension: str
    used: int
    held: int
    limit: int | None
    account: str
