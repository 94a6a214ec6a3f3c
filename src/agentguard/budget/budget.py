"""Which scopes may use how much: :class:`Budget`, and the meters that a run is charged to.

Limits are checked and turned into integers when a budget is made, so nothing can be misread when a call
is charged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, get_args

from agentguard.canonical import joined
from agentguard.domain.context import RunContext
from agentguard.domain.usage import (
    COST,
    COUNTER_PREFIX,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    STEPS,
    TOKENS,
    TOOL_CALLS,
    TOOL_PREFIX,
    Meter,
    ScopeName,
    Window,
)
from agentguard.errors import ConfigurationError
from agentguard.globbing import matches
from agentguard.naming import check_id
from agentguard.units import nano_usd, seconds

SCOPES: Final[tuple[ScopeName, ...]] = get_args(ScopeName)
WINDOWS: Final[tuple[Window, ...]] = get_args(Window)
_COUNTS: Final = {
    "max_steps": STEPS,
    "max_tool_calls": TOOL_CALLS,
    "max_tokens": TOKENS,
    "max_input_tokens": INPUT_TOKENS,
    "max_output_tokens": OUTPUT_TOKENS,
}
_LARGEST: Final = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be used, in one scope and window.

    A budget with no limit at all is refused: it would look like protection and be none.

    Attributes:
        max_steps: Model calls, tool calls and explicit steps together.
        max_tool_calls: Governed tool calls.
        max_tokens: Input and output tokens together.
        max_input_tokens: Tokens sent to models.
        max_output_tokens: Tokens received from models.
        max_cost_usd: US dollars, ``Decimal`` or ``str``, exact to 1e-9; never ``float``.
        max_seconds: Wall time of the run, a number of seconds or a duration such as ``"5m"``; scope ``run`` only.
        max_working_seconds: The same without the time spent waiting for people; scope ``run`` only.
        per_tool: Calls per tool name.
        counters: Limits of custom counters, see ``run.count``.
        scope: ``run`` (with its sub-agents), ``session``, ``agent``, ``user``, ``team``, ``tenant`` or ``everything``.
        per: Calendar window in UTC, ``minute``, ``hour``, ``day`` or ``month``; ``None`` for a lifetime.
        match: Glob that the scope's value must match (``research-*``), or ``None`` for all.
        warn_at: Share of a limit (above 0, at most 1) at which a warning is recorded.
        max_repeats: Identical consecutive calls allowed in a run before it counts as a loop; scope ``run`` only.

    Raises:
        ConfigurationError: A limit is not a positive number of its kind, or a combination makes no sense.
    """

    max_steps: int | None = None
    max_tool_calls: int | None = None
    max_tokens: int | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_cost_usd: Decimal | str | int | None = None
    max_seconds: float | str | None = None
    max_working_seconds: float | str | None = None
    per_tool: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    scope: ScopeName = "run"
    per: Window | None = None
    match: str | None = None
    warn_at: float | None = None
    max_repeats: int | None = None

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise _wrong("scope", self.scope, f"one of {', '.join(SCOPES)}")
        if self.per is not None and self.per not in WINDOWS:
            raise _wrong("per", self.per, f"one of {', '.join(WINDOWS)}, or nothing for a lifetime")
        if self.warn_at is not None and (
            isinstance(self.warn_at, bool) or not isinstance(self.warn_at, (int, float)) or not 0 < self.warn_at <= 1
        ):
            raise _wrong("warn_at", self.warn_at, "a number above 0 and at most 1")
        if self.match is not None and (not isinstance(self.match, str) or not self.match):
            raise _wrong("match", self.match, "a name or glob")
        if self.match is not None and self.scope in ("run", "everything"):
            raise ConfigurationError(
                f"AG403 match selects by name, and nobody names a {self.scope}; use it with another scope, "
                "for example scope: agent.",
                code="AG403",
            )
        for name in _COUNTS:
            _count(name, getattr(self, name))
        _count("max_repeats", self.max_repeats)
        for kind, table in (("per_tool", self.per_tool), ("counters", self.counters)):
            if not isinstance(table, Mapping):
                raise _wrong(kind, table, "a mapping from name to limit")
            for key, limit in table.items():
                check_id(f"name in {kind}", key)
                _count(f"{kind}.{key}", limit, needed=True)
            object.__setattr__(self, kind, dict(table))  # what its owner does with it later is not checked
        if self.max_cost_usd is not None:
            self._cost()
        for name in ("max_seconds", "max_working_seconds"):
            if getattr(self, name) is not None:
                self._span(name)
                if self.scope != "run" or self.per is not None:
                    raise ConfigurationError(
                        f"AG403 {name} limits the time of one run; remove it or use scope: run without a window.",
                        code="AG403",
                    )
        if self.max_repeats is not None and self.scope != "run":
            raise ConfigurationError("AG403 max_repeats counts in one run; use it with scope: run.", code="AG403")
        if self.scope == "run" and self.per is not None:
            raise ConfigurationError(
                "AG404 a run has no calendar window; remove per or use another scope.", code="AG404"
            )
        if not self.limits and self.max_seconds is None and self.max_working_seconds is None and not self.max_repeats:
            raise ConfigurationError(
                "AG401 this budget limits nothing; give it at least one max_... limit.", code="AG401"
            )

    def _cost(self) -> int:
        if isinstance(self.max_cost_usd, (bool, float)):
            raise _wrong("max_cost_usd", self.max_cost_usd, 'a quoted decimal such as "0.50" (floats are not exact)')
        try:
            amount = nano_usd(self.max_cost_usd)
        except (ValueError, TypeError) as error:
            raise _wrong("max_cost_usd", self.max_cost_usd, f"an exact amount in dollars: {error}") from error
        if amount <= 0 or amount > _LARGEST:
            raise _wrong("max_cost_usd", self.max_cost_usd, "an amount above 0")
        return amount

    def _span(self, name: str) -> float:
        value = getattr(self, name)
        try:
            span = seconds(value)
        except (ValueError, TypeError) as error:
            raise _wrong(name, value, f"a duration: {error}") from error
        if span <= 0:
            raise _wrong(name, value, "a duration above 0")
        return span

    @property
    def limits(self) -> dict[str, int]:
        """Limit per dimension in integer units (money in nano-dollars), without the time limits."""
        found = {dimension: limit for name, dimension in _COUNTS.items() if (limit := getattr(self, name)) is not None}
        if self.max_cost_usd is not None:
            found[COST] = self._cost()
        found.update({TOOL_PREFIX + name: limit for name, limit in self.per_tool.items()})
        found.update({COUNTER_PREFIX + name: limit for name, limit in self.counters.items()})
        return found

    @property
    def seconds_ns(self) -> int | None:
        """Wall time limit in ns, or ``None``."""
        return None if self.max_seconds is None else int(self._span("max_seconds") * 1e9)

    @property
    def working_ns(self) -> int | None:
        """Working time limit in ns, or ``None``."""
        return None if self.max_working_seconds is None else int(self._span("max_working_seconds") * 1e9)

    def narrowed(self, other: Budget | None) -> Budget:
        """The tighter of two budgets of the same scope and window, limit by limit."""
        if other is None:
            return self
        changes: dict[str, Any] = {}
        for name in (*_COUNTS, "max_repeats"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if theirs is not None and (mine is None or theirs < mine):
                changes[name] = theirs
        if other.max_cost_usd is not None and (self.max_cost_usd is None or other._cost() < self._cost()):
            changes["max_cost_usd"] = other.max_cost_usd
        for name in ("max_seconds", "max_working_seconds"):
            if getattr(other, name) is not None and (
                getattr(self, name) is None or other._span(name) < self._span(name)
            ):
                changes[name] = getattr(other, name)
        if other.warn_at is not None and (self.warn_at is None or other.warn_at < self.warn_at):
            changes["warn_at"] = other.warn_at
        for name in ("per_tool", "counters"):
            merged = dict(getattr(self, name))
            for key, limit in getattr(other, name).items():
                merged[key] = min(limit, merged.get(key, limit))
            changes[name] = merged
        return replace(self, **changes)


def _count(name: str, value: object, *, needed: bool = False) -> None:
    if value is None and not needed:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, "a whole number")
    if value <= 0:
        raise ConfigurationError(
            f"AG402 {name} is {value}; a limit must be above 0 (to forbid a tool, deny it in the policy).", code="AG402"
        )
    if value > _LARGEST:
        raise _wrong(name, value, "a smaller number")


