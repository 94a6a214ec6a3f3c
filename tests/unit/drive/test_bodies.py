"""Bodies in threads and loops: limits, abandoned bodies, contexts, interruptions. Both colours, no fakes of time
except where a real limit of a thread is the subject; then it is tiny."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from agentguard import CallContext, ProbeResult, tool
from agentguard._drive import blocking
from agentguard._drive.awaiting import aperform
from agentguard._drive.blocking import Abandoned, perform
from agentguard._drive.workers import Workers
from agentguard._flow.effects import Invoke
from agentguard.domain.calls import Ambiguous, Completed, Failed, Refused
from agentguard.domain.context import CallContext as Context
from agentguard.domain.decisions import StopReason
from agentguard.domain.operations import Effect, GetRun
from agentguard.tools.current import CURRENT
from tests.unit.drive.making import PATIENCE, Gate, calls, gateway, held, kinds, until


@pytest.fixture(params=["blocking", "awaiting"])
def attempt(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Make one call in either colour."""
    if request.param == "blocking":
        return lambda run, *args, **kwargs: run.attempt(*args, **kwargs)
    return lambda run, *args, **kwargs: asyncio.run(run.aattempt(*args, **kwargs))


# -- limits -----------------------------------------------------------------------------------------------------------------


def hanging(gate: Gate, effect: str = "irreversible", *, ends: Any = 5, **settings: Any) -> Any:
    @tool(name="do", effect=effect, timeout=0.02, cost_usd=1, **settings)
    def do() -> int:
        gate.wait()
        if isinstance(ends, BaseException):
            raise ends
        return ends  # type: ignore[no-any-return]

    return do


def test_the_caller_of_a_sync_body_that_hangs_is_back_soon_after_the_limit(attempt: Callable[..., Any]) -> None:
    gate = Gate()
    with gateway(hanging(gate)) as at, at.run(agent="bot") as run:
        begun = time.monotonic()
        outcome = attempt(run, "do")
        assert time.monotonic() - begun < 5  # the body would take for ever
        assert isinstance(outcome, Ambiguous)
        assert calls(at, run) == ["ambiguous"]
        assert held(at, run) == 0
        gate.opened.set()
        until(lambda: calls(at, run) == ["succeeded"])


def test_what_an_abandoned_body_returned_after_all_is_what_the_call_becomes(attempt: Callable[..., Any]) -> None:
    gate = Gate()
    with gateway(hanging(gate)) as at, at.run(agent="bot") as run:
        assert isinstance(attempt(run, "do", call_id="c"), Ambiguous)
        assert isinstance(attempt(run, "do", call_id="c"), Ambiguous)
        gate.opened.set()
        until(lambda: calls(at, run) == ["succeeded"])
        outcome = attempt(run, "do", call_id="c")
        assert isinstance(outcome, Completed)
        assert (outcome.value, outcome.replayed) == (5, True)
        assert run.usage.tool_calls == 1
        assert run.usage.cost_usd == 1
        assert kinds(at, run).count("call.outcome") == 2


@pytest.mark.parametrize("error", [OSError("no"), StopIteration(), GeneratorExit()])
def test_an_abandoned_body_that_fails_after_all_has_failed(attempt: Callable[..., Any], error: BaseException) -> None:
    gate = Gate()
    with gateway(hanging(gate, ends=error)) as at, at.run(agent="bot") as run:
        assert isinstance(attempt(run, "do"), Ambiguous)
        gate.opened.set()
        until(lambda: calls(at, run) == ["failed"])
        assert held(at, run) == 0


def test_an_abandoned_body_that_ends_the_thread_leaves_the_call_ambiguous(attempt: Callable[..., Any]) -> None:
    gate = Gate()
    with gateway(hanging(gate, ends=SystemExit())) as at, at.run(agent="bot") as run:
        attempt(run, "do")
        gate.opened.set()
        until(lambda: at._ports.workers._load == at._ports.attendants._load == 0)
        assert calls(at, run) == ["ambiguous"]


