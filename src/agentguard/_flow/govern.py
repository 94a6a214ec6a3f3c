"""The page: everything that happens to a call, in order.

1 resolve, 2 decide, 3 begin (one store transaction), 4 execute, 5 finish (one store transaction). What must
stay true: the tool's body is reached only after ``Begin`` answered ``Proceed``; every ``Proceed`` is followed
by exactly one ``Finish``, whatever happens in between; whatever goes wrong ends in a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from agentguard._flow.effects import DRAW, Ask, Flow, Interrupted, Probe
from agentguard._flow.execute import abort, execute
from agentguard._flow.refusing import refused
from agentguard._flow.rulebook import House, Job, ToolPlan, quick_fingerprint
from agentguard.approval.binding import canonical_arguments
from agentguard.domain.calls import Ambiguous, Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.context import CallContext
from agentguard.domain.decisions import ApprovalTerms, Decision, StopReason
from agentguard.domain.events import Event
from agentguard.domain.operations import (
    Append,
    ApprovalDemand,
    Begin,
    Edited,
    Moved,
    Proceed,
    Replayed,
    ResolveCall,
    Turned,
    Unresolved,
    Vote,
    Waiting,
)
from agentguard.errors import ApprovalError, StoreConflict, StoreError
from agentguard.policy.obliging import apply
from agentguard.resilience.keys import fingerprint, idempotency_call_key
from agentguard.resilience.sandboxing import refuse as unenforceable
from agentguard.tools.schema import ArgumentsInvalid

if TYPE_CHECKING:
    from agentguard.tools.schema import Validated
    from agentguard.tools.tool import Tool

_NO_TERMS = ApprovalTerms()

_ROUNDS = 8
"""Times that one call may be decided anew (labels moved, approval edited, lost call resolved) before it is refused."""

def govern(house: House, job: Job) -> Flow[Outcome]:
    """Carry one proposed call from proposal to outcome.

    Raises nothing but what the driver throws for cancellation: every refusal and failure is an
    :data:`~agentguard.domain.calls.Outcome`.
    """
    try:
        return (yield from _resolve(house, job))
    except StoreError as error:
        return refused(job, StopReason.STORE_UNAVAILABLE, f"The store does not answer: {error}", retryable=True, code="AG670")
    except Exception as error:
        # Anything unforeseen inside the gateway is a refusal, never an ungoverned call.
        detail = f"The call could not be checked: {type(error).__name__}: {error}"
        return refused(job, StopReason.INTERNAL_ERROR, detail, code="AG679")


def _resolve(house: House, job: Job) -> Flow[Outcome]:
    known = house.plans.get(job.tool)
    if known is None:
        hint = house.registry.did_you_mean(job.tool)
        detail = f"No tool {job.tool!r:.140} is registered{f'; {hint}' if hint else ''}."
        return (yield from turn_down(job, refused(job, StopReason.UNKNOWN_TOOL, detail, code="AG601")))
    tool = known.tool
    if job.expected is not None and not tool.is_same(job.expected):
        detail = f"The tool registered as {job.tool} is another function than the one that was called."
        return (yield from turn_down(job, refused(job, StopReason.UNKNOWN_TOOL, detail, code="AG602")))
    if tool.is_async and job.colour == "blocking":
        detail = f"{job.tool} is an async tool; call it with acall/aattempt (await) instead of call/attempt."
        return (yield from turn_down(job, refused(job, StopReason.ASYNC_TOOL, detail, code="AG603")))
    try:
        good = tool.validate(job.arguments)
    except ArgumentsInvalid as error:
        return (yield from turn_down(job, _invalid(job, error)))
    return (yield from _admit(house, job, known, good))


def _invalid(job: Job, error: ArgumentsInvalid) -> Refused:
    message = f"The arguments do not fit the tool's schema and nothing was done: {error.message}"[:500]
    detail = f"Invalid arguments for {job.tool}: {error.detail}"
    return refused(job, StopReason.INVALID_ARGUMENTS, detail, message=message, code="AG604")


def turn_down(job: Job, refusal: Refused, *, audited: bool = True) -> Flow[Outcome]:
    """Record a refusal in the run's chain and return it. It stays a refusal when recording fails."""
    if not audited:
        return refusal
    decision = refusal.decision
    context = job.run.context
    facts = {
        "agent": context.agent,
        "call": job.call_id,
        "code": refusal.code,
        "decision": decision.verdict if decision else None,
        "environment": context.environment,
        "mode": decision.mode if decision else None,
        "policy": decision.policy_digest if decision else None,
        "reason": refusal.reason.value,
        "retryable": refusal.retryable,
        "rule": decision.rule_id if decision else None,
        "tool": job.tool[:128],
        "user": context.user,
    }
    body = to_json({"arguments": _plain(job.arguments), "detail": refusal.detail}, serialize_unknown=True)
    try:
        appended = yield from Append(context.tenant, context.run_id, Event("call.refused", facts, body))
        job.seq = appended.records[-1].seq
    except StoreError as error:
        return replace(refusal, detail=f"{refusal.detail} (The refusal could not be recorded: {error})")
    return refusal


