"""Carry out the calls of one model answer: together where nothing speaks against it, answered in order.

What must stay true: every call goes through ``run.attempt`` or ``run.aattempt`` with the provider's id; whatever
goes wrong in here is a refusal of that call, and never another way to run it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from agentguard.adapters._wire import Proposal, result_text, unreadable
from agentguard.domain.calls import Completed, Failed, Outcome, Refused
from agentguard.domain.decisions import StopReason

if TYPE_CHECKING:
    from agentguard.gateway import Run

THREADS: Final = 8
"""Calls of one model answer that run at the same time at most, in sync code."""


def _tool_name(run: Run, wire_name: str) -> str:
    # A hidden tool keeps its name here: the gateway then refuses the call, and the audit trail names the tool.
    found = run._gateway.registry.by_wire_name(wire_name)
    return found.spec.name if found is not None else wire_name


def _lanes(run: Run, proposals: Sequence[Proposal], parallel: bool) -> list[list[int]]:
    """Positions of the calls that run one after another, per lane; lanes run side by side.

    Calls of a tool with a concurrency cap share a lane, so that a batch is not refused because of itself; so do
    calls with the same id.
    """
    if not parallel:
        return [list(range(len(proposals)))] if proposals else []
    lanes: dict[tuple[str, str], list[int]] = {}
    registry = run._gateway.registry
    ids: dict[str, tuple[str, str]] = {}
    for position, found in enumerate(proposals):
        tool = registry.by_wire_name(found.name)
        capped = tool is not None and tool.spec.concurrency is not None
        lane = ids.get(found.call_id) or (("tool", found.name) if capped else ("call", str(position)))
        ids.setdefault(found.call_id, lane)
        lanes.setdefault(lane, []).append(position)
    return list(lanes.values())


def _broken(found: Proposal, error: Exception) -> Refused:
    detail = f"{found.name}: {type(error).__name__}: {error}"
    message = "The action could not be checked. It was not carried out."
    return Refused(StopReason.INTERNAL_ERROR, None, message, False, detail, found.call_id, "AG652")


def _writable(outcome: Outcome) -> Outcome:
    """The outcome, or a failure when its value has no text form."""
    if isinstance(outcome, Completed):
        try:
            result_text(outcome.value)
        except Exception as error:
            message = "The tool ran, but its result cannot be shown."
            return Failed(error, StopReason.INVALID_OUTPUT, message, decision=outcome.decision, call_id=outcome.call_id)
    return outcome


def _call(run: Run, found: Proposal) -> tuple[str, Any]:
    """Tool and arguments for the gateway.

    Arguments that could not be read go there as the text they were: text is no object, so the gateway refuses the
    call, whatever the tool, and records it.
    """
    return _tool_name(run, found.name), found.arguments if found.arguments is not None else found.given


def _judged(found: Proposal, outcome: Outcome) -> Outcome:
    if found.arguments is not None:
        return _writable(outcome)
    if not isinstance(outcome, Refused):
        raise AssertionError("unreadable arguments were not refused")
    return unreadable(found, outcome)


def attempt(run: Run, found: Proposal) -> Outcome:
    """Carry out one proposal."""
    if not found.call_id or not found.name:
        return unreadable(found)
    try:
        name, arguments = _call(run, found)
        return _judged(found, run.attempt(name, arguments, call_id=found.call_id))
    except Exception as error:
        return _broken(found, error)


async def aattempt(run: Run, found: Proposal) -> Outcome:
    """The same for async code."""
    if not found.call_id or not found.name:
        return unreadable(found)
    try:
        name, arguments = _call(run, found)
        return _judged(found, await run.aattempt(name, arguments, call_id=found.call_id))
    except Exception as error:
        return _broken(found, error)


def execute(run: Run, proposals: Sequence[Proposal], *, parallel: bool = True) -> list[Outcome]:
    """Carry out the calls of one model answer; outcomes in the order of the calls.

    Each lane runs in a thread with a copy of the caller's context variables.
    """
    outcomes: dict[int, Outcome] = {}

    def work(lane: list[int]) -> None:
        for position in lane:
            outcomes[position] = attempt(run, proposals[position])

    lanes = _lanes(run, proposals, parallel)
    if len(lanes) <= 1:
        for lane in lanes:
            work(lane)
    else:
        executor = ThreadPoolExecutor(min(len(lanes), THREADS), thread_name_prefix="agentguard-calls")
        try:
            futures = [executor.submit(contextvars.copy_context().run, work, lane) for lane in lanes]
            for future in futures:
                future.result()
        finally:  # interrupted: what has not begun does not begin, what has begun is waited for
            executor.shutdown(wait=True, cancel_futures=True)
    return [outcomes[position] for position in range(len(proposals))]


async def aexecute(run: Run, proposals: Sequence[Proposal], *, parallel: bool = True) -> list[Outcome]:
    """The same for async code, in tasks; cancelling the caller cancels what has not finished."""
    outcomes: dict[int, Outcome] = {}

    async def work(lane: list[int]) -> None:
        for position in lane:
            outcomes[position] = await aattempt(run, proposals[position])

    lanes = _lanes(run, proposals, parallel)
    if len(lanes) <= 1:
        for lane in lanes:
            await work(lane)
    else:
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[Any]] = [group.create_task(work(lane)) for lane in lanes]
        del tasks
    return [outcomes[position] for position in range(len(proposals))]
