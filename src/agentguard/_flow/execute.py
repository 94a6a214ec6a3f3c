"""Steps 4 and 5 of a call: run the admitted body under its plan, and settle whatever became of it.

What must stay true: every ``Proceed`` is settled once, also when the caller is cancelled at any point; a body
that was started and whose end is unknown is ambiguous, never failed and never repeated unless its effect class
permits it; nothing that goes wrong after the body was started is reported as "it was not carried out";
credentials exist only between ``Lease`` and ``Release``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from agentguard._flow.effects import (
    TICK,
    Flow,
    Interrupted,
    Invoke,
    Lease,
    Leased,
    NotStarted,
    Publish,
    Release,
    Sleep,
    TimedOut,
)
from agentguard._flow.refusing import name_of, refused, tell_sinks, text_of
from agentguard._flow.rulebook import House, Job, ToolPlan, outcome_facts
from agentguard._flow.shaping import failure, shape
from agentguard.approval.binding import canonical_arguments
from agentguard.domain.calls import Ambiguous, CallRecord, Completed, Failed, Outcome
from agentguard.domain.constructing import maker
from agentguard.domain.context import CallContext
from agentguard.domain.decisions import Decision, StopReason
from agentguard.domain.events import Event, Facts
from agentguard.domain.operations import Finish, Finished, ListSwitches, Proceed
from agentguard.domain.usage import NANO, Amounts, BudgetWarning
from agentguard.errors import ConfigurationError, StoreError
from agentguard.protocols import CredentialRequest
from agentguard.resilience.retrying import Attempts
from agentguard.tools.schema import OutputInvalid

if TYPE_CHECKING:
    from agentguard.domain.plans import ToolSpec
    from agentguard.domain.runs import Switch
    from agentguard.resilience.breaking import Ticket
    from agentguard.resilience.credentials import Credentials
    from agentguard.tools.schema import Validated

_context, _invoke, _completed, _event, _finish = (
    maker(CallContext), maker(Invoke), maker(Completed), maker(Event), maker(Finish)
)  # fmt: skip

Status = Literal["succeeded", "failed", "ambiguous", "refused"]

_UNRECORDED = (
    "The action was carried out or tried, and its outcome could not be recorded. "
    "It may have taken effect and was not repeated."
)
_LATE = "The action did not finish in time and may have taken effect. It was not repeated."
_BROKEN = "Something failed after the action was started. It may have taken effect and was not repeated."


class _Course:
    """How one execution is going: what ``Finish`` will say if it had to be said now."""

    # Defaults of the class, so that making one costs nothing; what happens is set on the instance.
    started: bool = False
    attempts: int = 0
    status: Status = "refused"
    reason: StopReason | None = StopReason.CANCELLED
    stored: str | None = None
    body: bytes = b""
    result: bytes = b""
    error: str | None = None
    labels: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    outcome: Outcome | None = None
    ticket: Ticket | None = None
    uncertain: bool = False
    """An attempt that was given up may still take effect."""
    culprit: bool = True
    """What went wrong is the tool's fault, not that of a short deadline."""

    def unstart(self) -> None:
        """The body did not run after all."""
        self.attempts -= 1
        if self.attempts == 0:
            self.started, self.status = False, "refused"


