"""Records on their way to sinks: in order, without gaps, within a deadline."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from agentguard import tool
from agentguard._drive import delivering, ports
from agentguard._drive.delivering import Delivery
from agentguard.domain.calls import Completed, Refused
from agentguard.domain.decisions import StopReason
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import ReadAudit
from agentguard.errors import SinkError
from tests.unit.drive.making import PATIENCE, Gate, gateway, until
from tests.unit.drive.test_workers import forked


def record(seq: int, run: str = "r1") -> AuditRecord:
    return AuditRecord("acme", run, seq, b"{}", "h", "", None)


def records(*numbers: int, run: str = "r1") -> tuple[AuditRecord, ...]:
    return tuple(record(number, run) for number in numbers)


class Chain:
    """A store that has the records 1 to ``length``."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked: list[ReadAudit] = []

    def perform(self, operation: Any) -> Any:
        self.asked.append(operation)
        last = min(operation.after + operation.limit, self.length)
        return records(*range(operation.after + 1, last + 1), run=operation.run_id)


class Paper:
    """A sink that keeps numbers, and fails when told to."""

    def __init__(self, *, required: bool = False) -> None:
        self.required = required
        self.seen: list[int] = []
        self.errors: list[BaseException] = []
        self.gate: Gate | None = None

    def write(self, taken: tuple[AuditRecord, ...]) -> None:
        if self.gate is not None:
            self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.seen += [one.seq for one in taken]

    def close(self) -> None:
        pass


def test_records_arrive_in_order_and_once() -> None:
    sink, store = Paper(), Chain(0)
    delivery = Delivery(sink)
    delivery.bring(records(1, 2), store)  # type: ignore[arg-type]
    delivery.bring(records(2, 3), store)  # type: ignore[arg-type]
    delivery.bring(records(1), store)  # type: ignore[arg-type]
    assert sink.seen == [1, 2, 3]
    assert store.asked == []


def test_what_is_missing_before_a_record_comes_from_the_store() -> None:
    sink = Paper()
    delivery = Delivery(sink)
    delivery.bring(records(1), Chain(9))  # type: ignore[arg-type]
    delivery.bring(records(5), Chain(9))  # type: ignore[arg-type]
    assert sink.seen == [1, 2, 3, 4, 5]


def test_a_run_that_another_process_began_comes_from_its_beginning() -> None:
    sink = Paper()
    Delivery(sink).bring(records(4), Chain(9))  # type: ignore[arg-type]
    assert sink.seen == [1, 2, 3, 4]


def test_a_long_gap_is_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "_PAGE", 2)
    sink, store = Paper(), Chain(9)
    Delivery(sink).bring(records(6), store)  # type: ignore[arg-type]
    assert sink.seen == [1, 2, 3, 4, 5, 6]
    assert [(r.after, r.limit) for r in store.asked] == [(0, 2), (2, 2), (4, 1)]


def test_records_that_the_store_has_forgotten_do_not_hold_up_the_others() -> None:
    sink = Paper()
    Delivery(sink).bring(records(4), Chain(0))  # type: ignore[arg-type]
    assert sink.seen == [4]


def test_what_could_not_be_delivered_comes_with_the_next_record() -> None:
    sink = Paper()
    sink.errors = [OSError("full")]
    delivery = Delivery(sink)
    with pytest.raises(OSError, match="full"):
        delivery.bring(records(1), Chain(9))  # type: ignore[arg-type]
    delivery.bring(records(2), Chain(9))  # type: ignore[arg-type]
    assert sink.seen == [1, 2]


def test_only_so_many_runs_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "_RUNS", 2)
    delivery = Delivery(Paper())
    for run, seq in (("a", 1), ("b", 1), ("a", 2), ("c", 1)):
        delivery.bring(records(seq, run=run), Chain(9))  # type: ignore[arg-type]
    assert [run for _, run in delivery._last] == ["a", "c"]


def test_who_waits_behind_a_sink_that_hangs_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "SINK_DEADLINE_S", 0.01)
    delivery = Delivery(Paper())
    with delivery._lock, pytest.raises(TimeoutError, match="busy"):
        delivery.bring(records(1), Chain(9))  # type: ignore[arg-type]


def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    delivery = Delivery(Paper())

    def check() -> bool:
        delivery.bring(records(1), Chain(9))  # type: ignore[arg-type]
        return not delivery.hangs

    with delivery._lock:
        assert forked(check) == 0


