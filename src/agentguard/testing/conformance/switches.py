"""Kill switches: each scope stops what it names, and nothing else."""

from __future__ import annotations

from typing import Final

from agentguard.domain.decisions import StopReason
from agentguard.domain.operations import Kill, ListSwitches, Proceed, Reserve, Restore, Turned
from agentguard.domain.usage import NANO
from agentguard.testing.conformance.scene import Check, Colour, MakeStore, Scene, blocking

_SCOPES: Final = (
    ("everything", "", "", True),
    ("tenant", "acme", "", True),
    ("tenant", "beta", "", False),
    ("agent", "acme", "bot", True),
    ("agent", "", "bot", True),
    ("agent", "beta", "bot", False),
    ("agent", "acme", "other", False),
    ("user", "acme", "ann", True),
    ("user", "", "ann", True),
    ("user", "acme", "bob", False),
    ("tool", "acme", "email.send", True),
    ("tool", "", "email.send", True),
    ("tool", "acme", "order.read", False),
    ("run", "acme", "r1", True),
    ("run", "acme", "r9", False),
    ("run", "beta", "r1", False),
)


def check_switch_stops_its_scope(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A switch turns away the calls, reservations and runs it names; turned off it does so no more."""
    with Scene(make_store, colour) as scene:
        scene.open()
        for number, (scope, tenant, value, stops) in enumerate(_SCOPES):
            switch = scene.do(Kill(scope, tenant, value, "incident 7", "olga"))
            assert (switch.scope, switch.tenant, switch.value) == (scope, tenant, value)
            assert (switch.reason, switch.by, switch.at) == ("incident 7", "olga", scene.clock.now_ns())
            answer = scene.begin(f"c{number}")
            assert isinstance(answer, Turned if stops else Proceed), f"{scope} {tenant} {value}: {answer}"
            if isinstance(answer, Turned):
                assert answer.reason is StopReason.KILLED and "incident 7" in answer.detail
            held = scene.do(Reserve("acme", "r1", f"m{number}", (), (), NANO, "bot", "ann"))
            assert (held.reason is StopReason.KILLED) == (stops and scope != "tool")
            refused = scene.open(f"x{number}").refused
            assert (refused is not None) == (stops and scope not in ("tool", "run")), f"{scope} {tenant} {value}"
            assert scene.do(Restore(scope, tenant, value, "olga")) is True
            assert scene.do(Restore(scope, tenant, value, "olga")) is False
            scene.start(f"d{number}")


def check_switch_of_a_run_reaches_below(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Stopping a run stops the runs below it, those that run and those to come."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.open("r2", parent="r1")
        scene.open("r3", parent="r2")
        scene.do(Kill("run", "acme", "r1", "stop", "olga"))
        for run_id in ("r1", "r2", "r3"):
            assert isinstance(scene.begin("c1", run_id), Turned)
        assert scene.open("r4", parent="r3").refused is not None
        scene.do(Restore("run", "acme", "r1", "olga"))
        scene.do(Kill("run", "acme", "r3", "stop", "olga"))
        assert isinstance(scene.begin("c1", "r2"), Proceed)


def check_first_switch_stays(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Turning a switch on twice keeps who did it first, when and why; they are listed by age."""
    with Scene(make_store, colour) as scene:
        first = scene.do(Kill("agent", "acme", "bot", "first", "olga"))
        scene.clock.advance(1)
        assert scene.do(Kill("agent", "acme", "bot", "second", "paul")) == first
        other = scene.do(Kill("tool", "", "email.send", "all tenants", "paul"))
        beta = scene.do(Kill("tenant", "beta", "", "unpaid", "paul"))
        assert scene.do(ListSwitches()) == (first, other, beta)
        assert scene.do(ListSwitches("acme")) == (first, other)
        assert scene.do(ListSwitches("beta")) == (other, beta)
        scene.do(Restore("agent", "acme", "bot", "olga"))
        again = scene.do(Kill("agent", "acme", "bot", "again", "olga"))
        assert again.reason == "again" and again.at == scene.clock.now_ns()
        assert scene.do(ListSwitches()) == (other, beta, again)


def check_many_switches_still_stop(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A store with hundreds of switches misses none of them."""
    with Scene(make_store, colour) as scene:
        scene.open()
        for number in range(300):
            scene.do(Kill("run", "acme", f"z{number}", "old", "olga"))
        assert isinstance(scene.begin("c1"), Proceed)
        scene.do(Kill("user", "acme", "ann", "new", "olga"))
        assert isinstance(scene.begin("c2"), Turned)
        assert len(scene.do(ListSwitches())) == 301


def check_what_runs_may_still_report(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A switch stops starts, not reports: what began before is settled and recorded."""
    with Scene(make_store, colour) as scene:
        scene.open()
        admitted = scene.start()
        scene.do(Kill("everything", "", "", "stop", "olga"))
        assert scene.finish(admitted).accepted
        scene.end()
        scene.chain()


CHECKS: Final[tuple[Check, ...]] = (
    check_switch_stops_its_scope,
    check_switch_of_a_run_reaches_below,
    check_first_switch_stays,
    check_many_switches_still_stop,
    check_what_runs_may_still_report,
)
