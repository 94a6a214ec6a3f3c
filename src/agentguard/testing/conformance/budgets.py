"""Budgets: exact, all or none, and shut when actual use has gone beyond."""

from __future__ import annotations

from typing import Final

from agentguard.domain.decisions import StopReason
from agentguard.domain.events import Event
from agentguard.domain.operations import Proceed, ReadAccount, ReadBudgets, Reserve, Settle, Turned
from agentguard.domain.usage import NANO, Amounts, Meter
from agentguard.errors import StoreConflict
from agentguard.testing.conformance.scene import LEASE_S, RUN_METER, Check, Colour, MakeStore, Scene, blocking

_COST: Final[Amounts] = (("cost_usd", 5),)


def _reserve(key: str, meters: tuple[Meter, ...], amounts: Amounts, *, enforce: bool = True) -> Reserve:
    event = Event("llm.reserved", {"key": key})
    return Reserve("acme", "r1", key, meters, amounts, LEASE_S * NANO, "bot", "ann", event, enforce)


def check_limit_is_exact(make_store: MakeStore, colour: Colour = blocking) -> None:
    """As many calls as the limit says, and not one more; giving back makes room."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"tool_calls": 3})
        scene.open(meters=(meter,))
        admitted = [scene.start(f"c{n}", meters=(meter,)) for n in range(3)]
        turned = scene.begin("c3", meters=(meter,))
        assert isinstance(turned, Turned) and turned.reason is StopReason.BUDGET_TOOL_CALLS and not turned.retryable
        short = turned.shortfall
        assert short is not None
        assert (short.dimension, short.scope, short.label) == ("tool_calls", "run", "run r1")
        assert (short.limit, short.used, short.held, short.asked) == (3, 0, 3, 1)
        scene.finish(admitted[0], "c0", status="refused", amounts=(), outcome=None)
        scene.start("c3", meters=(meter,))
        scene.finish(admitted[1], "c1", amounts=())
        assert (scene.line(meter).used, scene.line(meter).held) == (0, 2)
        scene.start("c4", meters=(meter,))
        assert isinstance(scene.begin("c5", meters=(meter,)), Turned)
        scene.chain()


def check_every_account_or_none(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A call is charged to all its accounts or to none of them."""
    with Scene(make_store, colour) as scene:
        wide = Meter("tenant|acme", "tenant", "tenant acme", {"tool_calls": 10})
        narrow = Meter("run|r1", "run", "run r1", {"steps": 1})
        free = Meter("user|ann", "user", "user ann")
        for order in ((wide, narrow, free), (free, narrow, wide)):
            run_id = f"r{order.index(wide)}"
            fresh = tuple(Meter(f"{m.account}/{run_id}", m.scope, m.label, m.limits) for m in order)
            scene.open(run_id, meters=fresh)
            scene.start("c1", run_id, meters=fresh)
            turned = scene.begin("c2", run_id, meters=fresh)
            assert isinstance(turned, Turned) and turned.reason is StopReason.BUDGET_STEPS, turned
            for meter in fresh:
                assert (scene.line(meter).held, scene.line(meter, "steps").held) == (1, 1)
        shared = scene.begin("c3", "r0", meters=(wide,))
        assert isinstance(shared, Proceed)
        scene.do(_settle_other(scene, wide))
        answer = scene.begin("c4", "r0", meters=(wide,), amounts=(("tool_calls", 10),))
        assert isinstance(answer, Turned) and answer.retryable, "others may give back what they share"


def _settle_other(scene: Scene, meter: Meter) -> Settle:
    scene.open("r1")
    return Settle("acme", "r1", "other", (meter,), (("tool_calls", 1),))