class _Work(_Course):
    """One admitted call: everything that the steps below need, in one hand."""

    begun: float = 0.0

    def __init__(
        self,
        house: House,
        job: Job,
        known: ToolPlan,
        good: Validated,
        decision: Decision,
        admission: Proceed,
        demanded: bytes | None,
    ) -> None:
        self.house = house
        self.job = job
        self.known = known
        self.good = good
        self.decision = decision
        self.admission = admission
        self.demanded = demanded

    def refuse(self, reason: StopReason, detail: str, code: str, *, retryable: bool = False) -> None:
        """The body will not run."""
        self.reason = reason
        self.outcome = refused(self.job, reason, self.house.clean(detail), code=code, retryable=retryable)

    def lose(self, reason: StopReason | None, error: str, why: str) -> Ambiguous:
        """Nobody knows whether the body took effect."""
        job, spec, admission = self.job, self.known.tool.spec, self.admission
        context = job.run.context
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
        self.status, self.reason, self.error = "ambiguous", reason, error
        self.stored, self.labels = None, ()
        self.outcome = lost = Ambiguous(record, why, job.decision, job.call_id)
        return lost

    def crash(self, error: Exception) -> None:
        """Something of ours failed: a refusal before the body was started, an ambiguous call after."""
        if not self.started:
            detail = f"The call could not be carried out: {name_of(error)}: {text_of(error)}"
            self.refuse(StopReason.INTERNAL_ERROR, detail, "AG679")
        elif self.outcome is None:
            self.lose(StopReason.INTERNAL_ERROR, name_of(error), _BROKEN)

    def blame(self, error: Exception, limit: float | None) -> StopReason:
        """What an attempt that raised has failed of, and whose fault that is."""
        timed_out = isinstance(error, TimedOut)
        # Only the tool's own limit says something about the tool.
        self.culprit = not timed_out or limit == self.known.tool.spec.timeout_s
        self.uncertain = self.uncertain or (timed_out and not self.known.observes)
        return StopReason.TOOL_TIMEOUT if timed_out else StopReason.TOOL_ERROR

    def unavailable(self, error: NotStarted) -> None:
        """There was no worker for the attempt."""
        self.unstart()
        self.culprit = False
        if self.started:
            self.fail(error, StopReason.TOOL_TIMEOUT)
        else:
            self.refuse(StopReason.CONCURRENCY, text_of(error), "AG626", retryable=True)

    def interrupted(self, stop: Interrupted) -> None:
        """The caller was cancelled while the body ran, or before it began."""
        if isinstance(stop.answer, NotStarted):
            self.unstart()

    def invocation(self, credentials: Credentials | None, limit: float | None, deadline: int | None) -> Invoke:
        """The next attempt: the body is about to run, and until it says otherwise nobody knows how it ends."""
        job, tool = self.job, self.known.tool
        self.attempts += 1
        self.started = True
        self.status, self.reason = "ambiguous", StopReason.CANCELLED
        context = _context(job.run.context, job.call_id, job.key, self.attempts, deadline, self.admission.approval_id)
        # A body that runs in the caller's own thread, or is cancelled with it, cannot be given up.
        late = None if tool.is_async or (limit is None and job.colour == "blocking") else partial(_late, self)
        return _invoke(tool, self.good.kwargs, context, credentials, limit, late)

    def judge(self, ticket: Ticket) -> None:
        """Tell the breaker: only what the tool itself did counts."""
        try:
            if self.status == "succeeded":
                ticket.success()
            elif self.culprit and self.reason in (
                StopReason.TOOL_ERROR,
                StopReason.TOOL_TIMEOUT,
                StopReason.INVALID_OUTPUT,
            ):
                ticket.failure(RuntimeError(self.error or "failed"))
            else:
                ticket.abandon()
        except Exception as error:  # bookkeeping must not stand between an effect and its record
            self.events = (*self.events, Event("step", {"error": name_of(error), "step": "breaker"}))

    def unrecorded(self, error: Exception) -> Finished:
        """Nobody took what became of the call."""
        if self.started:
            self.lose(StopReason.STORE_UNAVAILABLE, name_of(error), _UNRECORDED)
        elif self.outcome is None:
            detail = f"Nothing was done, and the store did not take that: {name_of(error)}: {text_of(error)}"
            self.refuse(StopReason.STORE_UNAVAILABLE, detail, "AG670", retryable=True)
        labels, version = self.job.run.seen
        return Finished(False, labels, version)

    def report(self, amounts: Amounts) -> Finish:
        """What the store is told at the end."""
        job = self.job
        context = job.run.context
        event = None
        if self.known.tool.spec.audit:
            if self.status == "succeeded" and self.attempts == 1:
                facts = self.known.succeeded
            else:
                facts = outcome_facts(
                    job.tool,
                    self.attempts,
                    self.error,
                    None if self.reason is None else self.reason.value,
                    self.status,
                )
            event = _event("call.outcome", facts, self.body, job.ids)
        return _finish(
            context.tenant,
            context.run_id,
            job.key,
            self.admission.fence,
            self.status,
            amounts,
            self.stored,
            self.labels,
            event,
            self.events,
        )

    def fail(self, error: Exception, reason: StopReason) -> None:
        """The body reported back and it was no success, or it only observes and was given up."""
        if self.uncertain:
            self.lose(reason, name_of(error), _LATE)
            return
        self.status, self.reason, self.error = "failed", reason, name_of(error)
        told = failure(self.house, self.decision, error, self.error, reason)
        self.stored = told.stored
        self.body = told.body if self.house.keep_bodies else b""
        job = self.job
        self.outcome = Failed(told.error, reason, told.message, False, job.decision, job.call_id, self.attempts)

    def succeed(self, value: Any) -> None:
        """The body returned ``value``."""
        tool, house, decision = self.known.tool, self.house, self.decision
        try:
            output = tool.check_output(value)
        except OutputInvalid as error:
            self.fail(error, StopReason.INVALID_OUTPUT)
            return
        except Exception as error:  # a serializer of the result's own type may raise anything
            detail = f"the result of {tool.spec.name} cannot be read: {name_of(error)}: {text_of(error)}"
            self.fail(OutputInvalid("the result cannot be read", detail), StopReason.INVALID_OUTPUT)
            return
        shaped = shape(house, decision, output.value, output.json)
        self.status, self.reason, self.error = "succeeded", None, None
        self.stored = shaped.stored
        self.labels = tool.spec.output_labels
        self.result = shaped.recorded
        self.body = b'{"result":' + shaped.recorded + b"}" if house.keep_bodies else b""
        notes = decision.obligations.messages
        if tool.spec.deprecated:
            instead = f"; use {tool.spec.replaced_by}" if tool.spec.replaced_by else ""
            notes = (*notes, f"{tool.spec.name} is deprecated{instead}")
        self.outcome = _completed(shaped.value, False, decision, self.job.call_id, self.attempts, notes)


