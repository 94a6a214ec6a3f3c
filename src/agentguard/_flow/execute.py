"""Steps 4 and 5 of a call: run the admitted body under its plan, and settle whatever became of it.

What must stay true: exactly one ``Finish`` per ``Proceed``, also when the caller is cancelled at any point;
a body that was started and whose end is unknown is ambiguous, never failed and never repeated unless its
effect class permits it; credentials exist only between ``Lease`` and ``Release``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import from_json, to_json

from agentguard._flow.effects import (
    TICK,
    Flow,
    Interrupted,
    Invoke,
    Lease,
    NotStarted,
    Publish,
    Release,
    Sleep,
    TimedOut,
)
from agentguard._flow.refusing import refused
from agentguard._flow.rulebook import House, Job, ToolPlan
from agentguard.domain.calls import Ambiguous, CallRecord, Completed, Failed, Outcome
from agentguard.domain.context import CallContext
from agentguard.domain.decisions import Decision, StopReason
from agentguard.domain.events import Event, Facts
from agentguard.domain.operations import Finish, Finished, Proceed
from agentguard.domain.usage import NANO, BudgetWarning
from agentguard.errors import SinkError, StoreError
from agentguard.policy.obliging import redact_output
from agentguard.protocols import CredentialRequest
from agentguard.resilience.retrying import Attempts
from agentguard.tools.schema import OutputInvalid

if TYPE_CHECKING:
    from agentguard.resilience.breaking import Ticket
    from agentguard.resilience.credentials import Credentials
    from agentguard.tools.schema import Validated

Status = Literal["succeeded", "failed", "ambiguous", "refused"]


class _Course:
    """How one execution is going: what ``Finish`` will say if it had to be said now."""

    __slots__ = (
        "attempts",
        "body",
        "error",
        "events",
        "labels",
        "outcome",
        "reason",
        "started",
        "status",
        "stored",
        "ticket",
    )

    def __init__(self) -> None:
        self.started = False
        self.attempts = 0
        self.status: Status = "refused"
        self.reason: StopReason | None = StopReason.CANCELLED
        self.stored: str | None = None
        self.body = b""
        self.error: str | None = None
        self.labels: tuple[str, ...] = ()
        self.events: tuple[Event, ...] = ()
        self.outcome: Outcome | None = None
        self.ticket: Ticket | None = None

    def crash(self, job: Job, known: ToolPlan, admission: Proceed, error: Exception) -> None:
        """Something of ours failed: a refusal before the body was started, an ambiguous call after."""
        detail = f"The call could not be carried out: {type(error).__name__}: {error}"
        if not self.started:
            self.reason = StopReason.INTERNAL_ERROR
            self.outcome = refused(job, StopReason.INTERNAL_ERROR, detail, code="AG679")
        elif self.outcome is None:
            self.status, self.reason = "ambiguous", StopReason.INTERNAL_ERROR
            self.lose(job, known, admission, detail)

    def lose(self, job: Job, known: ToolPlan, admission: Proceed, why: str) -> Ambiguous:
        """Nobody knows whether the body took effect."""
        context = job.run.context
        spec = known.tool.spec
        record = CallRecord(
            context.tenant,
            context.run_id,
            job.key,
            job.call_id,
            spec.name,
            "ambiguous",
            "",
            admission.fence,
            spec.effect,
            admission.now,
            admission.now,
        )
        self.outcome = Ambiguous(record, why, job.decision, job.call_id)
        return self.outcome


def abort(job: Job, admission: Proceed, *, started: bool) -> Flow[Finished]:
    """Settle an admitted call whose body will not run: everything is released."""
    course = _Course()
    course.started = started
    return (yield from _finish(job, admission, course, (), audited=admission.seq > 0))


def execute(
    house: House, job: Job, known: ToolPlan, good: Validated, decision: Decision, admission: Proceed
) -> Flow[Outcome]:
    """Run the body of an admitted call, with everything its plan asks for, and settle it."""
    course = _Course()
    stopped: BaseException | None = None
    try:
        yield from _run(house, job, known, good, decision, admission, course)
    except GeneratorExit:
        raise  # nobody drives any more; the lease of the call will end by itself
    except Exception as error:
        course.crash(job, known, admission, error)
    except BaseException as stop:  # cancelled: settle, then let it go on
        stopped = stop
    if course.ticket is not None:
        _judge(course.ticket, course)
    amounts = known.used(course.attempts) if course.started else ()
    try:
        finished = yield from _finish(job, admission, course, amounts, audited=known.tool.spec.audit)
    except StoreError as error:
        if stopped is not None:
            raise stopped from error
        if not course.started:
            raise
        return course.lose(
            job, known, admission, f"The action was carried out or tried, and the store did not take its outcome: {error}"
        )
    if house.has_sinks and finished.records:
        try:
            yield from Publish(finished.records)
        except SinkError:
            pass  # the driver has counted the gap; what happened cannot be refused any more
    if stopped is not None:
        raise stopped
    run = job.run
    run.labels, run.version = finished.labels, finished.version
    outcome = course.outcome
    if outcome is None:
        raise AssertionError("the body ended without an outcome")
    if isinstance(outcome, Completed) and (admission.warnings or finished.warnings):
        notes = map(_warning, (*admission.warnings, *finished.warnings))
        return replace(outcome, warnings=(*outcome.warnings, *notes))
    return outcome


def _run(
    house: House,
    job: Job,
    known: ToolPlan,
    good: Validated,
    decision: Decision,
    admission: Proceed,
    course: _Course,
) -> Flow[None]:
    """Everything between ``Proceed`` and ``Finish``; what became of it is in ``course``."""
    spec = known.tool.spec
    if house.has_sinks and admission.records:
        try:
            yield from Publish(admission.records)
        except SinkError as error:
            course.reason = StopReason.AUDIT_UNAVAILABLE
            course.outcome = refused(job, course.reason, f"A required audit sink failed: {error}", code="AG671")
            return
    if spec.breaker is not None:
        course.ticket = house.breakers.admit(spec.name, spec.breaker)
        if course.ticket is None:
            wait = house.breakers.retry_after(spec.name)
            course.reason = StopReason.CIRCUIT_OPEN
            detail = f"The circuit of {spec.name} is open after repeated failures"
            detail += f"; next try in {wait:.1f} s." if wait is not None else "."
            course.outcome = refused(job, course.reason, detail, code="AG672", retryable=True)
            return
    yield from _leased(house, job, known, good, decision, admission, course)


def _warning(warning: BudgetWarning) -> str:
    share = 100 * warning.used // warning.limit
    return f"budget of {warning.label}: {share} % of {warning.dimension} used"


def _judge(ticket: Ticket, course: _Course) -> None:
    """Tell the breaker: only what the tool itself did counts."""
    if course.status == "succeeded":
        ticket.success()
    elif course.reason in (StopReason.TOOL_ERROR, StopReason.TOOL_TIMEOUT, StopReason.INVALID_OUTPUT):
        ticket.failure(RuntimeError(course.error or course.reason.value))
    else:
        ticket.abandon()


def _leased(
    house: House,
    job: Job,
    known: ToolPlan,
    good: Validated,
    decision: Decision,
    admission: Proceed,
    course: _Course,
) -> Flow[None]:
    spec = known.tool.spec
    if not spec.credentials:
        yield from _attempts(house, job, known, good, decision, admission, course, None)
        return
    context = job.run.context
    requests = tuple(
        CredentialRequest(
            name, spec.name, context.tenant, context.environment, context.agent, context.user, context.run_id
        )
        for name in spec.credentials
    )
    try:
        leased = yield from Lease(requests)
    except Exception as error:
        course.reason = StopReason.CREDENTIALS_UNAVAILABLE
        detail = f"The credentials of {spec.name} could not be leased: {type(error).__name__}: {error}"
        course.outcome = refused(job, course.reason, detail, code="AG673", retryable=True)
        return
    try:
        yield from _attempts(house, job, known, good, decision, admission, course, leased.credentials)
    finally:
        yield from Release(leased)


def _attempts(
    house: House,
    job: Job,
    known: ToolPlan,
    good: Validated,
    decision: Decision,
    admission: Proceed,
    course: _Course,
    credentials: Credentials | None,
) -> Flow[None]:
    """The only loop in the house: invoke, and while the plan says so, wait and invoke again."""
    tool = known.tool
    spec = tool.spec
    late: Callable[[Any, Exception | None], Flow[None]] | None = None
    if spec.timeout_s is not None or admission.deadline_ns is not None or decision.obligations.timeout_s is not None:
        late = partial(_late, house, job, known, decision, admission)
    attempts: Attempts | None = None
    begun = (yield from TICK) if known.attempts > 1 else 0.0
    elapsed = 0.0
    while True:
        now = admission.now + int(elapsed * NANO)
        limit = _patience(spec.timeout_s, decision.obligations.timeout_s, admission.deadline_ns, now)
        if limit is not None and limit <= 0:
            course.reason = StopReason.BUDGET_TIME
            if course.started:
                _fail(house, job, known, TimeoutError("the time of the run is used up"), course, StopReason.TOOL_TIMEOUT)
            else:
                course.outcome = refused(job, StopReason.BUDGET_TIME, "The time of the run is used up.", code="AG629")
            return
        course.attempts += 1
        course.started = True
        course.status, course.reason = "ambiguous", StopReason.CANCELLED  # until the body says otherwise
        context = CallContext(
            job.run.context, job.call_id, job.key, course.attempts, admission.deadline_ns, admission.approval_id
        )
        try:
            value = yield from Invoke(tool, good.kwargs, context, credentials, limit, late)
        except NotStarted as error:
            course.attempts -= 1
            if course.attempts == 0:
                course.started, course.status, course.reason = False, "refused", StopReason.CONCURRENCY
                course.outcome = refused(job, StopReason.CONCURRENCY, str(error), code="AG626", retryable=True)
            else:
                _fail(house, job, known, error, course, StopReason.TOOL_TIMEOUT)
            return
        except Exception as error:
            timed_out = isinstance(error, TimedOut)
            if attempts is None and known.attempts > 1:
                attempts = Attempts(spec.retry)
            # A policy can be stricter than the tool: what it calls irreversible is never repeated.
            pause = None
            if attempts is not None and spec.effect != "irreversible":
                seen: Exception = TimeoutError(str(error)) if timed_out else error
                elapsed = (yield from TICK) - begun
                pause = attempts.after_failure(seen, course.attempts, elapsed)
            if pause is None:
                reason = StopReason.TOOL_TIMEOUT if timed_out else StopReason.TOOL_ERROR
                if timed_out and spec.effect in ("irreversible", "idempotent"):
                    course.status, course.reason, course.error = "ambiguous", reason, "TimedOut"
                    course.lose(
                        job,
                        known,
                        admission,
                        "The action did not finish in time and may have taken effect. It was not repeated.",
                    )
                else:
                    _fail(house, job, known, error, course, reason)
                return
            facts: Facts = {"attempt": course.attempts, "error": type(error).__name__, "step": "retry", "tool": spec.name}
            course.events = (*course.events, Event("step", facts))
            yield from Sleep(pause)
            elapsed += pause
        else:
            _succeed(house, job, known, value, decision, course)
            return


def _late(
    house: House,
    job: Job,
    known: ToolPlan,
    decision: Decision,
    admission: Proceed,
    value: Any,
    error: Exception | None,
) -> Flow[None]:
    """A body that was given up has returned after all: now it is known what became of it."""
    course = _Course()
    course.started = True
    if error is not None:
        _fail(house, job, known, error, course, StopReason.TOOL_ERROR)
    else:
        _succeed(house, job, known, value, decision, course)
    yield from _finish(job, admission, course, (), audited=known.tool.spec.audit)


def _patience(own: float | None, obliged: float | None, deadline_ns: int | None, now: int) -> float | None:
    """Seconds that the caller waits for one attempt: the least of the tool's, the policy's and the run's."""
    limits = [limit for limit in (own, obliged) if limit is not None]
    if deadline_ns is not None:
        limits.append((deadline_ns - now) / NANO)
    return min(limits) if limits else None