def _plain(value: Any) -> Any:
    """What was proposed, as far as it can be recorded: anything strange becomes a note of its type."""
    try:
        return from_json(to_json(value))
    except Exception as error:
        return f"[not recordable: {type(error).__name__}]"


def _decide(house: House, job: Job, known: ToolPlan, good: Validated) -> tuple[Decision, Validated] | Refused:
    """The policy's answer, and the arguments as its obligations leave them."""
    run = job.run
    decision = house.rules.decide(known.tool.spec.name, good.effective, run.context, run.labels, job.now_ns)
    job.decision = decision
    if not decision.allowed and decision.verdict == "deny":
        detail = "; ".join(decision.reasons) or "No rule allows this call."
        return refused(job, StopReason.POLICY_DENIED, detail, message=decision.message, code="AG610")
    obligations = decision.obligations
    cannot = unenforceable(known.tool.spec, obligations)
    if cannot is not None:
        return refused(job, StopReason.UNENFORCEABLE, cannot, code="AG611")
    if obligations.changes_arguments:
        try:
            good = known.tool.validate(apply(obligations, good.effective))
        except ArgumentsInvalid as error:
            detail = f"An obligation of the policy leaves arguments that {job.tool} does not accept: {error}"
            return refused(job, StopReason.POLICY_DENIED, detail, code="AG612")
    return decision, good


def _key(house: House, job: Job, tool: Tool, good: Validated) -> tuple[str, str]:
    """Store key and fingerprint. The fingerprint is empty when no other call can have the same key."""
    run = job.run
    declared = tool.spec.idempotency_key
    chosen = job.idempotency_key
    if chosen is None and declared is not None:
        if callable(declared):
            chosen = declared(good.effective)
            if not isinstance(chosen, str) or not chosen:
                raise TypeError(f"idempotency_key of {tool.spec.name} returned {type(chosen).__name__}, not a key")
        else:
            chosen = fingerprint(tool.spec.name, {name: good.effective.get(name) for name in declared})
    if chosen is not None:
        key = idempotency_call_key(run.context.tenant, tool.spec.name, chosen)
        return key, quick_fingerprint(tool.spec.name, good.effective, fingerprint)
    key = f"{run.prefix}{len(job.call_id)}:{job.call_id}"
    limit = run.max_repeats if run.max_repeats is not None else house.max_repeats
    if job.explicit or (limit is not None and run.max_repeats is not None):
        return key, quick_fingerprint(tool.spec.name, good.effective, fingerprint)
    return key, ""