def _wrong(name: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"AG402 {name}: {value!r:.60} is not {wanted}.", code="AG402")


def scope_value(scope: ScopeName, context: RunContext) -> str | None:
    """The name of the run's account in ``scope`` (its agent, its tenant, ...), or ``None`` when it has none."""
    match scope:
        case "run":
            return context.run_id
        case "session":
            return context.session
        case "agent":
            return context.agent
        case "user":
            return context.user
        case "team":
            return context.team
        case "tenant":
            return context.tenant
        case "everything":
            return ""


def meter_for(budget: Budget, context: RunContext) -> Meter | None:
    """The account that ``budget`` means for a run, or ``None`` when the run has no such scope (no user, say)."""
    value = scope_value(budget.scope, context)
    if value is None:
        return None
    tenant = "" if budget.scope == "everything" else context.tenant
    account = joined(budget.scope, tenant, value, budget.per or "", budget.match or "")
    label = " ".join(p for p in (budget.scope, value, f"per {budget.per}" if budget.per else "") if p)
    return Meter(account, budget.scope, label, budget.limits, budget.per, budget.warn_at)


def run_meter(context: RunContext, budget: Budget | None) -> Meter:
    """The run's own account; it counts everything, with limits where ``budget`` sets them."""
    account = joined("run", context.tenant, context.run_id, "", "")
    label = f"run {context.run_id}"
    if budget is None:
        return Meter(account, "run", label)
    return Meter(account, "run", label, budget.limits, None, budget.warn_at)


def merged(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """One budget per scope, window and match: where several speak of the same account, the tighter limits win."""
    found: dict[tuple[str, str | None, str | None], Budget] = {}
    for budget in budgets:
        key = (budget.scope, budget.per, budget.match)
        found[key] = budget.narrowed(found.get(key)) if key in found else budget
    return tuple(found.values())


def meters_for(
    context: RunContext, own: Budget | None, shared: Iterable[Budget], inherited: Iterable[Meter] = ()
) -> tuple[Meter, ...]:
    """Every account that a run's calls are charged to: its own, its ancestors', and the shared ones it falls under.

    Args:
        context: Identity of the run.
        own: Limits of the run itself.
        shared: Budgets of the other scopes.
        inherited: Run meters of the ancestors (a child spends from its parents' budgets too).
    """
    meters = [run_meter(context, own), *inherited]
    for budget in shared:
        if budget.scope == "run":
            continue
        meter = meter_for(budget, context)
        if meter is None or (
            budget.match is not None and not matches(budget.match, scope_value(budget.scope, context) or "")
        ):
            continue
        meters.append(meter)
    return tuple(meters)
