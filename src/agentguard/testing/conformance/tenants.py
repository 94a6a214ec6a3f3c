"""Tenants: two with equal ids in everything never meet."""

from __future__ import annotations

from typing import Final

from agentguard.domain.operations import (
    Finish,
    GetApproval,
    GetCall,
    GetRun,
    GetState,
    ListApprovals,
    ListCalls,
    ListRuns,
    ListState,
    PutState,
    ReadAudit,
    Reserve,
    Settle,
    Waiting,
)
from agentguard.domain.runs import ApprovalFilter, RunFilter
from agentguard.domain.usage import NANO, Meter
from agentguard.errors import ApprovalError, StoreConflict
from agentguard.testing.conformance.scene import LEASE_S, ONE, Check, Colour, MakeStore, Scene, blocking

_ACME: Final = Meter("acme|run|r1", "run", "run r1", {"tool_calls": 1})
_BETA: Final = Meter("beta|run|r1", "run", "run r1", {"tool_calls": 1})


def check_equal_ids_do_not_meet(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Runs, calls, holds, outcomes, labels, state and audit of two tenants are apart although all ids are equal."""
    with Scene(make_store, colour) as scene:
        scene.open(meters=(_ACME,))
        scene.open(tenant="beta", meters=(_BETA,), agent="other")
        acme = scene.start(meters=(_ACME,))
        beta = scene.start(meters=(_BETA,), tenant="beta", fingerprint="e" * 64)
        assert beta.fence == 1, "another tenant's call is no earlier start"
        assert scene.line(_ACME).held == scene.line(_BETA).held == 1
        scene.finish(acme, labels=("pii",), outcome='{"value":"acme"}')
        assert (scene.line(_ACME).used, scene.line(_BETA).used) == (1, 0)
        assert scene.line(_BETA).held == 1, "settling one tenant's call must not touch the other's hold"
        mine = scene.do(GetCall("beta", "r1/c1"))
        assert mine is not None and (mine.status, mine.outcome) == ("running", None)
        assert scene.run(tenant="beta").labels == ()
        assert scene.do(Finish("beta", "r1", "r1/c1", beta.fence, "succeeded", ONE, '{"value":"beta"}')).accepted
        assert [c.outcome for c in scene.do(ListCalls("acme", "r1"))] == ['{"value":"acme"}']
        assert [c.outcome for c in scene.do(ListCalls("beta", "r1"))] == ['{"value":"beta"}']
        scene.do(PutState("acme", "r1", "k", 1, 0, "bot"))
        assert scene.do(GetState("beta", "r1", "k")) is None
        assert scene.do(ListState("beta", "r1")) == ()
        assert {r.tenant for r in scene.do(ReadAudit("beta", "r1"))} == {"beta"}
        scene.chain()
        scene.chain(tenant="beta")


def check_equal_reservations_do_not_meet(make_store: MakeStore, colour: Colour = blocking) -> None:
    """The same reservation key of two tenants names two holds."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.open(tenant="beta")
        for tenant, meter in (("acme", _ACME), ("beta", _BETA)):
            held = scene.do(Reserve(tenant, "r1", "m1", (meter,), (("tool_calls", 1),), LEASE_S * NANO))
            assert held.reason is None
        scene.do(Settle("acme", "r1", "m1", (_ACME,), (("tool_calls", 1),)))
        assert (scene.line(_BETA).used, scene.line(_BETA).held) == (0, 1)
        scene.do(Settle("beta", "r1", "m1", (_BETA,), (("tool_calls", 1),)))
        assert (scene.line(_BETA).used, scene.line(_BETA).held) == (1, 0)


def check_approvals_of_others_are_unknown(make_store: MakeStore, colour: Colour = blocking) -> None:
    """With the wrong tenant a request does not exist, neither to read nor to decide nor to use."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.open(tenant="beta")
        demand = scene.demand()
        waiting = scene.begin(approval=demand)
        assert isinstance(waiting, Waiting)
        request = waiting.request
        assert scene.do(GetApproval(request.id, "beta")) is None
        assert scene.do(GetApproval(request.id, None)) == request, "operators read across tenants"
        vote = scene.vote(request.id, scope="run")
        scene.fails(ApprovalError, type(vote)(vote.id, vote.verdict, "beta"), "AG631")
        assert scene.do(ListApprovals(ApprovalFilter(tenant="beta"))) == ()
        scene.do(type(vote)(vote.id, vote.verdict, "acme"))
        assert isinstance(scene.begin(tenant="beta", approval=scene.demand()), Waiting)
        assert isinstance(scene.begin("c2", tenant="beta", approval=scene.demand()), Waiting)
        assert scene.start("c2", approval=scene.demand()).approval_id == request.id


def check_operators_find_unique_runs_only(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Without a tenant a run is found when its id is unique, and never guessed."""
    with Scene(make_store, colour) as scene:
        scene.open("r1")
        scene.open("r2")
        scene.open("r1", tenant="beta")
        assert scene.do(GetRun(None, "r1")) is None
        found = scene.do(GetRun(None, "r2"))
        assert found is not None and found.context.tenant == "acme"
        assert scene.do(GetRun(None, "r3")) is None
        assert scene.do(GetRun("beta", "r2")) is None
        assert len(scene.do(ListRuns(RunFilter(tenant="beta")))) == 1
        scene.fails(StoreConflict, Settle("beta", "r2", "m1", (), ()))


CHECKS: Final[tuple[Check, ...]] = (
    check_equal_ids_do_not_meet,
    check_equal_reservations_do_not_meet,
    check_approvals_of_others_are_unknown,
    check_operators_find_unique_runs_only,
)