def _admit(house: House, job: Job, known: ToolPlan, good: Validated) -> Flow[Outcome]:
    tool = known.tool
    spec = tool.spec
    run = job.run
    context = run.context
    job.key, print_ = _key(house, job, tool, good)
    edit_of: str | None = None
    for _ in range(_ROUNDS):
        decided = _decide(house, job, known, good)
        if isinstance(decided, Refused):
            return (yield from turn_down(job, decided, audited=spec.audit))
        decision, ready = decided
        arguments_json = to_json(ready.effective)
        if house.secrets:
            arguments_json = house.secrets.redact_bytes(arguments_json)
        if house.redactor is not None:
            arguments_json = to_json(house.redactor.redact(from_json(arguments_json)))
        job.arguments_json = arguments_json
        demand = None
        if edit_of is not None or (decision.verdict == "require_approval" and decision.mode == "enforce"):
            demand = ApprovalDemand(
                terms=decision.approval if decision.approval is not None else _NO_TERMS,
                arguments=ready.effective,
                proposed=job.arguments if edit_of is None else good.effective,
                canonical=canonical_arguments(ready.effective, spec.cosmetic_args),
                tool_digest=spec.digest,
                risk=spec.risk,
                effect=spec.effect,
                rules=tuple(map(str, decision.rules)),
                reasons=decision.reasons,
                id=f"ap_{(yield from DRAW)}",
                nonce=(yield from DRAW),
            )
        begin = Begin(
            context.tenant,
            context.run_id,
            context.agent,
            context.user,
            context.environment,
            job.call_id,
            job.key,
            spec.name,
            spec.effect,
            print_,
            decision.policy_digest,
            run.version if decision.stateful else None,
            run.meters,
            known.reserve,
            known.lease_ns,
            spec.concurrency,
            demand,
            run.max_repeats if run.max_repeats is not None else house.max_repeats,
            _intent(house, job, spec, decision, arguments_json) if spec.audit else None,
            known.rerun,
            edit_of,
        )
        try:
            admission = yield from begin
        except Interrupted as stop:
            if isinstance(stop.answer, Proceed):
                yield from abort(job, stop.answer, started=False)
            raise
        match admission:
            case Proceed():
                job.seq = admission.seq
                job.approval_id = admission.approval_id
                if demand is not None and canonical_arguments(ready.effective, spec.cosmetic_args) != demand.canonical:
                    yield from abort(job, admission, started=False)
                    return refused(job, StopReason.INTERNAL_ERROR, "The arguments changed after approval.", code="AG681")
                outcome = yield from execute(house, job, known, ready, decision, admission)
                return (yield from _fall_back(house, job, known, outcome))
            case Replayed(call, _):
                return _replay(job, tool, call.status, call.outcome)
            case Turned():
                refusal = refused(
                    job,
                    admission.reason,
                    admission.detail,
                    retryable=admission.retryable,
                    message=_declined(admission),
                    code=_TURNED.get(admission.reason, "AG620"),
                )
                return (yield from turn_down(job, refusal, audited=spec.audit))
            case Waiting(request, _, _):
                job.approval_id = request.id
                if not house.has_approver:
                    return Suspended(request, decision, job.call_id)
                try:
                    verdict = yield from Ask(request)
                    if verdict is None:
                        return Suspended(request, decision, job.call_id)
                    voted = yield from Vote(request.id, verdict, context.tenant)
                except ApprovalError as error:
                    detail = f"The approver's answer to {request.id} does not count: {error}"
                    return refused(job, StopReason.APPROVAL_PENDING, detail, retryable=True, code=error.code)
                except StoreError:
                    raise
                except Exception as error:
                    detail = f"The approver failed ({type(error).__name__}: {error}); {request.id} is still pending."
                    return refused(job, StopReason.APPROVAL_PENDING, detail, retryable=True, code="AG682")
                if voted.status == "pending":
                    return Suspended(voted, decision, job.call_id)
            case Edited(request):
                edit_of = request.id
                try:
                    good = tool.validate(request.edited or {})
                except ArgumentsInvalid as error:
                    return (yield from turn_down(job, _invalid(job, error), audited=spec.audit))
            case Moved(labels, version):
                run.labels, run.version = labels, version
            case Unresolved(call, _):
                outcome_of = yield from _probe(job, tool, good, call.key)
                if outcome_of is not None:
                    message = (
                        "An earlier attempt of this action was interrupted and may have taken effect. "
                        "It was not repeated."
                    )
                    if outcome_of == "unknown":
                        return Ambiguous(call, message, decision, job.call_id)
                    return _replay(job, tool, "succeeded", outcome_of)
    detail = f"The call was decided {_ROUNDS} times and the run kept changing; try again."
    return (yield from turn_down(job, refused(job, StopReason.INTERNAL_ERROR, detail, retryable=True, code="AG678")))


_TURNED: Mapping[StopReason, str] = {
    StopReason.APPROVAL_REJECTED: "AG621",
    StopReason.APPROVAL_EXPIRED: "AG622",
    StopReason.KILLED: "AG623",
    StopReason.RUN_ENDED: "AG624",
    StopReason.NO_ACTIVE_RUN: "AG625",
    StopReason.CONCURRENCY: "AG626",
    StopReason.IDEMPOTENCY_CONFLICT: "AG627",
    StopReason.LOOP_DETECTED: "AG628",
    StopReason.BUDGET_TIME: "AG629",
}


