"""The arithmetic of holds: the executable specification of every store's budgets.

An account has settled amounts (``used``) and reserved ones (``held``) per dimension, both integers >= 0.
A reservation is a two-phase transfer: ``held -> settled | released``, each resolved once. What must stay
true: ``used + held <= limit`` after every reservation; only a settlement may go beyond (actual use above
the reserved amount is recorded, never dropped, and shuts the account).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from agentguard.domain.constructing import quick
from agentguard.domain.decisions import StopReason
from agentguard.domain.usage import (
    COST,
    COUNTER_PREFIX,
    INPUT_TOKENS,
    NANO,
    OUTPUT_TOKENS,
    STEPS,
    TOKENS,
    TOOL_CALLS,
    TOOL_PREFIX,
    Amounts,
    BudgetWarning,
    Meter,
    Shortfall,
    Window,
)

_MINUTE_NS: Final = 60 * NANO


@dataclass(slots=True)
class Account:
    """One account of a store.

    Attributes:
        key: Account key, with its window where it has one.
        used: Settled amount per dimension.
        held: Reserved amount per dimension.
        warned: Dimensions whose warning threshold was reported already.
    """

    key: str
    used: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)


@quick
@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation that is not settled yet.

    Attributes:
        key: Key of the call it belongs to.
        accounts: Keys (with window) of the accounts that hold the amounts.
        amounts: What is held in each of them.
        lease_until: ns since the epoch; after that anybody may release it.
    """

    key: str
    accounts: tuple[str, ...]
    amounts: Amounts
    lease_until: int


def account_key(meter: Meter, now_ns: int) -> str:
    """The account's key at ``now_ns``: windows are calendar windows in UTC, so all processes agree on them."""
    if meter.per is None:
        return meter.account
    return f"{meter.account}@{window_start(meter.per, now_ns)}"


