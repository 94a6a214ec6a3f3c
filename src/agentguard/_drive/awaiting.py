"""The awaiting driver: carries out a flow in the event loop, without ever blocking it.

Cancellation can arrive at every ``await``. What must stay true: the rest of an interrupted flow runs in a
task of its own, out of reach of the canceller; a store operation that was on its way is never forgotten,
its answer is waited for; no body starts after the cancellation.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import suppress
from typing import Any

from agentguard._drive.blocking import watch
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
from agentguard.domain.operations import Append, Begin, Effect, Finish, Operation

log = logging.getLogger("agentguard")


async def adrive(flow: Flow[R], ports: Ports) -> R:
    """Carry out ``flow`` to its end and return its result; see :func:`agentguard._drive.blocking.drive`."""
    perform_stored = ports.store.perform if ports.instant else None
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
                else:
                    answer = await aperform(effect, ports)
            except Exception as error:
                effect = flow.throw(error)
            except GeneratorExit:
                raise  # the loop is gone; leases end what was begun
            except BaseException as error:
                rest = ports.detach(_rest(flow, effect, pending, error, ports))
                # A second cancellation ends this wait, never the rest itself.
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(rest)
                raise
            else:
                effect = flow.send(answer)
    except StopIteration as stop:
        result: R = stop.value
        return result


async def _rest(
    flow: Flow[Any], effect: Effect[Any], pending: asyncio.Future[Any] | None, error: BaseException, ports: Ports
) -> None:
    """Drive an interrupted flow to its end: settle, release, record; start nothing."""
    try:
        if pending is not None:
            try:
                answer = await pending
            except Exception as failure:
                effect = flow.throw(failure)
            else:
                effect = flow.throw(Interrupted(answer) if isinstance(effect, (Begin, Finish)) else error)
        else:
            effect = flow.throw(error)
        while True:
            try:
                if isinstance(effect, (Finish, Append)):
                    answer = await ports.store.aperform(effect)
                elif isinstance(effect, (Publish, Release, Draw, Tick)):
                    answer = await aperform(effect, ports)
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
        log.error("an interrupted call could not be settled; its lease will end it: %s", type(failure).__name__)


async def aperform(effect: Effect[Any], ports: Ports) -> Any:
    """Answer one effect that is no store operation."""
    match effect:
        case Invoke():
            return await _invoke(effect, ports)
        case Sleep(seconds):
            return await asyncio.sleep(seconds)
        case Publish(records):
            return await ports.apublish(records)
        case Lease(requests):
            return await _lease(requests, ports)
        case Release(leased):
            leased.credentials.close()
            return await _give_back(leased.secrets, ports)
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
    """Await an async part; run a sync one in a worker, since it may wait for a person or a network."""
    if is_async if is_async is not None else inspect.iscoroutinefunction(call):
        return await call(*arguments)
    answer = await asyncio.wrap_future(ports.workers.submit(lambda: call(*arguments)))
    return await answer if inspect.isawaitable(answer) else answer


async def _invoke(effect: Invoke, ports: Ports) -> Any:
    limit = effect.timeout_s
    if effect.tool.is_async:
        if limit is None:
            return await invoke(effect)
        try:
            async with asyncio.timeout(limit) as patience:
                return await invoke(effect)
        except TimeoutError:
            if patience.expired():
                raise TimedOut(limit, abandoned=False) from None
            raise  # the body's own
    if effect.tool.spec.inline:
        return invoke(effect)
    future = ports.workers.submit(lambda: invoke(effect))
    waiting = asyncio.wrap_future(future)
    try:
        # shield: cancelling the waiter would otherwise cancel a body that has not begun without telling us.
        async with asyncio.timeout(limit) as patience:
            return await asyncio.shield(waiting)
    except TimeoutError:
        if not patience.expired():
            raise
        if future.cancel():
            raise NotStarted(f"no worker was free within {limit:g} s") from None
        _let_go(waiting)
        watch(effect, future, ports)
        raise TimedOut(limit or 0.0, abandoned=True) from None
    except asyncio.CancelledError:
        _let_go(waiting)
        if not future.cancel():
            watch(effect, future, ports)
        raise


def _let_go(waiting: asyncio.Future[Any]) -> None:
    """Nobody waits any more: what the abandoned body still raises must not be reported as never retrieved."""
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _lease(requests: tuple[Any, ...], ports: Ports) -> Leased:
    taken: list[tuple[Any, str]] = []
    try:
        for request in requests:
            taken.append((request, await _either(ports.credentials.lease, (request,), ports)))
    except BaseException:
        ports.detach(_give_back(tuple(taken), ports))
        raise
    return Leased(ports.held({request.name: secret for request, secret in taken}), tuple(taken))


async def _give_back(secrets: tuple[tuple[Any, str], ...], ports: Ports) -> None:
    for request, secret in secrets:
        try:
            await _either(ports.credentials.release, (request, secret), ports)
        except Exception as error:  # the call has ended; a provider that cannot take back is its owner's concern
            log.warning("credential %s was not released: %s", request.name, type(error).__name__)
