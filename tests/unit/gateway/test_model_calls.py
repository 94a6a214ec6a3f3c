"""What model calls, steps and counters use: exact, never lost, never more than once."""

from __future__ import annotations

import asyncio
import decimal
from decimal import Decimal
from typing import Any

import pytest

from agentguard import Budget, Prices, StopReason
from agentguard.domain.operations import Reserve, Settle
from agentguard.errors import BudgetExceeded, ConfigurationError, RunError, RunKilled, StoreUnavailable
from tests.battery.scene import Broken, Scene
from tests.naming import shown as shown_id

PRICES = Prices({"m": ("1.25", "10")})


def test_what_a_model_call_used_is_charged_to_the_nano_dollar(scene: Scene) -> None:
    run = scene.run(scene.gateway(prices=Prices({"m": ("0.000001", "0.1")})))
    scene.hand.do(run, "charge_llm", model="m", input_tokens=1, output_tokens=0)  # 1e-12 dollars, rounded up
    scene.hand.do(run, "charge_llm", model="m", input_tokens=0, output_tokens=3)
    usage = scene.hand.do(run, "usage")
    assert usage.cost_usd == Decimal("0.000000301")
    assert (usage.steps, usage.input_tokens, usage.output_tokens, usage.tokens) == (2, 1, 3, 4)
    assert usage.unpriced_calls == 0


def test_the_decimal_context_of_the_host_does_not_round_money(plain: Scene) -> None:
    run = plain.run(plain.gateway(prices=Prices({"m": ("1.234567891", "0")})))
    with decimal.localcontext(prec=3):
        run.charge_llm(model="m", input_tokens=123_456_789, output_tokens=0)
        run.charge_llm(model="m", input_tokens=0, output_tokens=0, cost_usd="12345.678912345")
        usage = run.usage
    assert usage.cost_usd == Decimal("12498.094699971")  # 12345.678912345 and 152.415787626 (rounded up)


def test_an_unknown_price_is_unknown(scene: Scene) -> None:
    run = scene.run(scene.gateway(prices=PRICES))
    scene.hand.do(run, "charge_llm", model="other", input_tokens=5, output_tokens=5)
    usage = scene.hand.do(run, "usage")
    assert (usage.cost_usd, usage.unpriced_calls, usage.counters) == (0, 1, {})


@pytest.mark.parametrize("answer", [ValueError("down"), -1, 1.5, True, "1", float("nan"), 2**63], ids=shown_id)
def test_a_price_list_that_fails_does_not_lose_the_tokens(plain: Scene, answer: Any) -> None:
    class Listed:
        def price_nano(self, model: str, input_tokens: int, output_tokens: int) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    run = plain.run(plain.gateway(prices=Listed()))
    run.charge_llm(model="m", input_tokens=5, output_tokens=5)
    assert (run.usage.tokens, run.usage.cost_usd, run.usage.unpriced_calls) == (10, 0, 1)


def test_what_was_used_is_recorded_beyond_the_limit_and_said(scene: Scene) -> None:
    run = scene.run(scene.gateway(), budget=Budget(max_tokens=10, warn_at=0.5))
    said = scene.hand.do(run, "charge_llm", model="m", input_tokens=20, output_tokens=0)
    assert any("over the limit" in note for note in said)
    assert scene.hand.do(run, "usage").tokens == 20
    assert set(said) <= set(scene.hand.do(run, "report").warnings)


def test_a_threshold_warns_once(scene: Scene) -> None:
    run = scene.run(scene.gateway(), budget=Budget(max_tokens=10, warn_at=0.5))
    said = [scene.hand.do(run, "charge_llm", model="m", input_tokens=2, output_tokens=0) for _ in range(4)]
    assert [len(notes) for notes in said] == [0, 0, 1, 0]


def test_a_model_call_that_the_budget_cannot_pay_is_not_made(scene: Scene) -> None:
    run = scene.run(scene.gateway(prices=PRICES), budget=Budget(max_cost_usd="0.00001"))
    with pytest.raises(BudgetExceeded) as caught:
        scene.hand.do(run, "reserve_llm", model="m", input_tokens=0, max_output_tokens=2)
    assert caught.value.reason is StopReason.BUDGET_COST
    held = scene.hand.do(run, "reserve_llm", model="m", input_tokens=0, max_output_tokens=1)
    scene.hand.do(held, "settle", input_tokens=0, output_tokens=1)
    assert scene.hand.do(run, "usage").cost_usd == Decimal("0.00001")


