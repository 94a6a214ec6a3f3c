"""The blocking driver: carries out a flow in the caller's own thread."""

from __future__ import annotations

import inspect
import logging
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from agentguard._drive.ports import Ports, ask_probe, draw, invoke, probed
from agentguard._flow.effects import (
    Ask,
    Draw,
    Flow,
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
from agentguard.domain.operations import Effect, Operation
from agentguard.errors import ConfigurationError

log = logging.getLogger("agentguard")


def drive(flow: Flow[R], ports: Ports) -> R:
    """Carry out ``flow`` to its end and return its result.

    An exception of the world goes into the flow, which decides what it means. ``KeyboardInterrupt`` and its
    like go in too: the flow settles what was begun and lets them out again.
    """
    perform_stored = ports.store.perform
    try:
        effect = next(flow)
        while True:
            try:
                answer = perform_stored(effect) if isinstance(effect, Operation) else perform(effect, ports)
            except BaseException as error:
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as stop:
        result: R = stop.value
        return result


def perform(effect: Effect[Any], ports: Ports) -> Any:
    """Answer one effect that is no store operation."""
    match effect:
        case Invoke():
            return _invoke(effect, ports)
        case Sleep(seconds):
            return time.sleep(seconds)
        case Publish(records):
            return ports.publish(records)
        case Lease(requests):
            return _lease(requests, ports)
        case Release(leased):
            return _release(leased, ports)
        case Ask(request):
            return None if ports.approver is None else _sync(ports.approver.decide(request), "approver", "arun/acall")
        case Probe():
            return probed(_sync(ask_probe(effect), "probe", "acall"))
        case Draw():
            return draw()
        case Tick():
            return ports.clock.monotonic()
        case _:
            raise TypeError(f"no driver for {type(effect).__name__}")


def _sync(answer: Any, what: str, instead: str) -> Any:
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigurationError(f"AG130 the {what} is async; use {instead} in async code.", code="AG130")
    return answer


def _invoke(effect: Invoke, ports: Ports) -> Any:
    limit = effect.timeout_s
    if limit is None or effect.tool.spec.inline:
        return invoke(effect)
    future = ports.workers.submit(lambda: invoke(effect))
    try:
        return future.result(limit)
    except FutureTimeout:
        if future.done():
            return future.result()  # the body's own TimeoutError, or an answer in the last moment
        if future.cancel():
            raise NotStarted(f"no worker was free within {limit:g} s") from None
        watch(effect, future, ports)
        raise TimedOut(limit, abandoned=True) from None


def watch(effect: Invoke, future: Future[Any], ports: Ports) -> None:
    """When an abandoned body ends after all, record it (in the worker, which nobody waits for)."""
    if effect.late is None:
        return
    late = effect.late

    def ended(done: Future[Any]) -> None:
        error = done.exception()
        if error is not None and not isinstance(error, Exception):
            return
        try:
            drive(late(None if error is not None else done.result(), error), ports)
        except Exception as failure:
            log.error("the late end of %s could not be recorded: %s", effect.tool.spec.name, type(failure).__name__)

    future.add_done_callback(ended)


def _lease(requests: tuple[Any, ...], ports: Ports) -> Leased:
    taken: list[tuple[Any, str]] = []
    try:
        for request in requests:
            secret = _sync(ports.credentials.lease(request), "credential provider", "acall")
            taken.append((request, secret))
    except BaseException:
        _give_back(tuple(taken), ports)
        raise
    return Leased(ports.held({request.name: secret for request, secret in taken}), tuple(taken))


def _release(leased: Leased, ports: Ports) -> None:
    leased.credentials.close()
    _give_back(leased.secrets, ports)


def _give_back(secrets: tuple[tuple[Any, str], ...], ports: Ports) -> None:
    for request, secret in secrets:
        try:
            _sync(ports.credentials.release(request, secret), "credential provider", "acall")
        except Exception as error:  # the call has ended; a provider that cannot take back is its owner's concern
            log.warning("credential %s was not released: %s", request.name, type(error).__name__)
