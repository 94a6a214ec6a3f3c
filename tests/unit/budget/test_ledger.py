"""The arithmetic of holds: never above a limit, all or none, nothing lost and nothing made."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentguard.budget import ledger
from agentguard.budget.ledger import Account
from agentguard.domain.decisions import StopReason
from agentguard.domain.usage import Meter, Shortfall
from agentguard.testing.clocks import NOON

DIMENSIONS = ("steps", "tool_calls", "cost_usd", "tool:pay")
amounts = st.lists(
    st.tuples(st.sampled_from(DIMENSIONS), st.integers(0, 6)), max_size=4, unique_by=lambda pair: pair[0]
).map(tuple)


def _at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


class Ledger(RuleBasedStateMachine):
    """Reserve, settle and release in any order over two accounts, beside a plain count."""

    def __init__(self) -> None:
        super().__init__()
        self.meters = (
            Meter("a", "run", "a", {"steps": 20, "tool_calls": 10}),
            Meter("b", "tenant", "b", {"tool_calls": 7, "cost_usd": 15, "tool:pay": 5}),
        )
        self.accounts = (Account("a"), Account("b"))
        self.open: list[tuple[tuple[str, int], ...]] = []
        self.spent: dict[str, int] = {}
        self.overran = False

    @rule(asked=amounts)
    def reserve(self, asked: tuple[tuple[str, int], ...]) -> None:
        pairs = list(zip(self.meters, self.accounts, strict=True))
        short = next((s for m, a in pairs if (s := ledger.shortfall(m, a, asked)) is not None), None)
        if short is None:
            for account in self.accounts:
                ledger.hold(account, asked)
            self.open.append(asked)
        else:
            over = short.used + short.held + short.asked > short.limit
            assert over or short.used > short.limit

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        held = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        used = tuple((d, data.draw(st.integers(0, amount))) for d, amount in held)
        for account in self.accounts:
            ledger.release(account, held)
            ledger.charge(account, used)
        for dimension, amount in used:
            self.spent[dimension] = self.spent.get(dimension, 0) + amount

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        for account in self.accounts:
            ledger.release(account, held)

    @invariant()
    def never_above_a_limit(self) -> None:
        for meter, account in zip(self.meters, self.accounts, strict=True):
            for dimension, limit in meter.limits.items():
                assert account.used.get(dimension, 0) + account.held.get(dimension, 0) <= limit

    @invariant()
    def nothing_is_lost_and_nothing_made(self) -> None:
        held = ledger.total(self.open)
        for account in self.accounts:
            assert {d: n for d, n in account.used.items() if n} == {d: n for d, n in self.spent.items() if n}
            assert dict(account.held) == {d: n for d, n in held.items() if n}
            assert all(n > 0 for n in account.held.values())


TestLedger = Ledger.TestCase


def test_a_check_that_cannot_fail_would_be_found_out() -> None:
    account = Account("a")
    ledger.hold(account, (("steps", 21),))
    machine = Ledger()
    machine.accounts = (account, Account("b"))
    with pytest.raises(AssertionError):
        machine.never_above_a_limit()


@given(st.integers(1, 100), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_a_reservation_passes_exactly_up_to_the_limit(limit: int, used: int, held: int, asked: int) -> None:
    account = Account("a", {"steps": used}, {"steps": held})
    short = ledger.shortfall(Meter("a", "run", "a", {"steps": limit}), account, (("steps", asked),))
    assert (short is None) == (used + held + asked <= limit)


def test_an_account_that_was_overrun_is_shut_also_for_what_it_does_not_limit() -> None:
    meter = Meter("a", "run", "a", {"cost_usd": 5, "tokens": 100})
    account = Account("a", {"cost_usd": 6})
    short = ledger.shortfall(meter, account, (("steps", 1),))
    assert short == Shortfall("cost_usd", "run", "a", 5, 6, 0, 0)
    assert ledger.shortfall(meter, Account("a", {"cost_usd": 5}), (("steps", 1),)) is None


def test_the_limit_of_one_tool_shuts_nothing_else() -> None:
    meter = Meter("a", "run", "a", {"tool:pay": 1})
    assert ledger.shortfall(meter, Account("a", {"tool:pay": 2}), (("tool:read", 1),)) is None
    assert ledger.shortfall(meter, Account("a", {"tool:pay": 1}), (("tool:pay", 1),)) is not None
    assert ledger.shortfall(Meter("a", "run", "a"), Account("a"), (("steps", 10**9),)) is None


def test_overruns_name_what_was_crossed() -> None:
    meter = Meter("a", "run", "a", {"tokens": 5, "steps": 5})
    account = Account("a")
    ledger.charge(account, (("tokens", 6), ("steps", 1), ("other", 9)))
    found = ledger.overruns(meter, account, (("tokens", 6), ("steps", 1), ("other", 9)))
    assert [(s.dimension, s.used, s.limit) for s in found] == [("tokens", 6, 5)]


def test_a_threshold_is_reported_once() -> None:
    meter = Meter("a", "run", "a", {"tokens": 10}, warn_at=0.5)
    account = Account("a")
    ledger.hold(account, (("tokens", 4),))
    assert ledger.crossings(meter, account, (("tokens", 4), ("other", 1))) == []
    ledger.hold(account, (("tokens", 1),))
    assert [(w.used, w.limit) for w in ledger.crossings(meter, account, (("tokens", 1),))] == [(5, 10)]
    assert ledger.crossings(meter, account, (("tokens", 1),)) == []
    assert ledger.crossings(Meter("a", "run", "a", {"tokens": 1}), account, (("tokens", 1),)) == []


@pytest.mark.parametrize(
    ("per", "start"),
    [("minute", "2026-11-20T12:00"), ("hour", "2026-11-20T12"), ("day", "2026-11-20"), ("month", "2026-11")],
)
def test_windows_are_calendar_windows_in_utc(per: str, start: str) -> None:
    assert ledger.window_start(per, NOON) == start  # type: ignore[arg-type]
    assert ledger.account_key(Meter("a", "tenant", "a", per=per), NOON) == f"a@{start}"  # type: ignore[arg-type]
    assert ledger.account_key(Meter("a", "tenant", "a"), NOON) == "a"


def test_the_last_moment_of_a_window_belongs_to_it() -> None:
    midnight = _at("2027-01-01T00:00:00")
    assert ledger.window_start("month", midnight - 1) == "2026-12"
    assert ledger.window_start("month", midnight) == "2027-01"
    assert ledger.window_start("day", midnight - 1) == "2026-12-31"


@pytest.mark.parametrize(
    ("dimension", "reason"),
    [
        ("steps", StopReason.BUDGET_STEPS),
        ("tool_calls", StopReason.BUDGET_TOOL_CALLS),
        ("tool:pay", StopReason.BUDGET_TOOL_CALLS),
        ("tokens", StopReason.BUDGET_TOKENS),
        ("input_tokens", StopReason.BUDGET_TOKENS),
        ("output_tokens", StopReason.BUDGET_TOKENS),
        ("cost_usd", StopReason.BUDGET_COST),
        ("counter:pages", StopReason.BUDGET_COUNTER),
    ],
)
def test_every_dimension_has_its_stop_reason(dimension: str, reason: StopReason) -> None:
    assert ledger.reason_for(dimension) is reason


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (1_500_000_000, "$1.50"),
        (-1_000_000_000, "-$1.00"),
        (10**18, "$1000000000.00"),
    ],
)
def test_money_is_shown_exactly(amount: int, text: str) -> None:
    assert ledger.shown("cost_usd", amount) == text
    assert ledger.shown("tokens", amount) == str(amount)


def test_a_shortfall_is_described_for_people() -> None:
    short = Shortfall("cost_usd", "tenant", "tenant acme per day", 10**9, 9 * 10**8, 0, 2 * 10**8)
    assert ledger.describe(short) == (
        "Budget of tenant acme per day: cost limit $1.00, used $0.90, reserved $0.00, left $0.10, asked for $0.20."
    )
    assert ledger.name_of("tool:pay") == "calls of pay"
    assert ledger.name_of("counter:pages") == "counter pages"
    assert ledger.name_of("input_tokens") == "input tokens"
