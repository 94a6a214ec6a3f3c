"""The awaiting driver: carries out a flow in the event loop, without ever blocking it.

Cancellation can arrive at every ``await``. What must stay true: the rest of an interrupted flow runs in a
task of its own, out of reach of the canceller; a store operation that was on its way is never forgotten,
its answer is waited for; no body starts after the cancellation; a secret that a provider is about to hand
out is given back.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from agentguard._drive.blocking import Abandoned, Taken, give_back, not_released
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
from agentguard.domain.operations import Append, Begin, Effect, Finish, Operation
from agentguard.protocols import CredentialRequest

log = logging.getLogger("agentguard")


async def adrive(flow: Flow[R], ports: Ports) -> R:
    """Carry out ``flow`` to its end and return its result; see :func:`agentguard._drive.blocking.drive`."""
    perform_stored = ports.store.perform if ports.instant else None
    left = Abandoned()
    try:
        effect = next(flow)
        while True:
            pending: asyncio.Task[Any] | None = None
            try:
                if isinstance(effect, Operation):
                    if perform_stored is not None:
                        answer = perform_stored(effect)
                    else:
                        pending = asyncio.ensure_future(ports.store.aperform(effect))
                        answer = await asyncio.shield(pending)
                elif type(effect) is Invoke and effect.timeout_s is None and effect.tool.is_async:
                    answer = await invoke(effect)
                else:
                    answer = await aperform(effect, ports, left)
            except Exception as error:
                effect = flow.throw(error)
            except GeneratorExit:
                raise  # the loop is gone; leases end what was begun
            except BaseException as error:
                rest = ports.detach(_rest(flow, effect, pending, error, left, ports))
                # A second cancellation ends this wait, never the rest itself.
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(rest)
                if isinstance(error, Interrupted) and error.__cause__ is not None:
                    raise error.__cause__ from None  # only the flow wanted to know more
                raise
            else:
                effect = flow.send(answer)
    except StopIteration as stop:
        if left:
            left.watch(ports)
        result: R = stop.value
        return result
    except GeneratorExit:
        left.watch(ports)
        raise


async def _rest(
    flow: Flow[Any],
    effect: Effect[Any],
    pending: asyncio.Task[Any] | None,
    error: BaseException,
    left: Abandoned,
    ports: Ports,
) -> None:
    """Drive an interrupted flow to its end: settle, release, record; start nothing."""
    try:
        effect = flow.throw(error if pending is None else await _met(effect, pending, error))
        while True:
            try:
                if isinstance(effect, (Finish, Append)):
                    answer = await ports.store.aperform(effect)
                elif isinstance(effect, (Publish, Release, Draw, Tick)):
                    answer = await aperform(effect, ports, left)
                else:
                    raise error
            except BaseException as failure:
                effect = flow.throw(failure)
            else:
                effect = flow.send(answer)
    except StopIteration:
        return
    except BaseException as failure:
        if failure is error or isinstance(failure, (Interrupted, asyncio.CancelledError)):
            return
        log.error("an interrupted call could not be settled; its lease will end it: %s", name_of(failure))
        if not isinstance(failure, Exception):
            raise
    finally:
        left.watch(ports)


async def _met(effect: Effect[Any], pending: asyncio.Task[Any], error: BaseException) -> BaseException:
    """What an interrupted flow is told about the operation that was on its way."""
    while True:
        try:
            answer = await asyncio.shield(pending)
        except Exception as failure:
            return failure
        except asyncio.CancelledError:
            if pending.done():
                return error  # the operation's own task was cancelled, at the end of the loop: nobody knows
        else:
            return Interrupted(answer) if isinstance(effect, (Begin, Finish)) else error


async def aperform(effect: Effect[Any], ports: Ports, left: Abandoned) -> Any:
    """Answer one effect that is no store operation."""
    match effect:
        case Invoke():
            return await _invoke(effect, ports, left)
        case Sleep(seconds):
            return await asyncio.sleep(seconds)
        case Publish(records):
            return await ports.apublish(records)
        case Lease(requests):
            return await _lease(requests, ports)
        case Release(leased):
            leased.credentials.close()
            return await asyncio.shield(ports.detach(_give_back(leased.secrets, ports)))
        case Ask(request):
            approver = ports.approver
            return None if approver is None else await _either(approver.decide, (request,), ports)
        case Probe():
            return probed(await _either(ask_probe, (effect,), ports, is_async=effect.tool.probe_is_async))
        case Draw():
            return draw()
        case Tick():
            return ports.clock.monotonic()
        case _:
            raise TypeError(f"no driver for {type(effect).__name__}")


async def _either(call: Any, arguments: tuple[Any, ...], ports: Ports, *, is_async: bool | None = None) -> Any:
    """Await an async part; run a sync one in a thread, since it may wait for a person or a network."""
    if is_async if is_async is not None else inspect.iscoroutinefunction(call):
        return await call(*arguments)
    answer = await asyncio.wrap_future(ports.attendants.submit(lambda: call(*arguments)))
    return await answer if inspect.isawaitable(answer) else answer


async def _invoke(effect: Invoke, ports: Ports, left: Abandoned) -> Any:
    limit = effect.timeout_s
    if effect.tool.awaits:
        if limit is None:
            return await invoke(effect, awaiting=True)
        patience = asyncio.timeout(limit)
        try:
            async with patience:
                return await invoke(effect, awaiting=True)
        except Exception:
            if patience.expired():  # whatever a body makes of being cut off, it was cut off
                raise TimedOut(limit, abandoned=False) from None
            raise
    if effect.tool.spec.inline:
        return invoke(effect)
    future = ports.workers.submit(lambda: invoke(effect))
    waiting = asyncio.wrap_future(future)
    patience = asyncio.timeout(limit)
    try:
        # shield: cancelling the waiter would otherwise cancel a body that has not begun without telling us.
        async with patience:
            return await asyncio.shield(waiting)
    except TimeoutError:
        if limit is None or not patience.expired():
            raise  # the body's own
        _let_go(waiting)
        if future.cancel():
            raise NotStarted(f"no worker was free within {limit:g} s") from None
        left.add(effect, future)
        raise TimedOut(limit, abandoned=True) from None
    except Exception:
        raise  # the body's own
    except BaseException as stop:
        _let_go(waiting)
        if not future.cancel():
            left.add(effect, future)
            raise
        if isinstance(stop, GeneratorExit):
            raise
        raise Interrupted(NotStarted("cancelled before a worker was free")) from stop


def _let_go(waiting: asyncio.Future[Any]) -> None:
    """Nobody waits any more: what the abandoned body still raises must not be reported as never retrieved."""
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _lease(requests: tuple[CredentialRequest, ...], ports: Ports) -> Leased:
    taken: list[Taken] = []
    try:
        for request in requests:
            secret = await _lease_one(ports.credentials.lease, request, ports)
            taken.append((request, secret))
            ports.learn(request, secret)
        return Leased(ports.held(taken), tuple(taken))
    except GeneratorExit:
        give_back(tuple(taken), ports)  # there is no loop any more to wait in
        raise
    except BaseException:
        await asyncio.shield(ports.detach(_give_back(tuple(taken), ports)))
        raise


async def _lease_one(lease: Callable[[CredentialRequest], Any], request: CredentialRequest, ports: Ports) -> Any:
    if inspect.iscoroutinefunction(lease):
        return await lease(request)
    future = ports.attendants.submit(lambda: lease(request))
    waiting = asyncio.wrap_future(future)
    try:
        secret = await asyncio.shield(waiting)
    except BaseException:
        _let_go(waiting)
        if not future.cancel():
            future.add_done_callback(lambda done: ports.attendants.submit(partial(_return_late, request, done, ports)))
        raise
    return await secret if inspect.isawaitable(secret) else secret


def _return_late(request: CredentialRequest, done: Future[Any], ports: Ports) -> None:
    """A provider hands out a secret for a call that was cancelled meanwhile: it goes straight back."""
    if done.exception() is not None:
        return
    secret = done.result()
    if inspect.iscoroutine(secret):
        secret.close()
    else:
        give_back(((request, secret),), ports)


async def _give_back(secrets: tuple[Taken, ...], ports: Ports) -> None:
    for request, secret in secrets:
        try:
            await _either(ports.credentials.release, (request, secret), ports)
        except Exception as error:
            not_released(request, error)