def _succeed(house: House, job: Job, known: ToolPlan, value: Any, decision: Decision, course: _Course) -> None:
    tool = known.tool
    try:
        output = tool.check_output(value)
    except OutputInvalid as error:
        _fail(house, job, known, error, course, StopReason.INVALID_OUTPUT)
        return
    value, result = output.value, output.json
    redacted = False
    if decision.obligations.redact_output:
        value = redact_output(decision.obligations.redact_output, from_json(result))
        result, redacted = to_json(value), True
    if house.secrets:
        clean = house.secrets.redact_bytes(result)
        if clean != result:
            value, result, redacted = from_json(clean), clean, True
    course.status, course.reason = "succeeded", None
    course.stored = ('{"redacted":true,"value":' if redacted else '{"value":') + result.decode() + "}"
    course.labels = tool.spec.output_labels
    recorded = result
    if house.redactor is not None:
        try:
            recorded = to_json(house.redactor.redact(from_json(result)))
        except Exception as error:  # withheld from the record; the call itself has happened
            recorded = to_json(f"[withheld: the redactor failed with {type(error).__name__}]")
    job.result_json = recorded
    course.body = b'{"result":' + recorded + b"}" if house.keep_bodies else b""
    notes = decision.obligations.messages
    if tool.spec.deprecated:
        instead = f"; use {tool.spec.replaced_by}" if tool.spec.replaced_by else ""
        notes = (*notes, f"{tool.spec.name} is deprecated{instead}")
    course.outcome = Completed(value, False, decision, job.call_id, course.attempts, notes)