def window_start(per: Window, now_ns: int) -> str:
    """Start of the window that contains ``now_ns``, for example ``2026-11-20T14`` for an hour."""
    return _window_text(per, now_ns // _MINUTE_NS)


@lru_cache(maxsize=64)
def _window_text(per: Window, minute: int) -> str:
    # Every window begins with a minute, so this is asked anew once a minute and not for every call.
    moment = datetime.fromtimestamp(minute * 60, UTC)
    pattern = {"minute": "%Y-%m-%dT%H:%M", "hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}[per]
    return moment.strftime(pattern)


def shortfall(meter: Meter, account: Account, amounts: Amounts) -> Shortfall | None:
    """The first limit of ``meter`` that reserving ``amounts`` would cross, or ``None``.

    A limited dimension that actual use has overrun refuses even where nothing is asked of it: such an
    account is shut.
    """
    limits = meter.limits
    if not limits:
        return None
    used, held = account.used, account.held
    asked = 0
    for dimension, amount in amounts:
        limit = limits.get(dimension)
        if limit is not None:
            asked += 1
            if used.get(dimension, 0) + held.get(dimension, 0) + amount > limit:
                return _short(meter, account, dimension, limit, amount)
    if asked < len(limits):
        for dimension, limit in limits.items():
            # A tool's own limit concerns that tool only; every other limit shuts the whole account.
            if used.get(dimension, 0) > limit and not dimension.startswith(TOOL_PREFIX):
                return _short(meter, account, dimension, limit, 0)
    return None


def _short(meter: Meter, account: Account, dimension: str, limit: int, asked: int) -> Shortfall:
    return Shortfall(
        dimension=dimension,
        scope=meter.scope,
        label=meter.label,
        limit=limit,
        used=account.used.get(dimension, 0),
        held=account.held.get(dimension, 0),
        asked=asked,
    )


def hold(account: Account, amounts: Amounts) -> None:
    """Reserve ``amounts``. The caller has checked :func:`shortfall` under the same lock."""
    held = account.held
    for dimension, amount in amounts:
        if amount:
            held[dimension] = held.get(dimension, 0) + amount


def release(account: Account, amounts: Amounts) -> None:
    """Give a reservation back."""
    held = account.held
    for dimension, amount in amounts:
        if amount:
            left = held.get(dimension, 0) - amount
            if left > 0:
                held[dimension] = left
            else:
                held.pop(dimension, None)


def charge(account: Account, amounts: Amounts) -> None:
    """Record what was used."""
    used = account.used
    for dimension, amount in amounts:
        if amount:
            used[dimension] = used.get(dimension, 0) + amount


def settle(account: Account, amounts: Amounts) -> None:
    """Settle a reservation with exactly what it held: :func:`release` and :func:`charge` in one."""
    held, used = account.held, account.used
    for dimension, amount in amounts:
        if amount:
            left = held.get(dimension, 0) - amount
            if left > 0:
                held[dimension] = left
            else:
                held.pop(dimension, None)
            used[dimension] = used.get(dimension, 0) + amount


def overruns(meter: Meter, account: Account, amounts: Amounts) -> list[Shortfall]:
    """The limits of ``meter`` that actual use has crossed in the dimensions of ``amounts``."""
    return [
        _short(meter, account, dimension, limit, amount)
        for dimension, amount in amounts
        if (limit := meter.limits.get(dimension)) is not None and account.used.get(dimension, 0) > limit
    ]


def crossings(meter: Meter, account: Account, amounts: Amounts) -> list[BudgetWarning]:
    """Thresholds crossed for the first time; marks them as reported."""
    if meter.warn_at is None:
        return []
    found = []
    for dimension, _ in amounts:
        limit = meter.limits.get(dimension)
        if limit is None or dimension in account.warned:
            continue
        total = account.used.get(dimension, 0) + account.held.get(dimension, 0)
        if total >= meter.warn_at * limit:
            account.warned.add(dimension)
            found.append(BudgetWarning(dimension, meter.label, total, limit))
    return found


def reason_for(dimension: str) -> StopReason:
    """The stop reason of a limit in ``dimension``."""
    if dimension == STEPS:
        return StopReason.BUDGET_STEPS
    if dimension == TOOL_CALLS or dimension.startswith(TOOL_PREFIX):
        return StopReason.BUDGET_TOOL_CALLS
    if dimension in (TOKENS, INPUT_TOKENS, OUTPUT_TOKENS):
        return StopReason.BUDGET_TOKENS
    if dimension == COST:
        return StopReason.BUDGET_COST
    return StopReason.BUDGET_COUNTER


def describe(short: Shortfall) -> str:
    """One sentence about a limit, for people."""
    left = max(short.limit - short.used - short.held, 0)
    return (
        f"Budget of {short.label}: {name_of(short.dimension)} limit {shown(short.dimension, short.limit)}, "
        f"used {shown(short.dimension, short.used)}, reserved {shown(short.dimension, short.held)}, "
        f"left {shown(short.dimension, left)}, asked for {shown(short.dimension, short.asked)}."
    )


def name_of(dimension: str) -> str:
    """What people call a dimension."""
    if dimension.startswith(TOOL_PREFIX):
        return f"calls of {dimension[len(TOOL_PREFIX) :]}"
    if dimension.startswith(COUNTER_PREFIX):
        return f"counter {dimension[len(COUNTER_PREFIX) :]}"
    return {COST: "cost", TOOL_CALLS: "tool call", STEPS: "step"}.get(dimension, dimension.replace("_", " "))


def shown(dimension: str, amount: int) -> str:
    """An amount as people read it: money in dollars, everything else as a number."""
    if dimension != COST:
        return str(amount)
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    whole, rest = divmod(amount, NANO)
    cents = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole}.{cents}"


def total(amounts: Iterable[Amounts]) -> Mapping[str, int]:
    """The sum of several amounts per dimension."""
    sums: dict[str, int] = {}
    for pairs in amounts:
        for dimension, amount in pairs:
            sums[dimension] = sums.get(dimension, 0) + amount
    return sums