def test_a_hold_blocks_others_until_it_is_settled_for_less(scene: Scene) -> None:
    run = scene.run(scene.gateway(), budget=Budget(max_tokens=10))
    held = scene.hand.do(run, "reserve_llm", model="m", input_tokens=5, max_output_tokens=5)
    with pytest.raises(BudgetExceeded):
        scene.hand.do(run, "reserve_llm", model="m", input_tokens=1, max_output_tokens=0)
    scene.hand.do(held, "settle", input_tokens=1, output_tokens=1)
    assert scene.hand.do(run, "usage").tokens == 2
    scene.hand.do(run, "reserve_llm", model="m", input_tokens=8, max_output_tokens=0)


def test_a_released_hold_costs_nothing(scene: Scene) -> None:
    run = scene.run(scene.gateway(), budget=Budget(max_tokens=10))
    held = scene.hand.do(run, "reserve_llm", model="m", input_tokens=5, max_output_tokens=5)
    scene.hand.do(held, "release")
    assert scene.hand.do(run, "usage").tokens == 0
    scene.hand.do(run, "reserve_llm", model="m", input_tokens=10, max_output_tokens=0)


def test_a_hold_is_resolved_once(scene: Scene) -> None:
    run = scene.run(scene.gateway())
    held = scene.hand.do(run, "reserve_llm", model="m")
    scene.hand.do(held, "settle", input_tokens=1, output_tokens=1)
    with pytest.raises(RunError):
        scene.hand.do(held, "settle", input_tokens=1, output_tokens=1)
    with pytest.raises(RunError):
        scene.hand.do(held, "release")
    assert scene.hand.do(run, "usage").tokens == 2


def test_a_hold_of_a_crashed_process_returns_by_itself(scene: Scene) -> None:
    run = scene.run(scene.gateway(), budget=Budget(max_tokens=10))
    scene.hand.do(run, "reserve_llm", model="m", input_tokens=10, max_output_tokens=0)
    scene.clock.advance(901)
    scene.hand.do(run, "reserve_llm", model="m", input_tokens=10, max_output_tokens=0)


def test_as_a_context_a_reservation_is_given_back_when_it_was_not_settled(scene: Scene) -> None:
    run = scene.run(scene.gateway(), budget=Budget(max_tokens=10))

    async def awaiting() -> None:
        async with await run.areserve_llm(model="m", input_tokens=9):
            raise ZeroDivisionError

    def blocking() -> None:
        with run.reserve_llm(model="m", input_tokens=9):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        if scene.hand.colour == "blocking":
            blocking()
        else:
            scene.hand.runner.run(awaiting())
    assert scene.hand.do(run, "usage").tokens == 0
    assert {line.held for line in scene.hand.do(run._gateway.budgets, "read", run.run_id)} == {0}


def test_as_a_context_a_settled_reservation_is_left_alone(scene: Scene) -> None:
    run = scene.run(scene.gateway())

    async def awaiting() -> None:
        async with await run.areserve_llm(model="m") as held:
            await held.asettle(input_tokens=2, output_tokens=2)

    if scene.hand.colour == "awaiting":
        scene.hand.runner.run(awaiting())
    else:
        with run.reserve_llm(model="m") as held:
            held.settle(input_tokens=2, output_tokens=2)
    assert scene.hand.do(run, "usage").tokens == 4


def test_a_settlement_that_could_not_be_stored_is_made_again_not_forgotten(plain: Scene) -> None:
    store = Broken(plain.store())
    run = plain.run(plain.gateway(store=store))

    def work() -> None:
        with run.reserve_llm(model="m") as held:
            store.kinds = (Settle,)
            try:
                held.settle(input_tokens=7, output_tokens=0)
            finally:
                store.kinds = ()

    with pytest.raises(StoreUnavailable):
        work()
    assert run.usage.tokens == 7


def test_a_store_that_is_down_does_not_hide_what_went_wrong_in_a_model_call(plain: Scene) -> None:
    store = Broken(plain.store())
    run = plain.run(plain.gateway(store=store))

    def work(error: Exception | None) -> None:
        with run.reserve_llm(model="m"):
            store.kinds = (Settle,)
            if error is not None:
                raise error

    with pytest.raises(ZeroDivisionError):
        work(ZeroDivisionError())
    store.kinds = ()
    with pytest.raises(StoreUnavailable):
        work(None)