def execute(
    house: House,
    job: Job,
    known: ToolPlan,
    good: Validated,
    decision: Decision,
    admission: Proceed,
    demanded: bytes | None,
    stopped: BaseException | None = None,
) -> Flow[Outcome]:
    """Run the body of an admitted call, with everything its plan asks for, and settle it.

    ``demanded`` are the canonical arguments that were approved, or ``None`` when nobody had to approve. ``stopped``
    has ended the caller already: then the body does not run, and everything is released. Raises nothing but what
    ends the caller: every failure is an outcome.
    """
    work = _Work(house, job, known, good, decision, admission, demanded)
    try:
        if stopped is not None:
            pass
        elif (
            known.plain
            and demanded is None
            and admission.deadline_ns is None
            and not house.has_sinks
            and decision.obligations.timeout_s is None
        ):
            # Nothing that _run looks after is asked for: what is left of it, without its frames.
            try:
                value = yield work.invocation(None, None, None)
            except Interrupted as stop:
                work.interrupted(stop)
                raise
            except NotStarted as error:
                work.unavailable(error)
            except Exception as error:
                work.fail(error, work.blame(error, None))
            else:
                work.succeed(value)
        else:
            yield from _run(work)
    except GeneratorExit:
        raise  # nobody drives any more; the lease of the call will end by itself
    except Exception as error:
        work.crash(error)
    except BaseException as stop:  # cancelled: settle, then let it go on
        stopped = stop
    # Say once what became of the call. When nobody takes it, the outcome says so and nothing is raised.
    if work.ticket is not None:
        work.judge(work.ticket)
    try:
        if not work.started:
            used: Amounts = ()
        else:
            used = known.used(work.attempts) if known.cost_nano else known.reserve
        operation = work.report(used)
        try:
            finished: Finished = yield operation
        except BaseException as stop:
            finished = yield from _said(operation, stop)
    except Exception as error:
        finished = work.unrecorded(error)
    else:
        if finished.labels is not job.run.seen[0] or finished.version != job.run.seen[1]:
            job.run.learn(finished.labels, finished.version)
        if finished.records:
            yield from tell_sinks(house, finished.records)
    if stopped is not None:
        raise stopped
    job.result_json = work.result
    outcome = work.outcome
    if outcome is None:
        outcome = work.lose(StopReason.INTERNAL_ERROR, "", _BROKEN)
    if (admission.warnings or finished.warnings) and isinstance(outcome, Completed):
        notes = map(_warning, (*admission.warnings, *finished.warnings))
        return replace(outcome, warnings=(*outcome.warnings, *notes))
    return outcome


