"""The blocking driver: carries out a flow in the caller's own thread."""

from __future__ import annotations

import inspect
import logging
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any

from agentguard._drive.ports import Ports, ask_probe, draw, invoke, probed
from agentguard._flow.effects import (
    Ask,
    Draw,
    Flow,
    Interrupted,
    Invoke,
    Lease,
    Leased,
    NotStarted,
    Probe,
    Publish,
    R,
    Release,
    Sleep,
    Tick,
    TimedOut,
)
from agentguard._flow.refusing import name_of
from agentguard.domain.operations import Effect, Operation
from agentguard.errors import ConfigurationError
from agentguard.protocols import CredentialRequest

log = logging.getLogger("agentguard")

LONGEST_S = 10_000_000.0
"""Threads cannot wait for much longer; a limit beyond it is none."""

Taken = tuple[CredentialRequest, str]


class Abandoned(list[tuple[Invoke, Future[Any]]]):
    """Bodies that were given up while they ran, to be watched once the flow has ended: what becomes of them can
    only be said after what became of the call."""

    __slots__ = ()

    def add(self, effect: Invoke, future: Future[Any]) -> None:
        """Nobody waits for this one any more."""
        self.append((effect, future))

    def watch(self, ports: Ports) -> None:
        """Record what becomes of them, in a thread that nobody waits for."""
        for effect, future in self:
            future.add_done_callback(partial(_hand_over, effect, ports))
        self.clear()


def _hand_over(effect: Invoke, ports: Ports, done: Future[Any]) -> None:
    ports.attendants.submit(partial(_record_late, effect, done, ports))


def _record_late(effect: Invoke, done: Future[Any], ports: Ports) -> None:
    error = done.exception()
    if effect.late is None or (error is not None and not isinstance(error, Exception)):
        return
    try:
        drive(effect.late(None if error is not None else done.result(), error), ports)
    except Exception as failure:
        log.error("the late end of %s could not be recorded: %s", effect.tool.spec.name, name_of(failure))


def drive(flow: Flow[R], ports: Ports) -> R:
    """Carry out ``flow`` to its end and return its result.

    An exception of the world goes into the flow, which decides what it means. ``KeyboardInterrupt`` and its
    like go in too: the flow settles what was begun and lets them out again.
    """
    perform_stored = ports.store.perform
    left = Abandoned()
    try:
        effect = next(flow)
        while True:
            try:
                if isinstance(effect, Operation):
                    answer = perform_stored(effect)
                elif type(effect) is Invoke and effect.timeout_s is None:
                    answer = invoke(effect)
                else:
                    answer = perform(effect, ports, left)
            except BaseException as error:
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as stop:
        result: R = stop.value
        return result
    except Interrupted as stop:
        raise _original(stop) from None
    finally:
        if left:
            left.watch(ports)


def _original(stop: BaseException) -> BaseException:
    """What interrupted the caller; :class:`Interrupted` only tells the flow what it met."""
    return stop.__cause__ if isinstance(stop, Interrupted) and stop.__cause__ is not None else stop


def perform(effect: Effect[Any], ports: Ports, left: Abandoned) -> Any:
    """Answer one effect that is no store operation."""
    match effect:
        case Invoke():
            return _invoke(effect, ports, left)
        case Sleep(seconds):
            return time.sleep(seconds)
        case Publish(records):
            return ports.publish(records)
        case Lease(requests):
            return _lease(requests, ports)
        case Release(leased):
            leased.credentials.close()
            return give_back(leased.secrets, ports)
        case Ask(request):
            return None if ports.approver is None else _sync(ports.approver.decide(request), "approver")
        case Probe():
            return probed(_sync(ask_probe(effect), "probe"))
        case Draw():
            return draw()
        case Tick():
            return ports.clock.monotonic()
        case _:
            raise TypeError(f"no driver for {type(effect).__name__}")


def _sync(answer: Any, what: str) -> Any:
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigurationError(
            f"AG130 the {what} is async; make the call from async code with acall or aattempt.", code="AG130"
        )
    return answer


def _invoke(effect: Invoke, ports: Ports, left: Abandoned) -> Any:
    limit = effect.timeout_s
    if limit is None or effect.tool.spec.inline:
        return invoke(effect)
    future: Future[Any] = Future()
    try:
        ports.workers.submit(lambda: invoke(effect), future)
        return future.result(min(limit, LONGEST_S))
    except FutureTimeout:
        if future.done():
            return future.result()  # the body's own TimeoutError, or an answer in the last moment
        if future.cancel():
            raise NotStarted(f"no worker was free within {limit:g} s") from None
        left.add(effect, future)
        raise TimedOut(limit, abandoned=True) from None
    except Exception:
        raise  # the body's own
    except BaseException as stop:
        if future.cancel():
            raise Interrupted(NotStarted("interrupted before a worker was free")) from stop
        left.add(effect, future)  # the caller was interrupted; the body goes on
        raise


def _lease(requests: tuple[CredentialRequest, ...], ports: Ports) -> Leased:
    taken: list[Taken] = []
    try:
        for request in requests:
            secret: Any = _sync(ports.credentials.lease(request), "credential provider")
            taken.append((request, secret))
            ports.learn(request, secret)
        return Leased(ports.held(taken), tuple(taken))
    except BaseException:
        give_back(tuple(taken), ports)
        raise


def give_back(secrets: tuple[Taken, ...], ports: Ports) -> None:
    """Give secrets back to a provider that answers without being awaited; all of them, whatever it raises."""
    stopped: BaseException | None = None
    for request, secret in secrets:
        try:
            _sync(ports.credentials.release(request, secret), "credential provider")
        except Exception as error:
            not_released(request, error)
        except BaseException as stop:
            stopped = stop
    if stopped is not None:
        raise stopped


def not_released(request: CredentialRequest, error: Exception) -> None:
    """The call has ended; a provider that cannot take a secret back is its owner's concern."""
    log.warning("credential %s was not released: %s", request.name, name_of(error))