def test_losses_are_counted_and_only_a_required_sink_has_an_error(caplog: pytest.LogCaptureFixture) -> None:
    loose, tight = Delivery(Paper()), Delivery(Paper(required=True))
    with caplog.at_level(logging.ERROR, "agentguard"):
        assert loose.lost(2, OSError("full")) is None
        assert loose.lost(1, OSError("full")) is None
        assert isinstance(tight.lost(1, OSError("full")), SinkError)
    assert (loose.gaps, tight.gaps) == (3, 1)
    assert "Paper did not take 2 record(s): OSError: full" in caplog.text


# -- in a gateway -----------------------------------------------------------------------------------------------------------


@tool(name="do", effect="read")
def do() -> int:
    return 1


@pytest.fixture(params=["blocking", "awaiting"])
def colour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def attempt(run: Any, colour: str, name: str = "do") -> Any:
    """One call in either colour, in the run."""
    return run.attempt(name) if colour == "blocking" else asyncio.run(run.aattempt(name))


def test_every_record_of_a_run_reaches_every_sink_in_order(colour: str) -> None:
    sinks = Paper(), Paper(required=True)
    with gateway(do, sinks=sinks) as at:
        with at.run(agent="bot") as run:
            attempt(run, colour)
            attempt(run, colour, "dont")
        length = len(at.store.perform(ReadAudit("default", run.run_id)))
    for sink in sinks:
        assert sink.seen == list(range(1, length + 1))


def test_a_required_sink_that_fails_refuses_before_the_body_and_all_others_are_told(
    colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    tight, loose = Paper(required=True), Paper()
    with gateway(do, sinks=(tight, loose)) as at, at.run(agent="bot") as run, caplog.at_level(logging.CRITICAL):
        tight.errors = [OSError("full")]
        outcome = attempt(run, colour)
        assert isinstance(outcome, Refused)
        assert outcome.reason is StopReason.AUDIT_UNAVAILABLE
        assert tight.seen == loose.seen
        assert isinstance(attempt(run, colour), Completed)


def test_an_optional_sink_that_fails_changes_nothing_and_catches_up(
    colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    loose = Paper()
    with gateway(do, sinks=[loose]) as at, at.run(agent="bot") as run, caplog.at_level(logging.CRITICAL):
        loose.errors = [OSError("full"), SystemError("x")]
        assert isinstance(attempt(run, colour), Completed)
        assert isinstance(attempt(run, colour), Completed)
        assert loose.seen == list(range(1, len(loose.seen) + 1))
        assert at._ports._deliveries[0].gaps == 2


def test_a_sink_that_hangs_costs_one_deadline_and_no_further_thread(
    colour: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ports, "SINK_DEADLINE_S", 0.05)
    monkeypatch.setattr(delivering, "SINK_DEADLINE_S", 0.05)
    loose = Paper()
    with gateway(do, sinks=[loose]) as at, at.run(agent="bot") as run, caplog.at_level(logging.CRITICAL):
        loose.gate = Gate()
        for _ in range(40):
            assert isinstance(attempt(run, colour), Completed)
        assert at._ports._deliveries[0].hangs
        assert at._ports._couriers._threads <= 3
        assert at._ports._deliveries[0].gaps == 80
        loose.gate.opened.set()
        loose.gate = None
        until(lambda: not at._ports._deliveries[0].hangs)
        attempt(run, colour)
        assert loose.seen == list(range(1, len(loose.seen) + 1))


def test_a_required_sink_that_hangs_refuses_within_the_deadline(
    colour: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ports, "SINK_DEADLINE_S", 0.05)
    tight = Paper(required=True)
    with gateway(do, sinks=[tight]) as at, at.run(agent="bot") as run, caplog.at_level(logging.CRITICAL):
        gate = tight.gate = Gate()
        outcome = attempt(run, colour)
        assert isinstance(outcome, Refused)
        assert outcome.reason is StopReason.AUDIT_UNAVAILABLE
        tight.gate = None
        gate.opened.set()


def test_a_delivery_that_got_no_thread_in_time_is_not_made_later_by_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ports, "SINK_DEADLINE_S", 0.05)
    loose, gate = Paper(), Gate()
    with gateway(do, sinks=[loose]) as at, at.run(agent="bot") as run, caplog.at_level(logging.CRITICAL):
        for _ in range(at._ports._couriers._limit):
            at._ports._couriers.submit(gate.wait)
        before = list(loose.seen)
        run.attempt("do")
        assert loose.seen == before
        assert not at._ports._deliveries[0].hangs
        gate.opened.set()


def test_threads_publish_the_records_of_one_run_in_order() -> None:
    sink = Paper()
    with gateway(do, sinks=[sink]) as at, at.run(agent="bot") as run:
        threads = [threading.Thread(target=lambda: [run.attempt("do") for _ in range(10)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        run.attempt("do")
    assert sink.seen == list(range(1, len(sink.seen) + 1))
    assert len(sink.seen) >= 2 + 81 * 2