def _warning(warning: BudgetWarning) -> str:
    share = f"{100 * warning.used // warning.limit} %" if warning.limit else "all"
    return f"budget of {warning.label}: {share} of {warning.dimension} used"


def _run(work: _Work) -> Flow[None]:
    """Everything between ``Proceed`` and ``Finish``; what became of it is in the work."""
    house, admission = work.house, work.admission
    spec = work.known.tool.spec
    if work.demanded is not None:
        if canonical_arguments(work.good.effective, spec.cosmetic_args) != work.demanded:
            work.refuse(StopReason.INTERNAL_ERROR, "The arguments changed after approval.", "AG681")
            return
    if work.known.attempts > 1 or admission.deadline_ns is not None:
        work.begun = yield from TICK
    if house.has_sinks and admission.records:
        try:
            yield from Publish(admission.records)
        except Exception as error:
            detail = f"A required audit sink failed: {text_of(error)}"
            work.refuse(StopReason.AUDIT_UNAVAILABLE, detail, "AG671", retryable=True)
            return
    if spec.breaker is not None:
        ticket = work.ticket = house.breakers.admit(spec.name, spec.breaker)
        if ticket is None:
            wait = house.breakers.retry_after(spec.name)
            detail = f"The circuit of {spec.name} is open after repeated failures"
            detail += f"; next try in {wait:.1f} s." if wait is not None else "."
            work.refuse(StopReason.CIRCUIT_OPEN, detail, "AG672", retryable=True)
            return
    if spec.credentials:
        yield from _leased(work, spec)
    else:
        yield from _attempts(work, None)


def _leased(work: _Work, spec: ToolSpec) -> Flow[None]:
    context = work.job.run.context
    requests = tuple(
        CredentialRequest(
            name, spec.name, context.tenant, context.environment, context.agent, context.user, context.run_id
        )
        for name in spec.credentials
    )
    try:
        leased: Leased = yield from Lease(requests)
    except Exception as error:
        # What a provider says may hold a secret that nobody knows yet, so nothing of it goes on; what this library
        # says of it never shows a value.
        why = f": {text_of(error)}" if isinstance(error, ConfigurationError) else "."
        detail = f"The credentials of {spec.name} could not be leased: {name_of(error)}{why}"
        work.refuse(StopReason.CREDENTIALS_UNAVAILABLE, detail, "AG673", retryable=True)
        return
    try:
        yield from _attempts(work, leased.credentials)
    except GeneratorExit:
        leased.credentials.close()  # nobody drives any more, so nothing can be given back; it is of no use though
        raise
    except BaseException:
        yield from Release(leased)
        raise
    yield from Release(leased)


