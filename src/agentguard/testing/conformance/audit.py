"""The audit trail: every change in order, without gaps, as it was sealed."""

from __future__ import annotations

from typing import Final

from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.operations import Append, Finish, ReadAudit
from agentguard.errors import AgentGuardError, StoreConflict
from agentguard.testing.conformance.scene import ONE, RUN_METER, Check, Colour, MakeStore, Scene, blocking


def check_chain_has_no_gaps(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Records come back in order and whole, page by page."""
    with Scene(make_store, colour) as scene:
        scene.fails(StoreConflict, Append("acme", "r1", Event("step", {})))
        scene.open()
        written: list[AuditRecord] = []
        for number in range(20):
            body = bytes([number, 0, 255]) if number % 2 else b""
            written += scene.do(Append("acme", "r1", Event("step", {"n": number}, body))).records
            scene.clock.advance(0.001)
        records = scene.chain()
        assert records[1:] == written
        assert [r.seq for r in records] == list(range(1, 22))
        assert scene.do(ReadAudit("acme", "r1", 20, 5)) == (records[20],)
        assert scene.do(ReadAudit("acme", "r1", 21, 5)) == ()
        assert scene.do(ReadAudit("acme", "r1", 5, 2)) == tuple(records[5:7])
        assert scene.do(ReadAudit("acme", "none")) == ()
        assert len({r.salt for r in records if r.body}) == 10, "every body has a salt of its own"


def check_answers_carry_what_was_written(make_store: MakeStore, colour: Colour = blocking) -> None:
    """What sinks are handed is what is stored."""
    with Scene(make_store, colour) as scene:
        records = list(scene.open().records)
        admitted = scene.start()
        records += admitted.records
        records += scene.finish(admitted, labels=("x",)).records
        replayed = scene.begin()
        records += replayed.records  # type: ignore[union-attr]
        records += scene.end().records
        assert scene.chain() == records


def check_unusable_record_changes_nothing(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A record that cannot be sealed fails its operation as a whole."""
    with Scene(make_store, colour) as scene:
        scene.open()
        odd = Event("step", {"n": 1.5})  # type: ignore[dict-item]
        scene.fails(AgentGuardError, Append("acme", "r1", odd))
        scene.fails(AgentGuardError, scene.intent(event=odd))
        assert (scene.line(RUN_METER).used, scene.line(RUN_METER).held) == (0, 0)
        admitted = scene.start()
        scene.fails(AgentGuardError, Finish("acme", "r1", "r1/c1", admitted.fence, "succeeded", ONE, event=odd))
        assert scene.line(RUN_METER).held == 1
        assert scene.finish(admitted).accepted
        assert [r.seq for r in scene.chain()] == [1, 2, 3]


CHECKS: Final[tuple[Check, ...]] = (
    check_chain_has_no_gaps,
    check_answers_carry_what_was_written,
    check_unusable_record_changes_nothing,
)