def check_windows_begin_anew(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A calendar window starts at zero; a call is charged to the window it began in."""
    with Scene(make_store, colour) as scene:
        meters = tuple(
            Meter("tenant|acme", "tenant", f"per {per}", {"tool_calls": 1}, per)
            for per in ("minute", "hour", "day", "month")
        )
        scene.open(meters=meters)
        admitted = scene.start("c1", meters=meters, lease_ns=10**18)
        turned = scene.begin("c2", meters=meters)
        assert isinstance(turned, Turned) and turned.retryable
        scene.clock.advance(61)
        assert (scene.line(meters[0]).held, scene.line(meters[1]).held) == (0, 1)
        scene.clock.advance(3600)
        assert (scene.line(meters[1]).held, scene.line(meters[2]).held) == (0, 1)
        scene.clock.advance(86_400)
        assert (scene.line(meters[2]).held, scene.line(meters[3]).held) == (0, 1)
        scene.finish(admitted)
        assert (scene.line(meters[2]).used, scene.line(meters[3]).used) == (0, 1)
        assert scene.do(ReadAccount("tenant|acme@2026-11-20")) == {"steps": 1, "tool_calls": 1}
        assert scene.do(ReadAccount("tenant|acme@2026-11-21")) == {}
        scene.clock.advance(31 * 86_400)
        scene.start("c3", meters=meters)


def check_lapsed_holds_return(make_store: MakeStore, colour: Colour = blocking) -> None:
    """What a dead worker held is free for others once its lease has ended, and not before."""
    with Scene(make_store, colour) as scene:
        meter = Meter("tenant|acme", "tenant", "tenant acme", {"tool_calls": 2})
        scene.open(meters=(meter,))
        scene.start("c1", meters=(meter,))
        scene.clock.advance(1)
        scene.start("c2", meters=(meter,))
        scene.clock.advance(LEASE_S - 2)
        assert isinstance(scene.begin("c3", meters=(meter,)), Turned)
        scene.clock.advance(1)
        scene.start("c3", meters=(meter,), lease_ns=10**15)
        assert isinstance(scene.begin("c4", meters=(meter,)), Turned), "only one lease had ended"
        scene.clock.advance(1)
        late = scene.start("c4", meters=(meter,), lease_ns=10**15)
        assert scene.line(meter).held == 2
        # A worker whose hold was given away still charges what it used; the account may then be beyond its limit.
        over = scene.finish(late, "c4", amounts=(("tool_calls", 3),)).over
        assert [(s.used, s.limit) for s in over] == [(3, 2)]


def check_threshold_warns_once(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Crossing a threshold is said once, in the answer and in the audit chain."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"tool_calls": 4}, warn_at=0.5)
        scene.open(meters=(meter,))
        assert scene.start("c1", meters=(meter,)).warnings == ()
        second = scene.start("c2", meters=(meter,))
        assert [(w.dimension, w.label, w.used, w.limit) for w in second.warnings] == [("tool_calls", "run r1", 2, 4)]
        assert len(second.records) == 2
        assert scene.finish(second, "c2").warnings == ()
        assert scene.start("c3", meters=(meter,)).warnings == ()
        scene.open("r2", meters=(Meter("run|r2", "run", "run r2", {"cost_usd": 10}, warn_at=0.8),))
        meters = scene.run("r2").meters
        cheap = scene.start("c1", "r2", meters=meters, amounts=(("cost_usd", 1),))
        dear = scene.finish(cheap, "c1", "r2", amounts=(("cost_usd", 9),))
        assert [w.used for w in dear.warnings] == [9], "actual use may cross it, too"
        assert len(dear.records) == 2
        other = Meter("run|x", "run", "run x", {"cost_usd": 10}, warn_at=0.8)
        settled = scene.do(Settle("acme", "r1", "m1", (other,), (("cost_usd", 9),)))
        assert [w.used for w in settled.warnings] == [9]
        assert scene.do(Settle("acme", "r1", "m2", (other,), (("cost_usd", 1),))).warnings == ()
        assert sum(b'"kind":"budget.warning"' in r.line for r in scene.chain()) == 2


def check_overrun_shuts_the_account(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Actual use above what was reserved is recorded and refuses whatever comes next."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"cost_usd": 10, "tool:email.send": 1})
        scene.open(meters=(meter,))
        admitted = scene.start("c1", meters=(meter,), amounts=_COST)
        done = scene.finish(admitted, "c1", amounts=(("cost_usd", 11),))
        assert [(s.dimension, s.used, s.limit) for s in done.over] == [("cost_usd", 11, 10)]
        assert scene.line(meter, "cost_usd").used == 11
        turned = scene.begin("c2", meters=(meter,), amounts=(("tool_calls", 1),))
        assert isinstance(turned, Turned) and turned.reason is StopReason.BUDGET_COST, turned


def check_tool_limit_concerns_the_tool(make_store: MakeStore, colour: Colour = blocking) -> None:
    """The limit of one tool, overrun, does not stop the others."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"tool:email.send": 1})
        mail = (("tool_calls", 1), ("tool:email.send", 1))
        scene.open(meters=(meter,))
        scene.finish(scene.start("c1", meters=(meter,), amounts=mail), "c1", amounts=(("tool:email.send", 2),))
        assert isinstance(scene.begin("c2", meters=(meter,), amounts=mail), Turned)
        scene.start("c3", meters=(meter,), tool="order.read", amounts=(("tool_calls", 1), ("tool:order.read", 1)))


def check_reservation_without_a_call(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Model calls hold and settle by a key of their own: reserved once, settled once."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"cost_usd": 10})
        scene.fails(StoreConflict, _reserve("m1", (meter,), _COST))
        scene.open(meters=(meter,))
        held = scene.do(_reserve("m1", (meter,), _COST))
        assert held.shortfall is None and held.reason is None and len(held.records) == 1
        scene.fails(StoreConflict, _reserve("m1", (meter,), _COST))
        assert scene.line(meter, "cost_usd").held == 5
        refused = scene.do(_reserve("m2", (meter,), (("cost_usd", 6),)))
        assert refused.shortfall is not None and refused.reason is StopReason.BUDGET_COST and refused.detail
        assert refused.records == ()
        event = Event("llm.charged", {"key": "m1"})
        settled = scene.do(Settle("acme", "r1", "m1", (meter,), (("cost_usd", 3),), event))
        assert settled.over == () and len(settled.records) == 1
        again = scene.do(Settle("acme", "r1", "m1", (meter,), (("cost_usd", 3),), event))
        assert again.records == ()
        assert (scene.line(meter, "cost_usd").used, scene.line(meter, "cost_usd").held) == (3, 0)
        scene.fails(StoreConflict, _reserve("m1", (meter,), _COST))
        scene.do(_reserve("m3", (meter,), (("cost_usd", 7),)))
        scene.clock.advance(LEASE_S)
        scene.do(_reserve("m4", (meter,), (("cost_usd", 7),)))
        late = scene.do(Settle("acme", "r1", "m3", (meter,), (("cost_usd", 8),), event))
        assert [s.used for s in late.over] == [11], "use that comes late is charged all the same"
        scene.chain()


def check_use_that_already_happened(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Without enforcement use is charged whatever the limits say, and what it crossed is named."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"cost_usd": 10})
        scene.open(meters=(meter,))
        charged = scene.do(_reserve("m1", (meter,), (("cost_usd", 12),), enforce=False))
        assert charged.shortfall is None
        assert [(s.used, s.limit) for s in charged.over] == [(12, 10)]
        assert scene.line(meter, "cost_usd").used == 12
        scene.end()
        ended = scene.do(_reserve("m2", (meter,), _COST))
        assert ended.reason is StopReason.RUN_ENDED and ended.shortfall is None
        assert scene.do(_reserve("m3", (meter,), _COST, enforce=False)).reason is None


def check_amounts_are_exact(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Integers of any size add up exactly."""
    with Scene(make_store, colour) as scene:
        scene.open()
        huge = 2**53 + 1
        for key in ("m1", "m2", "m3"):
            scene.do(Settle("acme", "r1", key, (RUN_METER,), (("cost_usd", huge), ("counter:rows", 2**70))))
        assert scene.do(ReadAccount(RUN_METER.account)) == {"cost_usd": 3 * huge, "counter:rows": 3 * 2**70}


def check_budget_lines(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Every limited and every used dimension is shown, sorted, with its account."""
    with Scene(make_store, colour) as scene:
        meter = Meter("tenant|acme", "tenant", "tenant acme", {"tokens": 5}, "day")
        scene.open(meters=(meter,))
        scene.start(meters=(meter,), amounts=(("steps", 2),))
        lines = scene.do(ReadBudgets((meter, RUN_METER)))
        assert [(x.dimension, x.used, x.held, x.limit, x.account) for x in lines] == [
            ("steps", 0, 2, None, "tenant|acme@2026-11-20"),
            ("tokens", 0, 0, 5, "tenant|acme@2026-11-20"),
        ]


CHECKS: Final[tuple[Check, ...]] = (
    check_limit_is_exact,
    check_every_account_or_none,
    check_windows_begin_anew,
    check_lapsed_holds_return,
    check_threshold_warns_once,
    check_overrun_shuts_the_account,
    check_tool_limit_concerns_the_tool,
    check_reservation_without_a_call,
    check_use_that_already_happened,
    check_amounts_are_exact,
    check_budget_lines,
)