def _attempts(work: _Work, credentials: Credentials | None) -> Flow[None]:
    """The only loop in the house: invoke, and while the plan says so, wait and invoke again."""
    job, known, admission = work.job, work.known, work.admission
    tool, spec, obliged = known.tool, known.tool.spec, work.decision.obligations.timeout_s
    own = spec.timeout_s if obliged is None else obliged if spec.timeout_s is None else min(spec.timeout_s, obliged)
    attempts: Attempts | None = None
    elapsed = 0.0
    if admission.deadline_ns is not None and (credentials is not None or work.house.has_sinks):
        elapsed = (yield from TICK) - work.begun
    while True:
        limit, deadline = own, admission.deadline_ns
        now = admission.now + int(elapsed * NANO)
        if deadline is not None:
            left = (deadline - now) / NANO
            limit = left if limit is None else min(left, limit)
            if left <= 0:
                if work.started:
                    work.culprit = False
                    work.fail(TimeoutError("the time of the run is used up"), StopReason.TOOL_TIMEOUT)
                else:
                    work.refuse(StopReason.BUDGET_TIME, "The time of the run is used up.", "AG629")
                return
        if limit is not None:
            deadline = now + int(limit * NANO)
        try:
            value = yield work.invocation(credentials, limit, deadline)
        except Interrupted as stop:
            work.interrupted(stop)
            raise
        except NotStarted as error:
            work.unavailable(error)
            return
        except Exception as error:
            reason = work.blame(error, limit)
            pause: float | None = None
            if known.attempts > 1 and known.rerun:
                if attempts is None:
                    attempts = Attempts(spec.retry)
                seen: Exception = TimeoutError(str(error)) if reason is StopReason.TOOL_TIMEOUT else error
                elapsed = (yield from TICK) - work.begun
                pause = attempts.after_failure(seen, work.attempts, elapsed)
            if pause is not None:
                facts: Facts = {"attempt": work.attempts, "error": name_of(error), "step": "retry", "tool": spec.name}
                work.events = (*work.events, Event("step", facts))
                yield from Sleep(pause)
                elapsed += pause
                if not (yield from _may_go_on(job, spec)):
                    pause = None
            if pause is None:
                work.fail(error, reason)
                return
            # The body may have changed the lists and objects it was given; what runs again is what was decided.
            work.good = tool.validate(work.good.effective)
        else:
            work.succeed(value)
            return


def _may_go_on(job: Job, spec: ToolSpec) -> Flow[bool]:
    """Whether no kill switch was turned on while a call waited for its next attempt."""
    context = job.run.context
    mine = {
        ("agent", context.agent),
        ("user", context.user),
        ("tool", spec.name),
        ("run", context.run_id),
        ("run", context.parent),
    }
    try:
        switches: tuple[Switch, ...] = yield from ListSwitches(context.tenant)
    except StoreError:
        return False
    return not any(s.scope in ("everything", "tenant") or (s.scope, s.value) in mine for s in switches)


def _late(work: _Work, value: Any, error: Exception | None) -> Flow[None]:
    """A body that was given up has returned after all, when the call had ended: now it may be known what became
    of it. The failure of one of several attempts says nothing about the others."""
    attempts = work.attempts
    if error is not None and attempts > 1:
        return
    again = _Work(work.house, work.job, work.known, work.good, work.decision, work.admission, None)
    again.attempts = attempts
    if error is not None:
        again.fail(error, StopReason.TOOL_ERROR)
    else:
        again.succeed(value)
    # The amounts count only when the call could not be settled when it ended.
    operation = again.report(work.known.used(attempts))
    try:
        finished: Finished = yield operation
    except BaseException as stop:
        finished = yield from _said(operation, stop)
    yield from tell_sinks(work.house, finished.records)


def _said(operation: Finish, error: BaseException) -> Flow[Finished]:
    """What to make of an interruption while the store was told."""
    if isinstance(error, Interrupted) and isinstance(error.answer, Finished):
        return error.answer
    if not isinstance(error, (GeneratorExit, Exception, Interrupted)):
        # Interrupted in the middle of saying it. Nobody knows whether the store heard, and saying it twice
        # changes nothing, so it is said again before the interruption goes on.
        yield from operation
    raise error
