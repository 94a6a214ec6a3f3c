"""Cancellation at every await: once, twice, by a scope that never stops cancelling, at the end of a loop.

After each: every intent has one terminal record, nothing is held, secrets are back, no body began afterwards, and
nothing is left to do once the gateway is closed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentguard import Credentials, tool
from agentguard._drive.awaiting import adrive
from agentguard._flow.effects import Sleep
from agentguard.domain.approvals import ApproverIdentity, Verdict
from agentguard.domain.calls import Completed, Refused
from agentguard.domain.operations import Begin, Finish, ListCalls
from agentguard.errors import StoreUnavailable
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore
from tests.unit.drive.making import PATIENCE, Gate, SlowStore, calls, gateway, held, kinds, until


class Vault:
    """An async provider that knows what is out."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.leases = 0

    async def lease(self, request: Any) -> str:
        await asyncio.sleep(0)
        self.leases += 1
        self.out.append(request.name)
        return f"s3cret-{request.name}"

    async def release(self, request: Any, secret: str) -> None:
        await asyncio.sleep(0)
        self.out.remove(request.name)


class Boss:
    async def decide(self, request: Any) -> Verdict:
        await asyncio.sleep(0)
        return Verdict("approve", ApproverIdentity("ann"))


class Paper:
    required = True

    def __init__(self) -> None:
        self.seen: list[int] = []

    def write(self, taken: Any) -> None:
        self.seen += [one.seq for one in taken]

    def close(self) -> None:
        pass


class Scene:
    """One call with everything in it: approval, secrets, two attempts, an async body."""

    def __init__(self, store: Any, *, sinks: bool = False, approve: bool = True) -> None:
        self.vault = Vault()
        self.bodies = 0
        self.cancelled_at: int | None = None
        scene = self

        @tool(
            name="do",
            effect="idempotent",
            credentials=["a", "b"],
            timeout=30,
            retry={"attempts": 2, "jitter": 0, "wait": 0},
        )
        async def do(keys: Credentials) -> str:
            scene.bodies += 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if scene.bodies == 1:
                raise OSError("again")
            return "done"

        self.sink = Paper()
        self.gateway = gateway(
            do,
            approve="do" if approve else None,
            approver=Boss(),
            credentials=self.vault,
            store=store,
            sinks=[self.sink] if sinks else [],
        )

    async def play(self, canceller: Callable[[asyncio.Task[Any], int], bool]) -> int:
        """Make the call in a task; after each of its turns ``canceller`` may cancel it. The number of turns."""
        turns, patience = 0, time.monotonic() + PATIENCE
        run = await self.gateway.run(agent="bot").aopen()
        self.run = run
        task = asyncio.ensure_future(run.aattempt("do"))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
            assert time.monotonic() < patience
            if canceller(task, turns):
                self.begun_before = self.bodies
        self.outcome: Any = None
        try:
            self.outcome = task.result()
        except asyncio.CancelledError:
            self.outcome = "cancelled"
        await self.gateway._ports.settled()
        return turns

    def check(self) -> None:
        """What must be true however the call ended."""
        at, run = self.gateway, self.run
        store = at.store
        found = store.perform(ListCalls("default", run.run_id))
        for call in found:
            assert call.status in ("succeeded", "failed", "ambiguous", "refused", "pending"), call.status
        records = kinds(at, run)
        assert records.count("call.intent") == records.count("call.outcome")
        assert held(at, run) == 0
        assert self.vault.out == []
        assert not at._ports._cleanups


def never(task: Any, turn: int) -> bool:
    return False


STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: MemoryStore(),
    "slow": lambda path: SlowStore(3),
    "sqlite": lambda path: SqliteStore(path / "guard.db"),
}