def _declined(turned: Turned) -> str:
    """A rejection's reason is a person's word to the model; everything else has a fixed text."""
    if turned.reason is StopReason.APPROVAL_REJECTED and turned.approval is not None and turned.approval.rejection:
        reason = "".join(c if c.isprintable() else " " for c in turned.approval.rejection)
        return f"A person declined this action: {reason}"[:500]
    return ""


def _intent(house: House, job: Job, spec: Any, decision: Decision, arguments_json: bytes) -> Event:
    context = job.run.context
    facts = {
        "agent": context.agent,
        "call": job.call_id,
        "decision": decision.verdict,
        "effect": spec.effect,
        "environment": context.environment,
        "key": job.key,
        "mode": decision.mode,
        "policy": decision.policy_digest,
        "rule": decision.rule_id,
        "tool": spec.name,
        "tool_digest": spec.digest,
        "tool_version": spec.version,
        "user": context.user,
    }
    return Event("call.intent", facts, b'{"arguments":' + arguments_json + b"}" if house.keep_bodies else b"")


def _probe(job: Job, tool: Tool, good: Validated, key: str) -> Flow[str | None]:
    """Ask the tool's probe: the stored outcome when it happened, ``None`` when it may run, else ``unknown``."""
    if tool.probe is None:
        return "unknown"
    context = job.run.context
    try:
        found = yield from Probe(tool, good.kwargs, CallContext(context, job.call_id, key))
    except Exception:  # a probe that fails has found out nothing
        return "unknown"
    if found is None or found.state == "unknown":
        return "unknown"
    try:
        if found.state == "absent":
            yield from ResolveCall(context.tenant, key, "refused", None, "probe", "the probe found no effect")
            return None
        stored = '{"value":' + tool.check_output(found.value).json.decode() + "}"
        yield from ResolveCall(context.tenant, key, "succeeded", stored, "probe", "the probe found the effect")
        return stored
    except StoreConflict:
        return None  # somebody resolved it at the same time: look again


def _replay(job: Job, tool: Tool, status: str, stored: str | None) -> Outcome:
    """The remembered outcome of an earlier call with the same key."""
    job.seq = 0
    kept: dict[str, Any] = from_json(stored) if stored else {}
    if status == "succeeded":
        if "value" not in kept:
            detail = "The call has run before; its result was not kept."
            return refused(job, StopReason.IDEMPOTENCY_CONFLICT, detail, code="AG627")
        value = kept["value"] if kept.get("redacted") else tool.revive(to_json(kept["value"]).decode())
        return Completed(value, replayed=True, decision=None, call_id=job.call_id, attempts=0)
    reason = StopReason(kept.get("reason", StopReason.TOOL_ERROR.value))
    error = RuntimeError(f"{kept.get('type', 'Exception')}: {kept.get('message', '')}")
    return Failed(error, reason, kept.get("model", "The tool failed."), True, None, job.call_id, 0)


def _fall_back(house: House, job: Job, known: ToolPlan, outcome: Outcome) -> Flow[Outcome]:
    """Call the fallback tool, as a governed call of its own, when the tool is known not to have delivered."""
    name = known.tool.spec.fallback
    failed = isinstance(outcome, Failed) and outcome.reason is not StopReason.INVALID_OUTPUT
    resting = isinstance(outcome, Refused) and outcome.reason is StopReason.CIRCUIT_OPEN
    if name is None or not (failed or resting) or name in job.fallback_of:
        return outcome
    second = replace(
        job,
        tool=name,
        call_id=f"{job.call_id}~{name}"[:128],
        expected=None,
        idempotency_key=None,
        decision=None,
        fallback_of=(*job.fallback_of, known.tool.spec.name),
    )
    answer: Outcome = yield from _resolve(house, second)
    if isinstance(answer, Completed):
        note = f"{known.tool.spec.name} failed; {name} answered in its place"
        return replace(answer, warnings=(*answer.warnings, note))
    # The first failure says more than the fallback's refusal; a pending approval must be seen, though.
    return answer if isinstance(answer, (Suspended, Ambiguous)) else outcome


