"""Cancelling and crowding: an operation that was asked for happens as a whole, exactly once, for its caller."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Final

from agentguard.domain.operations import GetCall, Proceed, Turned
from agentguard.domain.usage import Meter
from agentguard.errors import StoreConflict
from agentguard.testing.conformance.scene import Check, Colour, MakeStore, Scene, blocking

_LIMIT: Final = Meter("run|r1", "run", "run r1", {"tool_calls": 20})


def _sum_up(scene: Scene, answers: list[Any]) -> None:
    admitted = [a for a in answers if isinstance(a, Proceed)]
    turned = [a for a in answers if isinstance(a, Turned)]
    assert len(admitted) == 20 and len(turned) == len(answers) - 20, f"{len(admitted)} of {len(answers)} admitted"
    assert scene.line(_LIMIT).held == 20
    assert len({a.seq for a in admitted}) == 20
    scene.chain()


def check_crowd_of_threads_shares_a_limit(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Many threads at once: each gets its own answer, and the limit is exact."""
    with Scene(make_store, colour) as scene:
        scene.open(meters=(_LIMIT,))
        answers: list[Any] = []

        def work(number: int) -> None:
            answers.extend(scene.begin(f"c{number}-{n}", meters=(_LIMIT,), lease_ns=10**15) for n in range(3))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _sum_up(scene, answers)


def check_crowd_of_tasks_shares_a_limit(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Many tasks of one loop at once: each gets its own answer, errors go to those who caused them."""
    with Scene(make_store, colour) as scene:
        scene.open(meters=(_LIMIT,))
        bad = scene.intent("bad", approval=scene.demand({"to": "bob"}))
        first = scene.do(bad)
        vote = scene.vote(first.request.id, kind="escalate")  # type: ignore[union-attr]

        async def crowd() -> list[Any]:
            calls = [scene.intent(f"c{n}", meters=(_LIMIT,), lease_ns=10**15) for n in range(36)]
            work = [scene.store.aperform(call) for call in calls]
            wrong = [scene.store.aperform(vote) for _ in range(5)]
            return list(await asyncio.gather(*work[:18], *wrong, *work[18:], return_exceptions=True))

        answers = asyncio.run(crowd())
        errors = [a for a in answers if isinstance(a, BaseException)]
        assert len(errors) == 5 and len(set(map(id, errors))) == 5
        _sum_up(scene, [a for a in answers if not isinstance(a, BaseException)])


def check_cancelled_operation_still_happens(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Cancelling who waits neither tears an operation nor loses the store; it happens or it does not."""
    with Scene(make_store, colour) as scene:
        scene.open()

        async def cancel() -> int:
            cancelled = 0
            for number in range(20):
                task = asyncio.ensure_future(scene.store.aperform(scene.intent(f"c{number}")))
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    cancelled += 1
            await scene.store.aperform(GetCall("acme", "r1/c0"))
            return cancelled

        asyncio.run(cancel())
        scene.start("after")
        begun = [n for n in range(20) if scene.do(GetCall("acme", f"r1/c{n}")) is not None]
        assert scene.line(_LIMIT).held == len(begun) + 1
        assert len(scene.chain()) == len(begun) + 2


def check_error_leaves_nothing_behind(make_store: MakeStore, colour: Colour = blocking) -> None:
    """An operation that raises changes nothing, and the next one works."""
    with Scene(make_store, colour) as scene:
        scene.open()
        before = scene.run()
        for _ in range(3):
            try:
                scene.open()
            except StoreConflict:
                continue
            raise AssertionError("opening a run twice must be a conflict")
        assert scene.run() == before
        scene.start()


CHECKS: Final[tuple[Check, ...]] = (
    check_crowd_of_threads_shares_a_limit,
    check_crowd_of_tasks_shares_a_limit,
    check_cancelled_operation_still_happens,
    check_error_leaves_nothing_behind,
)
