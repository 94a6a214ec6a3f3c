"""Group commit: who leads, who waits, and what happens to those who leave."""

from __future__ import annotations

import asyncio
import threading
import types
from typing import Any

import pytest

from agentguard.domain.operations import GetCall, Operation
from agentguard.errors import StoreUnavailable
from agentguard.stores import _grouping as grouping
from agentguard.stores._grouping import GroupQueue, Ticket


def operation(name: str) -> Operation[Any]:
    return GetCall("acme", name)


class Engine:
    """Answers every operation with itself; can be held up in the middle of a group."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.threads: list[str] = []
        self.entered = threading.Semaphore(0)
        self.may_go = threading.Event()
        self.may_go.set()
        self.error: BaseException | None = None
        self.queue = GroupQueue(self.carry_out, "it is closed")

    def carry_out(self, group: list[Ticket]) -> None:
        self.groups.append(len(group))
        self.threads.append(threading.current_thread().name)
        self.entered.release()
        assert self.may_go.wait(10)
        if self.error is not None:
            raise self.error
        for ticket in group:
            ticket.answer = ticket.operation
            ticket.done = True

    def start(self, name: str, answers: list[Any]) -> threading.Thread:
        def work() -> None:
            try:
                answers.append(self.queue.perform(operation(name)))
            except BaseException as error:
                answers.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def waiting(self, count: int) -> None:
        """Until so many are in the queue."""
        while len(self.queue._queue) < count:
            threading.Event().wait(0.001)


def test_a_lone_caller_does_its_own_work() -> None:
    engine = Engine()
    assert engine.queue.perform(operation("a")) == operation("a")
    assert engine.threads == [threading.current_thread().name]


def test_those_who_come_during_a_group_form_the_next() -> None:
    engine = Engine()
    engine.may_go.clear()
    answers: list[Any] = []
    threads = [engine.start("first", answers)]
    assert engine.entered.acquire(timeout=10)
    threads += [engine.start(str(n), answers) for n in range(5)]
    engine.waiting(5)
    engine.may_go.set()
    for thread in threads:
        thread.join(10)
    assert engine.groups == [1, 5]
    assert sorted(a.key for a in answers) == ["0", "1", "2", "3", "4", "first"]


def test_tasks_are_served_by_one_thread_that_ends_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_IDLE_S", 0.01)
    engine = Engine()

    async def crowd() -> list[Any]:
        return await asyncio.gather(*(engine.queue.aperform(operation(str(n))) for n in range(8)))

    for _ in range(2):
        assert [a.key for a in asyncio.run(crowd())] == [str(n) for n in range(8)]
        for thread in threading.enumerate():
            if thread.name == "agentguard-store":
                thread.join(10)
                assert not thread.is_alive()
    assert set(engine.threads) == {"agentguard-store"}


def test_a_thread_that_leads_hands_over_to_tasks_and_back() -> None:
    engine = Engine()
    engine.may_go.clear()
    answers: list[Any] = []
    first = engine.start("first", answers)
    assert engine.entered.acquire(timeout=10)

    async def task() -> Any:
        return await engine.queue.aperform(operation("task"))

    loop = threading.Thread(target=lambda: answers.append(asyncio.run(task())))
    loop.start()
    engine.waiting(1)
    last = engine.start("last", answers)
    engine.waiting(2)
    engine.may_go.set()
    for thread in (first, loop, last):
        thread.join(10)
    assert sorted(a.key for a in answers) == ["first", "last", "task"]
    assert engine.groups == [1, 2]


def test_a_cancelled_task_leaves_the_operation_and_the_others_alone() -> None:
    engine = Engine()
    engine.may_go.clear()

    async def crowd() -> Any:
        doomed = asyncio.ensure_future(engine.queue.aperform(operation("doomed")))
        await asyncio.to_thread(engine.entered.acquire)
        other = asyncio.ensure_future(engine.queue.aperform(operation("other")))
        await asyncio.sleep(0)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        engine.may_go.set()
        return await other

    assert asyncio.run(crowd()).key == "other"
    assert sum(engine.groups) == 2


def test_an_interrupted_leader_leaves_answers_to_everybody() -> None:
    engine = Engine()
    engine.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.queue.perform(operation("a"))

    async def task() -> Any:
        return await engine.queue.aperform(operation("b"))

    with pytest.raises(StoreUnavailable, match="interrupted"):
        asyncio.run(task())
    engine.error = None
    assert engine.queue.perform(operation("c")).key == "c"


@pytest.mark.parametrize("promoted", [False, True])
def test_a_follower_that_is_interrupted_takes_neither_lead_nor_queue_with_it(
    monkeypatch: pytest.MonkeyPatch, promoted: bool
) -> None:
    engine = Engine()
    engine.may_go.clear()
    answers: list[Any] = []
    first = engine.start("first", answers)
    assert engine.entered.acquire(timeout=10)

    waiting, interrupt = threading.Event(), threading.Event()

    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.taken = False

        def acquire(self) -> bool:
            if not self.taken:
                self.taken = True
                return self.lock.acquire()
            waiting.set()
            if promoted:
                self.lock.acquire()
            assert interrupt.wait(10)
            raise KeyboardInterrupt

        def release(self) -> None:
            self.lock.release()

    with monkeypatch.context() as patch:
        patch.setattr(grouping, "threading", types.SimpleNamespace(Lock=Lock))
        doomed = engine.start("doomed", answers)
        assert waiting.wait(10)
    last = engine.start("last", answers)
    engine.waiting(2)
    if not promoted:
        interrupt.set()
        doomed.join(10)
        engine.may_go.set()
    else:
        engine.may_go.set()
        first.join(10)
        interrupt.set()
    for thread in (first, doomed, last):
        thread.join(10)
    assert sum(isinstance(a, KeyboardInterrupt) for a in answers) == 1
    assert sorted(a.key for a in answers if not isinstance(a, BaseException)) == ["first", "last"]
    assert engine.queue.perform(operation("after")).key == "after"


def test_closing_waits_for_what_was_begun_and_refuses_the_rest() -> None:
    engine = Engine()
    engine.may_go.clear()
    answers: list[Any] = []
    thread = engine.start("first", answers)
    assert engine.entered.acquire(timeout=10)
    assert engine.queue.close(0.01) is False

    async def task() -> Any:
        return await engine.queue.aperform(operation("late"))

    with pytest.raises(StoreUnavailable, match="it is closed"):
        asyncio.run(task())
    with pytest.raises(StoreUnavailable, match="it is closed"):
        engine.queue.perform(operation("late"))
    engine.may_go.set()
    thread.join(10)
    assert engine.queue.close(1) is True
    assert [a.key for a in answers] == ["first"]


def test_a_child_process_begins_anew_and_stays_closed_if_it_was() -> None:
    engine = Engine()
    engine.queue._led = True  # as if a thread that the child does not have were leading
    engine.queue.forked()
    assert engine.queue.perform(operation("a")).key == "a"
    engine.queue.close(1)
    engine.queue.forked()
    with pytest.raises(StoreUnavailable):
        engine.queue.perform(operation("b"))
