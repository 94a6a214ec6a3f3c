"""Threads of the pool: bounded, reused, never in the way."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from agentguard._drive.workers import Workers
from agentguard._flow.effects import NotStarted
from tests.unit.drive.making import PATIENCE, Gate, until


def test_a_job_runs_in_a_daemon_thread_with_the_context_of_its_submitter() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    name.set("ann")
    seen = Workers(1).submit(lambda: (name.get(), threading.current_thread().daemon)).result(PATIENCE)
    assert seen == ("ann", True)


def test_what_a_job_does_to_its_context_stays_there() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    Workers(1).submit(lambda: name.set("eve")).result(PATIENCE)
    assert name.get() == "nobody"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_what_a_job_raises_reaches_its_submitter_and_the_worker_goes_on(error: BaseException) -> None:
    def fail() -> None:
        raise error

    pool = Workers(1)
    with pytest.raises(type(error)):
        pool.submit(fail).result(PATIENCE)
    assert pool.submit(lambda: 5).result(PATIENCE) == 5


@pytest.mark.parametrize("kind", [StopIteration, GeneratorExit])
def test_what_no_coroutine_could_be_told_is_told_as_an_error(kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind

    with pytest.raises(RuntimeError, match=f"raised {kind.__name__}") as told:
        Workers(1).submit(fail).result(PATIENCE)
    assert isinstance(told.value.__cause__, kind)


def test_no_more_threads_than_the_limit_and_the_rest_waits_its_turn() -> None:
    pool, gate = Workers(2), Gate()
    running = [pool.submit(gate.wait) for _ in range(5)]
    until(lambda: sum(future.running() for future in running) == 2)
    assert pool._threads == 2
    gate.opened.set()
    for future in running:
        future.result(PATIENCE)
    assert pool._threads == 2


def test_a_job_that_is_cancelled_in_the_queue_never_begins() -> None:
    pool, gate = Workers(1), Gate()
    first = pool.submit(gate.wait)
    assert gate.inside.wait(PATIENCE)
    began = threading.Event()
    second = pool.submit(began.set)
    assert second.cancel()
    gate.opened.set()
    first.result(PATIENCE)
    pool.submit(lambda: None).result(PATIENCE)
    assert not began.is_set()


def test_a_job_beside_a_busy_worker_gets_one_of_its_own() -> None:
    pool, gate = Workers(2), Gate()
    pool.submit(gate.wait)
    assert gate.inside.wait(PATIENCE)
    assert pool.submit(lambda: 5).result(PATIENCE) == 5
    gate.opened.set()


def test_jobs_that_wait_for_each_other_never_share_a_worker_while_another_may_be_started() -> None:
    """A worker that was given a job and has not woken up yet must not count as free for the next one."""
    for _ in range(100):
        pool, gate = Workers(2), threading.Event()
        pool.submit(lambda: None).result(PATIENCE)  # leaves a worker that is about to be idle
        waits = pool.submit(lambda gate=gate: gate.wait(PATIENCE))  # type: ignore[misc]
        opens = pool.submit(gate.set)
        assert opens.result(PATIENCE) is None
        assert waits.result(PATIENCE)


def test_an_idle_worker_ends_and_a_new_one_is_started_when_needed() -> None:
    pool = Workers(1, idle_s=0.001)
    for _ in range(3):
        assert pool.submit(lambda: 5).result(PATIENCE) == 5
        until(lambda: pool._threads == 0)


def test_a_worker_that_got_no_job_while_one_is_running_elsewhere_stays_for_the_queue() -> None:
    pool, gate = Workers(2, idle_s=0.001), Gate()
    pool.submit(gate.wait)
    pool.submit(lambda: None).result(PATIENCE)
    until(lambda: pool._threads == 1)
    assert pool.submit(lambda: 5).result(PATIENCE) == 5
    gate.opened.set()


def no_threads(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_without_any_thread_a_job_is_refused_and_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, began = Workers(1), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_threads)
        with pytest.raises(NotStarted):
            pool.submit(began.set)
    assert pool.submit(lambda: 5).result(PATIENCE) == 5
    assert not began.is_set()


def test_without_a_further_thread_a_job_waits_for_one_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, gate = Workers(2), Gate()
    pool.submit(gate.wait)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_threads)
        waiting = pool.submit(lambda: 5)
    gate.opened.set()
    assert waiting.result(PATIENCE) == 5


def forked(check: Callable[[], bool]) -> int:
    """Run ``check`` in a forked child; its exit status says how it went."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_has_workers_of_its_own() -> None:
    pool, gate = Workers(1), Gate()
    pool.submit(gate.wait)
    assert gate.inside.wait(PATIENCE)
    with pool._lock:  # at the worst moment
        assert forked(lambda: pool.submit(lambda: 5).result(PATIENCE) == 5) == 0
    gate.opened.set()


def test_a_body_that_never_returns_does_not_keep_the_process_alive() -> None:
    program = """
import threading
from agentguard import Policy, ToolGateway, tool

@tool(name="hang", effect="read", timeout=0.01)
def hang() -> int:
    threading.Event().wait()

with ToolGateway(tools=[hang], policy=Policy(allow={"hang"})) as gateway:
    with gateway.run(agent="bot") as run:
        print(type(run.attempt("hang")).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("Failed\n", "", 0)