def test_a_late_end_that_cannot_be_recorded_is_logged(
    attempt: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    at = gateway(hanging(gate))
    with at.run(agent="bot") as run:
        attempt(run, "do")
    at.close()
    gate.opened.set()
    until(lambda: "late end of do could not be recorded" in caplog.text)


def test_a_late_end_is_said_only_after_the_end_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body returns between its limit and the settlement: both are said, in that order, and it is paid once."""
    gate = Gate()
    with gateway(hanging(gate)) as at, at.run(agent="bot") as run:
        real = at.store.perform

        def slow(operation: Any) -> Any:
            if type(operation).__name__ == "Finish" and operation.status == "ambiguous":
                gate.opened.set()
                until(lambda: at._ports.workers._load == 0)
            return real(operation)

        monkeypatch.setattr(at.store, "perform", slow)
        assert isinstance(run.attempt("do"), Ambiguous)
        until(lambda: calls(at, run) == ["succeeded"])
        assert run.usage.cost_usd == 1
        assert "call.late" not in kinds(at, run)


def test_an_attempt_that_was_given_up_says_nothing_about_the_next_one() -> None:
    gate = Gate()
    seen: list[int] = []

    @tool(name="do", effect="read", timeout=0.05, retry={"attempts": 2, "wait": 0, "jitter": 0})
    def do(context: CallContext) -> int:
        seen.append(context.attempt)
        if context.attempt == 1:
            gate.wait()
        return context.attempt

    with gateway(do) as at, at.run(agent="bot") as run:
        outcome = run.attempt("do", call_id="c")
        assert isinstance(outcome, Completed)
        assert outcome.value == 2
        gate.opened.set()
        until(lambda: "call.late" in kinds(at, run))
        again = run.attempt("do", call_id="c")
        assert isinstance(again, Completed)
        assert again.value == 2
        assert seen == [1, 2]


def test_a_body_that_got_no_worker_in_time_never_begins(attempt: Callable[..., Any]) -> None:
    gate, began = Gate(), threading.Event()

    @tool(name="late", timeout=0.02)
    def late() -> None:
        began.set()

    with gateway(hanging(gate), late, max_workers=1) as at, at.run(agent="bot") as run:
        attempt(run, "do")
        outcome = attempt(run, "late")
        assert isinstance(outcome, Refused)
        assert (outcome.reason, outcome.retryable) == (StopReason.CONCURRENCY, True)
        gate.opened.set()
        at._ports.workers.submit(lambda: None).result(PATIENCE)
        assert not began.is_set()
        assert held(at, run) == 0


def test_bodies_that_hang_do_not_keep_secrets_from_being_given_back() -> None:
    from agentguard import Credentials

    gate, back = Gate(), threading.Event()

    class Vault:
        def lease(self, request: Any) -> str:
            return "s3cret-value"

        def release(self, request: Any, secret: str) -> None:
            back.set()

    @tool(name="keyed", effect="read", credentials=["k"], timeout=0.02)
    def keyed(keys: Credentials) -> None:
        gate.wait()

    async def main() -> None:
        with gateway(keyed, credentials=Vault(), max_workers=1) as at:
            async with at.run(agent="bot") as run:
                assert isinstance(await run.aattempt("keyed"), Failed)
                assert back.is_set()

    asyncio.run(main())
    gate.opened.set()


def test_a_tools_own_timeout_error_is_not_ours(attempt: Callable[..., Any]) -> None:
    @tool(name="do", timeout=30)
    def do() -> None:
        raise TimeoutError("mine")

    @tool(name="ado", timeout=30)
    async def ado() -> None:
        raise TimeoutError("mine")

    with gateway(do, ado) as at, at.run(agent="bot") as run:
        outcomes = [attempt(run, "do"), asyncio.run(run.aattempt("ado"))]
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert (outcome.reason, str(outcome.error)) == (StopReason.TOOL_ERROR, "mine")


def test_a_limit_longer_than_threads_can_wait_is_none() -> None:
    @tool(name="do", effect="read")
    def do() -> int:
        return 5

    effect = Invoke(do.tool, {}, Context(None, "", ""), None, 1e300)  # type: ignore[arg-type]
    with gateway(do) as at:
        assert perform(effect, at._ports, Abandoned()) == 5


def test_an_answer_in_the_last_moment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    @tool(name="do", effect="read")
    def do() -> int:
        return 5

    real = Future.result

    def at_last(self: Any, timeout: float | None = None) -> Any:
        value = real(self, PATIENCE)
        if timeout is not None:
            raise TimeoutError
        return value

    effect = Invoke(do.tool, {}, Context(None, "", ""), None, 1.0)  # type: ignore[arg-type]
    with gateway(do) as at, monkeypatch.context() as patch:
        patch.setattr(Future, "result", at_last)
        assert perform(effect, at._ports, Abandoned()) == 5


def test_an_async_body_is_cut_off_at_its_limit_whatever_it_makes_of_that() -> None:
    @tool(name="polite", timeout=0.01)
    async def polite() -> None:
        await asyncio.sleep(PATIENCE)

    @tool(name="rude", timeout=0.01)
    async def rude() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            raise RuntimeError("aborted") from None

    @tool(name="stubborn", timeout=0.01)
    async def stubborn() -> int:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            return 5
        return 6

    with gateway(polite, rude, stubborn) as at, at.run(agent="bot") as run:
        assert isinstance(asyncio.run(run.aattempt("polite")), Ambiguous)
        assert isinstance(asyncio.run(run.aattempt("rude")), Ambiguous)
        late = asyncio.run(run.aattempt("stubborn"))
        assert isinstance(late, Completed)
        assert late.value == 5
        assert held(at, run) == 0


# -- contexts ---------------------------------------------------------------------------------------------------------------


@tool(name="inner", effect="read")
def inner(x: int) -> int:
    return x * 2


@tool(name="timed.inner", effect="read", timeout=30)
def timed_inner(x: int) -> int:
    return x * 2


@tool(name="async.inner", effect="read")
async def async_inner(x: int) -> int:
    return x * 2


@tool(name="outer", effect="read")
def outer(x: int) -> int:
    return inner(x) + timed_inner(x)


@tool(name="timed.outer", effect="read", timeout=30)
def timed_outer(x: int) -> int:
    return inner(x) + timed_inner(x)


@tool(name="async.outer", effect="read", timeout=30)
async def async_outer(x: int) -> int:
    return inner(x) + await async_inner(x)


@pytest.mark.parametrize("name", ["outer", "timed.outer"])
def test_a_body_finds_its_run_and_calls_governed_functions(attempt: Callable[..., Any], name: str) -> None:
    with gateway(inner, timed_inner, outer, timed_outer) as at, at.run(agent="bot") as run:
        outcome = attempt(run, name, {"x": 3})
        assert isinstance(outcome, Completed), outcome
        assert outcome.value == 12
        assert calls(at, run) == ["succeeded"] * 3


def test_an_async_body_finds_its_run() -> None:
    async def main() -> None:
        async with gateway(inner, async_inner, async_outer) as at, at.run(agent="bot") as run:
            assert await run.acall("async.outer", {"x": 3}) == 12
            assert await async_outer(3) == 12
            assert calls(at, run) == ["succeeded"] * 6

    asyncio.run(main())


def test_a_sync_gateway_works_inside_a_running_loop() -> None:
    async def main() -> None:
        with gateway(inner, timed_inner, outer) as at, at.run(agent="bot") as run:
            assert outer(3) == 12
            assert run.call("timed.inner", {"x": 1}) == 2

    asyncio.run(main())


def test_what_a_body_in_a_thread_does_to_the_context_stays_there(attempt: Callable[..., Any]) -> None:
    mark = contextvars.ContextVar("mark", default="clean")

    @tool(name="spoil", effect="read", timeout=30)
    def spoil() -> None:
        mark.set("spoiled")
        CURRENT.set(None)

    with gateway(spoil) as at, at.run(agent="bot") as run:
        attempt(run, "spoil")
        assert mark.get() == "clean"
        assert CURRENT.get() is run


def test_an_inline_body_runs_in_the_thread_of_its_caller(attempt: Callable[..., Any]) -> None:
    seen: list[int] = []

    @tool(name="do", effect="pure", inline=True)
    def do() -> None:
        seen.append(threading.get_ident())

    with gateway(do) as at, at.run(agent="bot") as run:
        attempt(run, "do")
    assert seen == [threading.get_ident()]


def test_a_sync_body_does_not_hold_up_the_loop() -> None:
    gate = Gate()

    @tool(name="do", effect="read")
    def do() -> int:
        gate.wait()
        return 5

    async def main() -> None:
        async with gateway(do) as at, at.run(agent="bot") as run:
            task = asyncio.create_task(run.acall("do"))
            while not gate.inside.is_set():
                await asyncio.sleep(0)
            gate.opened.set()
            assert await task == 5

    asyncio.run(main())


def test_calls_of_a_tool_with_a_breaker_run_at_the_same_time() -> None:
    """pybreaker's own ``call`` would hold its lock while the body runs."""
    together = threading.Barrier(32)

    @tool(name="do", effect="read", breaker=3)
    def do() -> None:
        together.wait(PATIENCE)

    with gateway(do) as at, at.run(agent="bot") as run:
        outcomes: list[Any] = []
        threads = [threading.Thread(target=lambda: outcomes.append(run.attempt("do"))) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(outcomes) == 32
        assert all(isinstance(outcome, Completed) for outcome in outcomes)


# -- ends of all kinds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StopIteration, GeneratorExit, StopAsyncIteration])
@pytest.mark.parametrize("settings", [{}, {"timeout": 30}, {"inline": True, "effect": "pure"}])
def test_a_body_that_raises_what_ends_generators_has_failed(
    attempt: Callable[..., Any], kind: type[BaseException], settings: dict[str, Any]
) -> None:
    @tool(name="do", **settings)
    def do() -> None:
        raise kind

    with gateway(do) as at, at.run(agent="bot") as run:
        assert isinstance(attempt(run, "do"), Failed)
        assert held(at, run) == 0


def test_a_keyboard_interrupt_in_a_body_settles_the_call() -> None:
    @tool(name="do", timeout=30)
    def do() -> None:
        raise KeyboardInterrupt

    @tool(name="plain")
    def plain() -> None:
        raise KeyboardInterrupt

    with gateway(do, plain) as at, at.run(agent="bot") as run:
        for name in ("do", "plain"):
            with pytest.raises(KeyboardInterrupt):
                run.attempt(name)
        assert calls(at, run) == ["ambiguous", "ambiguous"]
        assert held(at, run) == 0


def interrupting(gate: Gate, where: str) -> Any:
    """Send the main thread a signal, as Ctrl-C does, once a body is inside the gate and the main thread is in
    the function ``where``."""
    main = threading.main_thread().ident or 0

    def there() -> bool:
        frame = sys._current_frames().get(main)
        while frame is not None and frame.f_code.co_name != where:
            frame = frame.f_back
        return frame is not None

    def send() -> None:
        assert gate.inside.wait(PATIENCE)
        # A signal that comes just before a thread begins to wait does not wake it: be sure that it waits.
        seen: list[bool] = []
        until(lambda: seen.append(there()) is None and len(seen) > 30 and all(seen[-30:]))
        signal.pthread_kill(main, signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    return sender


@pytest.mark.parametrize("where", ["result", "submit"])
def test_ctrl_c_while_a_body_runs_in_a_thread_settles_now_and_records_its_end_later(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    @tool(name="do", timeout=30)
    def do() -> int:
        gate.wait()
        return 5

    real = Workers.submit

    def submit(*args: Any) -> Any:
        real(*args)
        threading.Event().wait(PATIENCE)  # interrupted before it answers

    if where == "submit":
        monkeypatch.setattr(Workers, "submit", submit)
    with gateway(do) as at, at.run(agent="bot") as run:
        sender = interrupting(gate, where)
        with pytest.raises(KeyboardInterrupt):
            run.attempt("do")
        sender.join(PATIENCE)
        assert calls(at, run) == ["ambiguous"]
        monkeypatch.undo()
        gate.opened.set()
        until(lambda: calls(at, run) == ["succeeded"])


def test_ctrl_c_while_a_body_waits_for_a_worker_is_a_refusal_that_costs_nothing() -> None:
    gate, began = Gate(), threading.Event()

    @tool(name="do", timeout=30)
    def do() -> None:
        began.set()

    with gateway(do, max_workers=1) as at, at.run(agent="bot") as run:
        at._ports.workers.submit(gate.wait)
        sender = interrupting(gate, "result")
        with pytest.raises(KeyboardInterrupt):
            run.attempt("do")
        sender.join(PATIENCE)
        assert calls(at, run) == ["refused"]
        gate.opened.set()
        at._ports.workers.submit(lambda: None).result(PATIENCE)
        assert not began.is_set()


def test_without_threads_nothing_runs(attempt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    @tool(name="do", timeout=30)
    def do() -> None:
        raise AssertionError

    def no_threads(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with gateway(do) as at, at.run(agent="bot") as run, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_threads)
        outcome = attempt(run, "do")
        assert isinstance(outcome, Refused)
        assert outcome.reason is StopReason.CONCURRENCY
        assert held(at, run) == 0


def test_a_coroutine_that_is_closed_leaves_no_warning_and_a_call_for_its_lease() -> None:
    """As at the end of a loop that was stopped: coroutines are dropped where they stand."""
    gate = Gate()

    @tool(name="do")
    def do() -> int:
        gate.wait()
        return 5

    @tool(name="ado")
    async def ado() -> None:
        await asyncio.sleep(PATIENCE)

    at = gateway(do, ado)
    run = at.run(agent="bot").open()

    async def main() -> list[Any]:
        begun = []
        for name in ("do", "ado"):
            coroutine = run.aattempt(name)
            coroutine.send(None)  # up to where it waits
            begun.append(coroutine)
        return begun

    loop = asyncio.new_event_loop()
    begun = loop.run_until_complete(main())
    assert gate.inside.wait(PATIENCE)
    for coroutine in begun:
        coroutine.close()
    loop.close()
    del begun, coroutine
    gc.collect()
    assert calls(at, run) == ["running", "running"]
    gate.opened.set()
    until(lambda: "succeeded" in calls(at, run))  # the thread's end is known all the same
    at.close()


# -- probes -----------------------------------------------------------------------------------------------------------------


def lost(probe: Any) -> Any:
    @tool(name="do", timeout=0.01, probe=probe)
    def do(x: int = 1) -> int:
        gate.wait()
        return x

    gate = Gate()
    return do, gate


def sync_probe(x: int, context: CallContext) -> ProbeResult:
    return ProbeResult("completed", x + len(context.idempotency_key) * 0)


async def async_probe(context: CallContext, **everything: Any) -> ProbeResult:
    await asyncio.sleep(0)
    return ProbeResult("completed", everything["x"] + (context.call_id == "c") * 10)


def no_idea() -> None:
    return None


def odd() -> Any:
    return "yes"


@pytest.mark.parametrize(
    ("probe", "colour", "value"),
    [
        (sync_probe, "blocking", 7),
        (sync_probe, "awaiting", 7),
        (async_probe, "awaiting", 17),
        (async_probe, "blocking", None),  # cannot be asked, so it has found out nothing
        (no_idea, "blocking", None),
        (odd, "blocking", None),
        (odd, "awaiting", None),
    ],
)
def test_a_probe_is_asked_with_the_arguments_it_names(probe: Any, colour: str, value: int | None) -> None:
    do, gate = lost(probe)
    with gateway(do) as at, at.run(agent="bot") as run:

        def call() -> Any:
            if colour == "blocking":
                return run.attempt("do", {"x": 7}, call_id="c")
            return asyncio.run(run.aattempt("do", {"x": 7}, call_id="c"))

        assert isinstance(call(), Ambiguous)
        outcome = call()
        if value is None:
            assert isinstance(outcome, Ambiguous)
        else:
            assert isinstance(outcome, Completed)
            assert outcome.value == value
        gate.opened.set()


def test_a_tool_without_a_probe_has_found_out_nothing() -> None:
    from agentguard._drive.ports import ask_probe
    from agentguard._flow.effects import Probe

    assert ask_probe(Probe(inner.tool, {}, Context(None, "", ""))) is None  # type: ignore[arg-type]


def test_a_probe_of_a_body_with_a_context_gets_it_under_its_name() -> None:
    from agentguard._drive.ports import ask_probe
    from agentguard._flow.effects import Probe

    @tool(name="do", probe=lambda me: me)
    def do(me: CallContext) -> None: ...

    context = Context(None, "", "")  # type: ignore[arg-type]
    assert ask_probe(Probe(do.tool, {}, context)) is context


# -- drivers ----------------------------------------------------------------------------------------------------------------


def test_an_effect_that_no_driver_knows_is_an_error() -> None:
    with gateway() as at:
        with pytest.raises(TypeError, match="no driver for Effect"):
            perform(Effect(), at._ports, Abandoned())
        with pytest.raises(TypeError, match="no driver for Effect"):
            asyncio.run(aperform(Effect(), at._ports, Abandoned()))


def test_pauses_between_attempts_are_real(attempt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    @tool(name="do", effect="read", retry={"attempts": 2, "wait": 0.001, "jitter": 0})
    def do() -> int:
        tries.append(1)
        if len(tries) < 2:
            raise OSError("no")
        return 5

    slept: list[float] = []
    monkeypatch.setattr(blocking.time, "sleep", slept.append)
    with gateway(do) as at, at.run(agent="bot") as run:
        outcome = attempt(run, "do")
        assert isinstance(outcome, Completed)
        assert outcome.attempts == 2
    assert slept in ([], [0.001])


# -- labels -----------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_given_the_result_of_another_run_carries_its_labels(attempt: Callable[..., Any]) -> None:
    @tool(name="do", effect="idempotent", idempotency_key=["x"], output_labels=["pii"])
    def do(x: int) -> int:
        return x

    with gateway(do) as at:
        with at.run(agent="bot") as first:
            attempt(first, "do", {"x": 1})
        with at.run(agent="bot") as second:
            outcome = attempt(second, "do", {"x": 1})
            assert isinstance(outcome, Completed)
            assert outcome.replayed
            assert second.labels == ("pii",)
        found = at.store.perform(GetRun("default", second.run_id))
        assert found is not None
        assert found.labels == ("pii",)
