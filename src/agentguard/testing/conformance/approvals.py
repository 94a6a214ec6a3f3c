"""Approvals: bound to what was shown, decided once, used once, void after their time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity
from agentguard.domain.decisions import StopReason
from agentguard.domain.operations import (
    Begin,
    Edited,
    GetApproval,
    ListApprovals,
    Proceed,
    Replayed,
    Turned,
    Waiting,
)
from agentguard.domain.runs import ApprovalFilter
from agentguard.domain.usage import NANO, Meter
from agentguard.errors import ApprovalError
from agentguard.testing.conformance.scene import LEASE_S, RUN_METER, Check, Colour, MakeStore, Scene, blocking


def _wait(scene: Scene, call: str = "c1", run_id: str = "r1", **changes: Any) -> ApprovalRequest:
    changes.setdefault("approval", scene.demand())
    answer = scene.begin(call, run_id, **changes)
    assert isinstance(answer, Waiting), f"the call must wait for a person, and the store answered {answer}"
    return answer.request


def check_request_is_durable(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Asking again finds the same request; it reads back as it was opened and charges nothing."""
    with Scene(make_store, colour) as scene:
        scene.open()
        demand = scene.demand({"to": "bob", "amount": 1.0, "deep": {"list": [1, True, None, "ü"]}}, quorum=2)
        first = scene.begin(approval=demand)
        assert isinstance(first, Waiting) and first.created and len(first.records) == 1
        again = scene.begin(approval=replace(demand, id="ap_" + "f" * 32, nonce="f" * 32))
        assert isinstance(again, Waiting) and not again.created and again.records == ()
        assert again.request == first.request
        stored = scene.do(GetApproval(first.request.id, "acme"))
        assert stored == first.request
        assert stored is not None
        assert type(stored.arguments["amount"]) is float and stored.arguments["deep"] == {"list": [1, True, None, "ü"]}
        assert (stored.created_at, stored.expires_at) == (scene.clock.now_ns(), scene.clock.now_ns() + 600 * NANO)
        assert (scene.line(RUN_METER).used, scene.line(RUN_METER).held) == (0, 0)
        assert scene.run().status == "waiting"
        scene.chain()


def check_request_belongs_to_the_store(make_store: MakeStore, colour: Colour = blocking) -> None:
    """What a caller does to the values it gave or got does not change what is stored."""
    with Scene(make_store, colour) as scene:
        scene.open()
        arguments: dict[str, Any] = {"to": ["bob"]}
        request = _wait(scene, approval=scene.demand(arguments))
        arguments["to"].append("eve")
        for _ in range(2):
            seen = scene.do(GetApproval(request.id))
            assert seen is not None and seen.arguments == {"to": ["bob"]}
            seen.arguments["to"].append("eve")
        listed = scene.do(ListApprovals(ApprovalFilter()))[0]
        listed.arguments["to"].append("eve")
        assert scene.do(ListApprovals(ApprovalFilter()))[0].arguments == {"to": ["bob"]}


