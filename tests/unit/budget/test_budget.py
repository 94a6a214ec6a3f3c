"""What a budget may say, which accounts it means, and how several add up."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import Budget, RunContext
from agentguard.budget.budget import merged, meter_for, meters_for, run_meter, scope_value
from agentguard.errors import ConfigurationError
from tests.naming import shown as shown_id

WHO = RunContext("r1", "research-a", "acme", user="u", session="s", team="t")


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({}, "AG401"),
        ({"warn_at": 0.5}, "AG401"),
        ({"per_tool": {}}, "AG401"),
        *(
            ({name: value}, "AG402")
            for name in ("max_steps", "max_tokens", "max_repeats")
            for value in (0, -1, True, 1.0, "5", 2**63)
        ),
        *(
            ({"max_cost_usd": value}, "AG402")
            for value in (
                0,
                "0",
                -1,
                0.5,
                True,
                "NaN",
                "Infinity",
                "-1",
                "1e-10",
                "x",
                [1],
                Decimal("NaN"),
                Decimal("-1"),
                "99999999999",
            )
        ),
        *(
            ({"max_seconds": value}, "AG402")
            for value in (0, -1, True, float("nan"), float("inf"), "5", "5 minutes", [5])
        ),
        ({"max_working_seconds": 0}, "AG402"),
        *(({"max_steps": 1, "warn_at": value}, "AG402") for value in (0, -0.1, 1.1, True, float("nan"), "0.5")),
        ({"max_steps": 1, "scope": "tenent"}, "AG402"),
        ({"max_steps": 1, "scope": "tenant", "per": "fortnight"}, "AG402"),
        ({"max_steps": 1, "scope": "agent", "match": ""}, "AG402"),
        ({"max_steps": 1, "scope": "agent", "match": 5}, "AG402"),
        ({"max_steps": 1, "match": "x"}, "AG403"),
        ({"max_steps": 1, "scope": "everything", "match": "*"}, "AG403"),
        ({"max_seconds": 1, "scope": "tenant"}, "AG403"),
        ({"max_repeats": 1, "scope": "tenant"}, "AG403"),
        ({"max_steps": 1, "per": "day"}, "AG404"),
        ({"per_tool": {"pay": 0}}, "AG402"),
        ({"per_tool": {"pay": None}}, "AG402"),
        ({"per_tool": ["pay"]}, "AG402"),
        ({"per_tool": {5: 5}}, "AG134"),
        ({"counters": {"a b": 5}}, "AG134"),
        ({"counters": {"": 5}}, "AG134"),
    ],
    ids=shown_id,
)
def test_a_limit_that_is_none_is_refused(settings: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Budget(**settings)
    assert caught.value.code == code


def test_limits_are_integers_in_the_smallest_unit() -> None:
    budget = Budget(max_cost_usd="0.000000001", per_tool={"pay": 2}, counters={"pages": 3}, max_tokens=4)
    assert budget.limits == {"cost_usd": 1, "tool:pay": 2, "counter:pages": 3, "tokens": 4}
    assert Budget(max_cost_usd=2).limits == {"cost_usd": 2 * 10**9}
    assert Budget(max_cost_usd=Decimal("1.5")).limits == {"cost_usd": 15 * 10**8}


def test_time_limits_are_nanoseconds() -> None:
    budget = Budget(max_seconds="5m", max_working_seconds=1.5)
    assert (budget.seconds_ns, budget.working_ns, budget.limits) == (300 * 10**9, 15 * 10**8, {})
    assert Budget(max_steps=1).seconds_ns is Budget(max_steps=1).working_ns is None


def test_what_becomes_of_the_callers_table_does_not_change_a_budget() -> None:
    table = {"pay": 1}
    budget = Budget(per_tool=table)
    table["pay"] = 100
    assert budget.limits == {"tool:pay": 1}


limits = st.none() | st.integers(1, 50)
budgets = st.builds(
    lambda steps, tokens, cost, seconds, pay, repeats, warn: Budget(
        max_steps=steps,
        max_tokens=tokens,
        max_cost_usd=None if cost is None else str(cost),
        max_seconds=seconds,
        per_tool={} if pay is None else {"pay": pay},
        max_repeats=repeats,
        warn_at=warn,
        max_tool_calls=60,
    ),
    limits, limits, limits, limits, limits, limits, st.none() | st.floats(0.1, 1),
)  # fmt: skip


@given(budgets, budgets)
def test_of_two_budgets_every_tighter_limit_wins(one: Budget, two: Budget) -> None:
    both = one.narrowed(two)
    names = {*one.limits, *two.limits}
    assert both.limits == {n: min(b.limits[n] for b in (one, two) if n in b.limits) for n in names}
    for attribute in ("seconds_ns", "max_repeats", "warn_at"):
        given_ = [v for b in (one, two) if (v := getattr(b, attribute)) is not None]
        assert getattr(both, attribute) == (min(given_) if given_ else None)
    assert one.narrowed(None) is one


def test_budgets_of_one_account_become_one() -> None:
    day = {"scope": "tenant", "per": "day"}
    found = merged([Budget(max_steps=5, **day), Budget(max_steps=3, **day), Budget(scope="tenant", max_steps=9)])  # type: ignore[arg-type]
    assert [(b.per, b.max_steps) for b in found] == [("day", 3), (None, 9)]


@pytest.mark.parametrize(
    ("scope", "value"),
    [
        ("run", "r1"),
        ("session", "s"),
        ("agent", "research-a"),
        ("user", "u"),
        ("team", "t"),
        ("tenant", "acme"),
        ("everything", ""),
    ],
)
def test_every_scope_has_its_account(scope: Any, value: str) -> None:
    assert scope_value(scope, WHO) == value
    meter = meter_for(Budget(scope=scope, max_steps=1), WHO)
    assert meter is not None
    assert (meter.scope, meter.limits) == (scope, {"steps": 1})


def test_a_run_without_a_user_has_no_account_of_one() -> None:
    assert meter_for(Budget(scope="user", max_steps=1), RunContext("r1", "a")) is None


def test_accounts_never_collide() -> None:
    whos = [
        RunContext("r", "a", tenant, user=user, session=session, team=team)
        for tenant in ("a", "ab")
        for user in ("b", "1:b")
        for session in ("b", "u")
        for team in ("b",)
    ]
    kinds = [
        Budget(scope=scope, per=per, match=match, max_steps=1)
        for scope in ("session", "user", "team", "agent", "tenant")
        for per in (None, "day", "hour")
        for match in (None, "*", "b")
    ]
    found: dict[str, tuple[Any, ...]] = {}
    for who in whos:
        for kind in kinds:
            meter = meter_for(kind, who)
            assert meter is not None
            means = (kind.scope, kind.per, kind.match, who.tenant, scope_value(kind.scope, who))
            assert found.setdefault(meter.account, means) == means


def test_a_run_is_charged_to_its_own_its_parents_and_the_shared_accounts() -> None:
    parent = run_meter(RunContext("r0", "boss", "acme"), Budget(max_steps=9))
    shared = [
        Budget(max_steps=1),
        Budget(scope="agent", match="research-*", max_steps=2),
        Budget(scope="agent", match="support", max_steps=3),
        Budget(scope="tenant", max_steps=4),
    ]
    meters = meters_for(WHO, None, shared, [parent])
    assert [(m.label, dict(m.limits)) for m in meters] == [
        ("run r1", {}),
        ("run r0", {"steps": 9}),
        ("agent research-a", {"steps": 2}),
        ("tenant acme", {"steps": 4}),
    ]