async def sweep(make: Callable[[], Scene], how: Callable[[int], Callable[[Any, int], bool]]) -> set[str]:
    """Play the scene with a cancellation after its first, second, ... turn until it ends before that."""
    ends: set[str] = set()
    for turn in range(1, 400):
        scene = make()
        turns = await scene.play(how(turn))
        scene.check()
        statuses = calls(scene.gateway, scene.run)
        ends.update(statuses)
        if scene.outcome == "cancelled":
            assert scene.bodies == scene.begun_before, "a body began after the cancellation"
        else:
            assert isinstance(scene.outcome, Completed)
        await scene.gateway.aclose()
        scene.gateway.store.close()
        if turns < turn:
            return ends
    raise AssertionError("the scene never ended by itself")


def once(turn: int) -> Callable[[Any, int], bool]:
    return lambda task, now: now == turn and task.cancel()


def twice(turn: int) -> Callable[[Any, int], bool]:
    return lambda task, now: now in (turn, turn + 1) and task.cancel()


def always(turn: int) -> Callable[[Any, int], bool]:
    return lambda task, now: now >= turn and task.cancel()


@pytest.mark.parametrize("store", ["memory", "slow"])
@pytest.mark.parametrize("how", [once, twice, always])
def test_a_cancellation_at_any_turn_leaves_nothing_behind(store: str, how: Any, tmp_path: Path) -> None:
    ends = asyncio.run(sweep(lambda: Scene(STORES[store](tmp_path)), how))
    assert ends >= {"ambiguous", "refused", "succeeded"}


@pytest.mark.parametrize("how", [once, twice])
def test_a_cancellation_at_any_turn_with_a_required_sink_leaves_nothing_behind(how: Any, tmp_path: Path) -> None:
    """Threads take as many turns as they like, so the sweep goes over effects instead: each is met at its start."""

    async def main() -> None:
        for turn in range(1, 60):
            scene = Scene(SlowStore(1), sinks=True)
            await scene.play(how(turn))
            scene.check()
            await scene.gateway.aclose()

    asyncio.run(main())


class Sweeping(SqliteStore):
    """SQLite, and a cancellation of the caller before or while operation ``at`` is carried out."""

    at = 0
    seen = 0
    task: asyncio.Task[Any] | None = None
    when = "before"

    async def aperform(self, operation: Any) -> Any:
        self.seen += 1
        mine = self.seen == self.at and self.task is not None
        if mine and self.when == "before":
            assert self.task is not None
            self.task.cancel()
        answer = await super().aperform(operation)
        if mine and self.when == "after":
            assert self.task is not None
            self.task.cancel()
        return answer


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_cancellation_at_every_operation_of_a_real_file_leaves_nothing_behind(
    when: str, times: int, tmp_path: Path
) -> None:
    async def main() -> None:
        store = Sweeping(tmp_path / "guard.db")
        store.when = when
        for at in range(1, 9):
            scene = Scene(store)
            store.seen, store.at, store.task = 0, 0, None
            run = scene.run = await scene.gateway.run(agent="bot").aopen()
            store.seen, store.at = 0, at
            store.task = asyncio.ensure_future(run.aattempt("do"))
            scene.begun_before = 0
            try:
                await asyncio.sleep(0)
                if times == 2:
                    while not store.task.done() and store.seen < at:
                        await asyncio.sleep(0)
                    store.task.cancel()
                await store.task
            except asyncio.CancelledError:
                pass
            await scene.gateway._ports.settled()
            scene.check()
            await scene.gateway.aclose()
        store.close()

    asyncio.run(main())


def test_a_scope_that_cancels_every_wait_cannot_reach_the_settlement() -> None:
    """A plain ``finally`` would be cancelled again at its first await."""

    async def main() -> None:
        scene = Scene(SlowStore(2), approve=False)
        async with scene.gateway.run(agent="bot") as run:
            scene.run = run
            for wait in (0, 1, 2, 3, 5, 8, 13, 21):
                with anyio.CancelScope() as scope:
                    task = asyncio.ensure_future(_cancel_after(scope, wait))
                    await run.aattempt("do")
                await task
            await scene.gateway._ports.settled()
            scene.check()
            assert "ambiguous" in calls(scene.gateway, run)
        await scene.gateway.aclose()

    asyncio.run(main())