def check_approval_permits_one_start(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Once approved, exactly the call that was shown runs, once."""
    with Scene(make_store, colour) as scene:
        scene.open()
        demand = scene.demand()
        request = _wait(scene, approval=demand)
        decided = scene.do(scene.vote(request.id, reason="fine"))
        assert decided.status == "approved" and decided.decided_by == ("lea",)
        admitted = scene.start(approval=demand)
        assert admitted.approval_id == request.id
        assert b'"approval":"' + request.id.encode() in admitted.records[-1].line
        consumed = scene.do(GetApproval(request.id))
        assert consumed is not None and consumed.status == "consumed"
        scene.fails(ApprovalError, scene.vote(request.id, "tom"), "AG632")
        scene.finish(admitted)
        assert isinstance(scene.begin(approval=demand), Replayed)
        other = scene.begin("c2", approval=scene.demand())
        assert isinstance(other, Waiting), "another call needs a word of its own"
        assert scene.line(RUN_METER).used == 1
        scene.chain()


def check_unused_approval_is_given_back(make_store: MakeStore, colour: Colour = blocking) -> None:
    """When the body never started, the approval may be used again; when it may have, it may not."""
    with Scene(make_store, colour) as scene:
        scene.open()
        demand = scene.demand()
        request = _wait(scene, approval=demand)
        scene.do(scene.vote(request.id))
        first = scene.start(approval=demand, rerun=True)
        scene.finish(first, status="refused", amounts=(), outcome=None)
        second = scene.start(approval=demand, rerun=True)
        assert second.approval_id == request.id
        scene.clock.advance(LEASE_S)
        lost = scene.begin(approval=scene.demand(), rerun=True)
        assert isinstance(lost, Waiting) and lost.request.id != request.id
        assert scene.line(RUN_METER).held == 0
        scene.do(scene.vote(lost.request.id))
        third = scene.start(approval=scene.demand(), rerun=True)
        assert third.fence > second.fence
        assert not scene.finish(second).accepted
        assert scene.finish(third).accepted
        assert scene.run().status == "running"
        scene.chain()


def check_rejection_is_final(make_store: MakeStore, colour: Colour = blocking) -> None:
    """One rejection turns the call away for good, with the person's reason."""
    with Scene(make_store, colour) as scene:
        scene.open()
        demand = scene.demand()
        request = _wait(scene, approval=demand)
        scene.do(scene.vote(request.id, kind="reject", reason="too much"))
        for _ in range(2):
            turned = scene.begin(approval=demand)
            assert isinstance(turned, Turned) and turned.reason is StopReason.APPROVAL_REJECTED
            assert turned.approval is not None and turned.approval.rejection == "too much"
            assert "too much" in turned.detail
        scene.fails(ApprovalError, scene.vote(request.id, "tom"), "AG632")
        assert scene.run().status == "running"
        scene.chain()


def check_expiry_is_no_rejection(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Undecided, or approved and unused, a request ends with its time, on the store's clock."""
    with Scene(make_store, colour) as scene:
        scene.open()
        demands = {call: scene.demand() for call in ("c1", "c2")}
        ids = {call: _wait(scene, call, approval=demand).id for call, demand in demands.items()}
        scene.do(scene.vote(ids["c2"]))
        scene.clock.advance(599)
        pending = scene.do(ListApprovals(ApprovalFilter(status="pending")))
        assert [r.id for r in pending] == [ids["c1"]]
        scene.clock.advance(1)
        assert scene.do(ListApprovals(ApprovalFilter(status="pending"))) == ()
        assert len(scene.do(ListApprovals(ApprovalFilter(status="expired")))) == 2
        scene.fails(ApprovalError, scene.vote(ids["c1"]), "AG633")
        for call, demand in demands.items():
            seen = scene.do(GetApproval(ids[call]))
            assert seen is not None and seen.status == "expired"
            turned = scene.begin(call, approval=demand)
            assert isinstance(turned, Turned) and turned.reason is StopReason.APPROVAL_EXPIRED
        assert sum(b'"kind":"approval.expired"' in r.line for r in scene.chain()) == 2


def check_changed_call_supersedes(make_store: MakeStore, colour: Colour = blocking) -> None:
    """When policy, definition or arguments have changed, the old request is void and a new one is opened."""
    with Scene(make_store, colour) as scene:
        scene.open()
        old = _wait(scene)
        new = _wait(scene, policy_digest="q" * 64)
        assert new.id != old.id
        seen = scene.do(GetApproval(old.id))
        assert seen is not None and seen.status == "superseded"
        scene.fails(ApprovalError, scene.vote(old.id), "AG632")
        scene.do(scene.vote(new.id))
        third = _wait(scene, policy_digest="q" * 64, approval=replace(scene.demand(), tool_digest="e" * 64))
        assert third.id not in (old.id, new.id)
        # The policy does not ask any more: the call starts and the open question is void.
        assert scene.start().approval_id is None
        seen = scene.do(GetApproval(third.id))
        assert seen is not None and seen.status == "superseded"
        scene.chain()


def check_edited_arguments_alone_run(make_store: MakeStore, colour: Colour = blocking) -> None:
    """After an edit the store sends the call back, and only the edited arguments may start."""
    with Scene(make_store, colour) as scene:
        scene.open()
        demand = scene.demand({"to": "bob"})
        request = _wait(scene, approval=demand)
        scene.do(scene.vote(request.id, arguments={"to": "ann"}))
        answer = scene.begin(approval=demand)
        assert isinstance(answer, Edited) and answer.request.edited == {"to": "ann"}
        changed: dict[str, Any] = {"edit_of": request.id, "approval": scene.demand({"to": "ann"})}
        wrong = scene.begin(edit_of=request.id, approval=scene.demand({"to": "eve"}))
        assert isinstance(wrong, Waiting), "other arguments than the approver's need an approval of their own"
        scene.do(scene.vote(wrong.request.id, kind="reject"))
        request = _wait(scene, "c2", approval=demand)
        scene.do(scene.vote(request.id, arguments={"to": "ann"}))
        assert isinstance(scene.begin("c2", approval=demand), Edited)
        changed["edit_of"] = request.id
        admitted = scene.start("c2", **changed)
        scene.finish(admitted, "c2")
        assert isinstance(scene.begin("c2", approval=demand), Replayed), "the caller's own words still name the call"
        scene.chain()


def check_quorum_needs_several(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Distinct people with the right roles count, until there are enough; only then the call may start."""
    with Scene(make_store, colour) as scene:
        scene.open()
        demand = scene.demand(quorum=2)
        request = _wait(scene, approval=demand)
        assert scene.do(scene.vote(request.id)).status == "pending"
        scene.fails(ApprovalError, scene.vote(request.id), "AG636")
        scene.fails(ApprovalError, scene.vote(request.id, "Ann"), "AG635")
        scene.fails(ApprovalError, scene.vote(request.id, by=ApproverIdentity("tom")), "AG634")
        assert isinstance(scene.begin(approval=demand), Waiting)
        assert scene.do(scene.vote(request.id, "tom")).status == "approved"
        seen = scene.do(GetApproval(request.id))
        assert seen is not None and seen.decided_by == ("lea", "tom")
        scene.start(approval=demand)
        kinds = [r.line.partition(b'"kind":"')[2].partition(b'"')[0] for r in scene.chain()]
        assert kinds.count(b"approval.voted") == 1 and kinds.count(b"approval.decided") == 1


def check_second_approver_is_told(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Of two approvers the first wins; the other gets an error and changes nothing."""
    with Scene(make_store, colour) as scene:
        scene.open()
        request = _wait(scene)
        winner = scene.do(scene.vote(request.id, "lea", "reject", reason="no"))
        error = scene.fails(ApprovalError, scene.vote(request.id, "tom"), "AG632")
        assert "lea" in str(error)
        assert scene.do(GetApproval(request.id)) == winner
        scene.fails(ApprovalError, scene.vote("ap_" + "0" * 32), "AG631")


def check_standing_approval(make_store: MakeStore, colour: Colour = blocking) -> None:
    """An approval for the run lets later calls start without a question, until its time is over."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.open("r2")
        demand = scene.demand()
        request = _wait(scene, approval=demand)
        scene.do(scene.vote(request.id, scope="run"))
        other = scene.demand({"to": "carl"})
        second = scene.start("c2", approval=other)
        assert second.approval_id == request.id
        scene.finish(second, "c2", status="refused", amounts=(), outcome=None)
        again = scene.start("c2", approval=other)
        assert again.approval_id == request.id, "a standing approval is not used up, nor void, by another call"
        assert scene.start("c1", approval=demand).approval_id == request.id
        assert isinstance(scene.begin("c3", "r2", approval=other), Waiting), "it reaches one run only"
        scene.clock.advance(600)
        assert isinstance(scene.begin("c4", approval=other), Waiting)
        until = _wait(scene, "c5", "r2", approval=demand)
        scene.do(scene.vote(until.id, scope="until", until_ns=scene.clock.now_ns() + 10 * NANO))
        scene.start("c6", approval=demand)
        scene.clock.advance(10)
        assert isinstance(scene.begin("c7", approval=demand), Waiting)


def check_termination_stops_the_run(make_store: MakeStore, colour: Colour = blocking) -> None:
    """An approver may end the whole run; the call and all others are turned away."""
    with Scene(make_store, colour) as scene:
        scene.open()
        request = _wait(scene)
        scene.do(scene.vote(request.id, kind="terminate", reason="stop this"))
        run = scene.run()
        assert (run.status, run.stop_reason) == ("stopped", StopReason.APPROVAL_REJECTED)
        assert run.ended_at == scene.clock.now_ns()
        turned = scene.begin("c2")
        assert isinstance(turned, Turned) and turned.reason is StopReason.RUN_ENDED


def check_budget_is_asked_before_people(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Nobody is asked for a call that the budget refuses, and an approval does not override it."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"tool_calls": 1})
        scene.open(meters=(meter,))
        demand = scene.demand()
        request = _wait(scene, meters=(meter,), approval=demand)
        scene.do(scene.vote(request.id))
        scene.start("c2", meters=(meter,), lease_ns=10**15)
        for call, asked in (("c1", demand), ("c3", scene.demand())):
            turned = scene.begin(call, meters=(meter,), approval=asked)
            assert isinstance(turned, Turned) and turned.reason is StopReason.BUDGET_TOOL_CALLS
        assert len(scene.do(ListApprovals(ApprovalFilter()))) == 1


def check_requests_are_listed(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Filters match exactly; the oldest comes first; limits hold."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.open("r2")
        a = _wait(scene, "c1").id
        b = _wait(scene, "c2", "r2", tool="order.cancel").id
        scene.clock.advance(1)
        c = _wait(scene, "c3", approval=scene.demand(role_sets=(("boss",),))).id
        scene.do(scene.vote(b))

        def listed(**wanted: Any) -> list[str]:
            return [r.id for r in scene.do(ListApprovals(ApprovalFilter(**wanted)))]

        assert listed() == [a, b, c]
        assert listed(limit=2) == [a, b]
        assert listed(tenant="acme", run_id="r1") == [a, c]
        assert listed(tool="order.cancel") == [b]
        assert listed(status="approved") == [b]
        assert listed(status="pending", role="boss") == [c]
        assert listed(status="pending", limit=1) == [a]
        assert listed(tenant="other") == []


def check_requests_hold_any_call(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A request holds whatever the call holds: no user, several roles, names of any language."""
    with Scene(make_store, colour) as scene:
        scene.open(user=None)
        intent: Begin = scene.intent(user=None, approval=scene.demand({"to": "名前", "n": 2**60}, separate=False))
        answer = scene.do(intent)
        assert isinstance(answer, Waiting)
        stored = scene.do(GetApproval(answer.request.id))
        assert stored == answer.request
        assert stored is not None and stored.user is None and stored.terms.separate is False
        escalated = scene.do(scene.vote(stored.id, kind="escalate", to=("boss",)))
        assert scene.do(GetApproval(stored.id)) == escalated
        assert isinstance(scene.do(intent), Waiting)
        boss = ApproverIdentity("bea", ("boss",))
        assert scene.do(scene.vote(stored.id, by=boss)).status == "approved"
        assert isinstance(scene.do(intent), Proceed)


CHECKS: Final[tuple[Check, ...]] = (
    check_request_is_durable,
    check_request_belongs_to_the_store,
    check_approval_permits_one_start,
    check_unused_approval_is_given_back,
    check_rejection_is_final,
    check_expiry_is_no_rejection,
    check_changed_call_supersedes,
    check_edited_arguments_alone_run,
    check_quorum_needs_several,
    check_second_approver_is_told,
    check_standing_approval,
    check_termination_stops_the_run,
    check_budget_is_asked_before_people,
    check_requests_are_listed,
    check_requests_hold_any_call,
)