def test_a_cancelled_charge_is_charged(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)

    async def main() -> None:
        task = asyncio.create_task(run.acharge_llm(model="m", input_tokens=5, output_tokens=0))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await gateway._ports.settled()

    scene.hand.runner.run(main())
    assert scene.hand.do(run, "usage").tokens == 5


def test_a_cancelled_reservation_holds_nothing(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, budget=Budget(max_tokens=10))

    async def main() -> bool:
        task = asyncio.create_task(run.areserve_llm(model="m", input_tokens=9, max_output_tokens=1))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await gateway._ports.settled()
        return task.cancelled()

    if scene.hand.runner.run(main()):
        scene.hand.do(run, "reserve_llm", model="m", input_tokens=10, max_output_tokens=0)
    else:  # the memory store answers before anybody can cancel
        assert scene.kind == "memory"


@pytest.mark.parametrize(
    "settings",
    [
        {"input_tokens": -1},
        {"input_tokens": 1.0},
        {"input_tokens": True},
        {"output_tokens": "5"},
        {"output_tokens": 10**13},
        {"cost_usd": 0.1},
        {"cost_usd": True},
        {"cost_usd": "-1"},
        {"cost_usd": "NaN"},
        {"cost_usd": "1e400"},
        {"cost_usd": [1]},
        {"model": ""},
        {"model": None},
    ],
    ids=shown_id,
)
def test_numbers_that_are_none_are_refused_and_charge_nothing(plain: Scene, settings: dict[str, Any]) -> None:
    run = plain.run(plain.gateway())
    with pytest.raises(ConfigurationError):
        run.charge_llm(**{"model": "m", "input_tokens": 1, "output_tokens": 1, **settings})
    assert run.usage.tokens == 0


def test_a_model_name_of_any_provider_can_be_recorded(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.hand.do(run, "charge_llm", model="evil\ud800\n\x1b[31m" + "x" * 900, input_tokens=1, output_tokens=1)
    assert scene.hand.do(run, "usage").tokens == 2
    assert gateway.audit.verify(run.run_id).ok


def test_counters_count_up_to_their_limit(scene: Scene) -> None:
    run = scene.run(scene.gateway(), budget=Budget(counters={"pages": 3}))
    scene.hand.do(run, "count", "pages", 2)
    with pytest.raises(BudgetExceeded) as caught:
        scene.hand.do(run, "count", "pages", 2)
    assert caught.value.reason is StopReason.BUDGET_COUNTER
    scene.hand.do(run, "count", "pages")
    assert scene.hand.do(run, "usage").counters == {"pages": 3}


@pytest.mark.parametrize(
    ("counter", "amount"), [("a b", 1), ("pages", -1), ("pages", True), ("pages", 1.5), ("unpriced_model_calls", 1)]
)
def test_a_counter_that_cannot_be_kept_is_refused(plain: Scene, counter: str, amount: Any) -> None:
    with pytest.raises(ConfigurationError):
        plain.run(plain.gateway()).count(counter, amount)


def test_steps_are_recorded_counted_and_limited(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, budget=Budget(max_steps=1))
    scene.hand.do(run, "step", "plan", "think\ud800", input={"a": float("nan")}, output=object())
    with pytest.raises(BudgetExceeded):
        scene.hand.do(run, "step", "plan", "again")
    with pytest.raises(ConfigurationError):
        scene.hand.do(run, "step", "paln")
    steps = [r for r in gateway.audit.records(run.run_id) if b'"kind":"step"' in r.line]
    assert len(steps) == 1
    assert gateway.audit.verify(run.run_id).ok


@pytest.mark.parametrize("how", ["ended", "killed", "late"])
def test_nothing_is_reserved_for_a_run_that_may_not_go_on(scene: Scene, how: str) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, budget=Budget(max_seconds=10))
    if how == "ended":
        scene.hand.do(run, "stop")
    elif how == "killed":
        scene.hand.do(gateway.switches, "kill", everything=True, reason="x", by="ops")
    else:
        scene.clock.advance(10)
    for name, arguments in (("reserve_llm", {"model": "m"}), ("count", {"counter": "x"}), ("step", {"kind": "plan"})):
        with pytest.raises((RunKilled, BudgetExceeded)):
            scene.hand.do(run, name, **arguments)


def test_a_charge_that_cannot_be_stored_says_so(scene: Scene) -> None:
    store = Broken(scene.store())
    run = scene.run(scene.gateway(store=store))
    store.kinds = (Reserve,)
    with pytest.raises(StoreUnavailable):
        scene.hand.do(run, "charge_llm", model="m", input_tokens=1, output_tokens=1)