async def _cancel_after(scope: anyio.CancelScope, turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    scope.cancel()


def test_a_deadline_of_the_caller_is_a_cancellation() -> None:
    @tool(name="do")
    async def do() -> None:
        await asyncio.sleep(PATIENCE)

    async def main() -> None:
        async with gateway(do) as at, at.run(agent="bot") as run:
            with anyio.move_on_after(0.01):
                await run.aattempt("do")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await run.aattempt("do")
            assert calls(at, run) == ["ambiguous", "ambiguous"]
            assert held(at, run) == 0

    asyncio.run(main())


def test_a_cancellation_is_no_verdict_on_the_tool() -> None:
    @tool(name="do", breaker=1)
    async def do() -> None:
        await asyncio.sleep(PATIENCE)

    async def main() -> None:
        async with gateway(do) as at, at.run(agent="bot") as run:
            task = asyncio.ensure_future(run.aattempt("do"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert at._house.breakers.state("do") == "closed"

    asyncio.run(main())


def test_the_end_of_a_loop_settles_what_it_cancels() -> None:
    """``asyncio.run`` cancels every task at its end: those that carry out operations of the store, too."""
    store = SlowStore(3)

    @tool(name="do")
    async def do() -> None:
        await asyncio.sleep(PATIENCE)

    at = gateway(do, store=store)
    kept: list[Any] = []

    async def main(turns: int) -> None:
        run = await at.run(agent="bot").aopen()
        kept.append((run, asyncio.ensure_future(run.aattempt("do"))))
        for _ in range(turns):
            await asyncio.sleep(0)

    for turns in range(14):
        asyncio.run(main(turns))
    for run, _ in kept:
        # A Begin whose own task was cancelled may have happened: that one is left to its lease.
        assert set(calls(at, run)) <= {"ambiguous", "refused", "running"}
    assert ["ambiguous"] in [calls(at, run) for run, _ in kept]


def test_the_end_of_a_loop_during_the_settlement_does_not_lose_it() -> None:
    store = SlowStore(3)

    @tool(name="do")
    async def do() -> None:
        await asyncio.sleep(0)

    at = gateway(do, store=store)
    kept: list[Any] = []

    async def main(turns: int) -> None:
        run = await at.run(agent="bot").aopen()
        task = asyncio.ensure_future(run.aattempt("do"))
        kept.append((run, task))
        while not any(status == "running" for status in calls(at, run)):
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)  # the answer of Begin is on its way
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)  # ... and the loop ends while the rest is driven

    for turns in range(2, 12):
        asyncio.run(main(turns))
    for run, _ in kept:
        assert "running" not in calls(at, run)
        assert held(at, run) == 0


# -- bodies in threads ------------------------------------------------------------------------------------------------------


def test_a_cancelled_sync_body_goes_on_and_its_end_is_recorded() -> None:
    gate = Gate()

    @tool(name="do")
    def do() -> int:
        gate.wait()
        return 5

    async def main() -> None:
        at = gateway(do)
        run = await at.run(agent="bot").aopen()
        task = asyncio.ensure_future(run.aattempt("do"))
        while not gate.inside.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert calls(at, run) == ["ambiguous"]
        gate.opened.set()
        until(lambda: calls(at, run) == ["succeeded"])
        await at.aclose()

    asyncio.run(main())


def test_a_sync_body_that_is_cancelled_in_the_queue_never_begins_and_costs_nothing() -> None:
    gate, began = Gate(), threading.Event()

    @tool(name="do", timeout=30)
    def do() -> None:
        began.set()

    async def main() -> None:
        at = gateway(do, max_workers=1)
        at._ports.workers.submit(gate.wait)
        run = await at.run(agent="bot").aopen()
        task = asyncio.ensure_future(run.aattempt("do"))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert calls(at, run) == ["refused"]
        assert run.usage.tool_calls == 0
        gate.opened.set()
        at._ports.workers.submit(lambda: None).result(PATIENCE)
        assert not began.is_set()
        await at.aclose()

    asyncio.run(main())


# -- the rest that cannot be driven -----------------------------------------------------------------------------------------


class Refusing(SlowStore):
    """A store that answers one kind of operation with an exception."""

    def __init__(self, kind: type, error: BaseException) -> None:
        super().__init__(1)
        self.kind, self.error = kind, error

    async def aperform(self, operation: Any) -> Any:
        if isinstance(operation, self.kind):
            await asyncio.sleep(0)
            raise self.error
        return await super().aperform(operation)


def cancelled(store: Any, turns: int) -> Any:
    """Cancel a call of an async body after some turns, and wait for the rest."""

    @tool(name="do")
    async def do() -> None:
        await asyncio.sleep(PATIENCE)

    async def main() -> Any:
        at = gateway(do, store=store)
        run = await at.run(agent="bot").aopen()
        task = asyncio.ensure_future(run.aattempt("do"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await at._ports.settled()
        assert not at._ports._cleanups
        return at, run

    return asyncio.run(main())


def test_a_store_that_refuses_after_the_cancellation_ends_it_quietly() -> None:
    cancelled(Refusing(Begin, StoreUnavailable("down")), 1)
    at, run = cancelled(Refusing(Finish, StoreUnavailable("down")), 12)
    assert calls(at, run) == ["running"]  # for its lease


def test_a_rest_that_is_interrupted_in_turn_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(BaseException):
        pass

    async def main() -> None:
        def flow() -> Any:
            try:
                yield Sleep(PATIENCE)
            except asyncio.CancelledError:
                raise Odd from None

        with gateway() as at:
            task = asyncio.ensure_future(adrive(flow(), at._ports))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises((Odd, asyncio.CancelledError)):
                await task
            await at._ports.settled()

    with caplog.at_level(logging.ERROR, "agentguard"):
        asyncio.run(main())
    assert "could not be settled" in caplog.text


def test_a_rest_with_a_bug_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        def flow() -> Any:
            try:
                yield Sleep(PATIENCE)
            except asyncio.CancelledError:
                raise RuntimeError("bug") from None

        with gateway() as at:
            task = asyncio.ensure_future(adrive(flow(), at._ports))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await at._ports.settled()

    with caplog.at_level(logging.ERROR, "agentguard"):
        asyncio.run(main())
    assert "its lease will end it: RuntimeError" in caplog.text


def test_a_rest_starts_nothing() -> None:
    asked: list[str] = []

    def flow() -> Any:
        try:
            yield Sleep(PATIENCE)
        finally:
            try:
                yield Sleep(0.001)
            except BaseException as error:
                asked.append(type(error).__name__)
                raise

    async def main() -> None:
        with gateway() as at:
            task = asyncio.ensure_future(adrive(flow(), at._ports))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert asked == ["CancelledError"]


def test_closing_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with gateway() as at:
            hangs = at._ports.detach(asyncio.sleep(PATIENCE))
            await at._ports.settled(0.01)
            hangs.cancel()
            await at._ports.settled()

    with caplog.at_level(logging.ERROR, "agentguard"):
        asyncio.run(main())
    assert "did not end within 0.01 s" in caplog.text


def test_what_detached_work_raises_is_nobodys_warning() -> None:
    async def fail() -> None:
        raise RuntimeError("nobody looks")

    async def main() -> None:
        with gateway() as at:
            at._ports.detach(fail())
            await at._ports.settled()

    asyncio.run(main())
    gc.collect()


# -- secrets and approvers -------------------------------------------------------------------------------------------------


class SyncVault:
    """A provider whose n-th lease waits, raises or answers something odd."""

    def __init__(self, *, fails: Any = None, odd: Any = None, gate: Gate | None = None, release: Any = None) -> None:
        self.out: list[str] = []
        self.seen = 0
        self.fails, self.odd, self.gate, self.released = fails, odd, gate, release

    def lease(self, request: Any) -> Any:
        self.seen += 1
        if self.seen == 2:
            if self.gate is not None:
                self.gate.wait()
            if self.fails is not None:
                raise self.fails
            if self.odd is not None:
                return self.odd()
        self.out.append(request.name)
        return f"s3cret-{request.name}"

    def release(self, request: Any, secret: str) -> None:
        if request.name in self.out:
            self.out.remove(request.name)
        if self.released is not None:
            raise self.released


@tool(name="keyed", credentials=["a", "b", "c"])
def keyed(keys: Credentials) -> list[str]:
    kept.append(keys)
    return sorted(keys)


kept: list[Credentials] = []


def attempt_in(colour: str, at: Any, name: str = "keyed") -> Any:
    with at.run(agent="bot") as run:
        if colour == "blocking":
            return run.attempt(name)
        return asyncio.run(run.aattempt(name))


@pytest.mark.parametrize("colour", ["blocking", "awaiting"])
def test_secrets_are_given_back_and_of_no_use_afterwards(colour: str) -> None:
    vault = SyncVault()
    kept.clear()
    assert isinstance(attempt_in(colour, gateway(keyed, credentials=vault)), Completed)
    assert vault.out == []
    assert repr(kept[0]) == "Credentials(closed)"


@pytest.mark.parametrize("colour", ["blocking", "awaiting"])
@pytest.mark.parametrize(
    "trouble", [{"fails": OSError("no")}, {"odd": lambda: None}, {"odd": lambda: b"bytes"}, {"odd": str}]
)
def test_a_lease_that_fails_in_part_gives_the_rest_back(colour: str, trouble: dict[str, Any]) -> None:
    vault = SyncVault(**trouble)
    outcome = attempt_in(colour, gateway(keyed, credentials=vault))
    assert isinstance(outcome, Refused)
    assert outcome.reason == "credentials_unavailable"
    assert vault.out == []


@pytest.mark.parametrize("colour", ["blocking", "awaiting"])
def test_a_release_that_fails_is_logged_and_changes_nothing(colour: str, caplog: pytest.LogCaptureFixture) -> None:
    vault = SyncVault(release=OSError("secret text"))
    assert isinstance(attempt_in(colour, gateway(keyed, credentials=vault)), Completed)
    assert vault.out == []
    assert caplog.text.count("was not released: OSError") == 3
    assert "secret text" not in caplog.text


def test_an_interrupt_while_secrets_are_given_back_does_not_keep_the_others() -> None:
    vault = SyncVault(release=KeyboardInterrupt())
    at = gateway(keyed, credentials=vault)
    with at.run(agent="bot") as run:
        with pytest.raises(KeyboardInterrupt):
            run.attempt("keyed")
        assert vault.out == []
        assert calls(at, run) == ["succeeded"]


def test_an_async_provider_cannot_be_asked_from_sync_code() -> None:
    outcome = attempt_in("blocking", gateway(keyed, credentials=Vault()))
    assert isinstance(outcome, Refused)
    assert "acall" in outcome.detail


def test_a_provider_that_answers_with_an_awaitable_is_awaited() -> None:
    vault = Vault()

    class Odd:
        def lease(self, request: Any) -> Any:
            return vault.lease(request)

        def release(self, request: Any, secret: str) -> Any:
            return vault.release(request, secret)

    assert isinstance(attempt_in("awaiting", gateway(keyed, credentials=Odd())), Completed)
    assert vault.out == []
    assert vault.leases == 3


def leasing(vault: Any, gate: Gate) -> None:
    """Cancel a call while the provider's thread is in the middle of its second lease."""

    async def main() -> None:
        async with gateway(keyed, credentials=vault) as at:
            run = await at.run(agent="bot").aopen()
            task = asyncio.ensure_future(run.aattempt("keyed"))
            while not gate.inside.is_set():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert calls(at, run) == ["refused"]
            gate.opened.set()
            until(lambda: at._ports.attendants._load == 0)

    asyncio.run(main())


def test_a_secret_that_comes_after_the_cancellation_goes_straight_back() -> None:
    gate = Gate()
    vault = SyncVault(gate=gate)
    leasing(vault, gate)
    until(lambda: vault.out == [])
    assert vault.seen == 2


def test_a_lease_that_fails_after_the_cancellation_is_nobodys_warning() -> None:
    gate = Gate()
    vault = SyncVault(gate=gate, fails=OSError("no"))
    leasing(vault, gate)
    assert vault.out == []
    gc.collect()


def test_a_promise_that_comes_after_the_cancellation_is_dropped() -> None:
    gate = Gate()

    async def promise() -> str:
        return "never"

    leasing(SyncVault(gate=gate, odd=promise), gate)
    gc.collect()


def test_a_lease_that_is_cancelled_in_the_queue_is_never_asked_for() -> None:
    vault, gate = SyncVault(), Gate()

    async def main() -> None:
        async with gateway(keyed, credentials=vault) as at:
            run = await at.run(agent="bot").aopen()
            for _ in range(at._ports.attendants._limit):
                at._ports.attendants.submit(gate.wait)
            task = asyncio.ensure_future(run.aattempt("keyed"))
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.opened.set()
            await at._ports.settled()

    asyncio.run(main())
    assert vault.seen == 0


def test_secrets_of_a_coroutine_that_is_dropped_while_it_leases_go_back() -> None:
    gate = Gate()
    vault = SyncVault(gate=gate)
    at = gateway(keyed, credentials=vault)
    run = at.run(agent="bot").open()
    begun: list[Any] = []

    async def main() -> None:
        coroutine = run.aattempt("keyed")
        begun.append(coroutine)
        waits = coroutine.send(None)
        while not gate.inside.is_set():
            await asyncio.sleep(0)
            if waits.done():
                waits = coroutine.send(None)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    begun.pop().close()
    loop.close()
    gate.opened.set()
    until(lambda: vault.seen == 2 and vault.out == [])
    gc.collect()
    at.close()


def test_new_secrets_push_out_the_oldest_that_the_redaction_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentguard._drive import ports
    from agentguard.protocols import CredentialRequest

    monkeypatch.setattr(ports, "_SECRETS", 2)
    with gateway() as at:
        request = CredentialRequest("n", "t", "acme", "default", "bot", None, "r1")
        for secret in ("first-secret", "second-secret", "first-secret", "third-secret"):
            at._ports.learn(request, secret)
        assert (
            at._ports.secrets.redact("first-secret second-secret third-secret") == "[redacted] second-secret [redacted]"
        )


@tool(name="asked")
def asked() -> int:
    return 5


@pytest.mark.parametrize("colour", ["blocking", "awaiting"])
def test_an_approver_may_be_sync_in_both_colours(colour: str) -> None:
    class Now:
        def decide(self, request: Any) -> Verdict:
            return Verdict("approve", ApproverIdentity("ann"))

    assert isinstance(attempt_in(colour, gateway(asked, approve="asked", approver=Now()), "asked"), Completed)


def test_an_async_approver_is_awaited_and_cannot_be_asked_from_sync_code() -> None:
    assert isinstance(attempt_in("awaiting", gateway(asked, approve="asked", approver=Boss()), "asked"), Completed)
    outcome = attempt_in("blocking", gateway(asked, approve="asked", approver=Boss()), "asked")
    assert isinstance(outcome, Refused)
    assert outcome.reason == "approval_pending"
    assert "acall" in outcome.detail


def test_an_approver_that_ends_its_iteration_by_mistake_does_not_hang_the_call() -> None:
    class Odd:
        def decide(self, request: Any) -> Verdict:
            return next(iter([]))  # type: ignore[no-any-return]

    outcome = attempt_in("awaiting", gateway(asked, approve="asked", approver=Odd()), "asked")
    assert isinstance(outcome, Refused)
    assert outcome.reason == "approval_pending"


def test_a_call_that_is_cancelled_while_a_person_thinks_holds_nothing() -> None:
    gate = Gate()

    class Slow:
        def decide(self, request: Any) -> None:
            gate.wait()

    async def main() -> None:
        async with gateway(asked, approve="asked", approver=Slow()) as at:
            run = await at.run(agent="bot").aopen()
            task = asyncio.ensure_future(run.aattempt("asked"))
            while not gate.inside.is_set():
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert calls(at, run) == ["pending"]
            assert held(at, run) == 0
            gate.opened.set()

    asyncio.run(main())