def _fail(
    house: House, job: Job, known: ToolPlan, error: Exception, course: _Course, reason: StopReason
) -> None:
    """The body reported back, and it was no success."""
    course.status, course.reason = "failed", reason
    course.error = type(error).__name__
    text = error.detail if isinstance(error, OutputInvalid) else str(error)
    if house.secrets:
        text = str(house.secrets.redact(text))
        if text != str(error) and not isinstance(error, OutputInvalid):
            error = RuntimeError(f"{type(error).__name__}: {text}")
    message = {
        StopReason.TOOL_TIMEOUT: "The tool did not answer in time.",
        StopReason.INVALID_OUTPUT: "The tool ran, and its answer was not usable.",
    }.get(reason, "The tool failed.")
    kept = {"message": text[:2000], "model": message, "reason": reason.value, "type": course.error}
    course.stored = to_json(kept).decode()
    course.body = to_json({"error": f"{course.error}: {text[:2000]}"}) if house.keep_bodies else b""
    course.outcome = Failed(error, reason, message, False, job.decision, job.call_id, course.attempts)


def _finish(
    job: Job, admission: Proceed, course: _Course, amounts: tuple[tuple[str, int], ...], *, audited: bool
) -> Flow[Finished]:
    context = job.run.context
    event = None
    if audited:
        facts: Facts = {
            "attempts": course.attempts,
            "call": job.call_id,
            "error": course.error,
            "key": job.key,
            "reason": course.reason.value if course.reason is not None else None,
            "status": course.status,
            "tool": job.tool,
        }
        event = Event("call.outcome", facts, course.body)
    operation = Finish(
        context.tenant,
        context.run_id,
        job.key,
        admission.fence,
        course.status,
        amounts,
        course.stored,
        course.labels,
        event,
        course.events,
    )
    try:
        return (yield from operation)
    except Interrupted as stop:
        if isinstance(stop.answer, Finished):
            return stop.answer
        raise
