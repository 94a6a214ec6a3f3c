"""The page: everything that happens to a call, in order.

1 resolve, 2 decide, 3 begin (one store transaction), 4 execute, 5 finish (one store transaction). What must
stay true: the tool's body is reached only after ``Begin`` answered ``Proceed``; every ``Proceed`` is settled
once, whatever happens in between; whatever goes wrong before the body runs ends in a refusal, and nothing that
goes wrong afterwards does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from agentguard._flow.effects import DRAW, Ask, Flow, Interrupted, Probe
from agentguard._flow.execute import execute
from agentguard._flow.refusing import name_of, refused, tell_sinks, text_of, turn_down
from agentguard._flow.rulebook import House, Job, ToolPlan, quick_fingerprint
from agentguard._flow.shaping import shape
from agentguard.approval.binding import canonical_arguments
from agentguard.domain.calls import Ambiguous, CallRecord, Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.constructing import maker
from agentguard.domain.context import CallContext
from agentguard.domain.decisions import NO_OBLIGATIONS, ApprovalTerms, Decision, StopReason
from agentguard.domain.events import Event
from agentguard.domain.operations import (
    Admission,
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
from agentguard.policy.obliging import Unenforceable, apply
from agentguard.resilience.keys import fingerprint, idempotency_call_key
from agentguard.resilience.sandboxing import refuse as unenforceable
from agentguard.tools.schema import ArgumentsInvalid

if TYPE_CHECKING:
    from agentguard.domain.plans import ToolSpec
    from agentguard.tools.schema import Validated
    from agentguard.tools.tool import Tool

_NO_TERMS = ApprovalTerms()
_begin, _event = maker(Begin), maker(Event)

_ROUNDS = 8
"""Times that one call may be decided anew (labels moved, approval edited, lost call resolved) before it is refused."""

_INTERRUPTED = "An earlier attempt of this action was interrupted and may have taken effect. It was not repeated."
_NOT_KEPT = "This action has been carried out before, and its result was not kept. It was not repeated."


def govern(house: House, job: Job) -> Flow[Outcome]:
    """Carry one proposed call from proposal to outcome.

    Raises nothing but what the driver throws for cancellation: every refusal and failure is an
    :data:`~agentguard.domain.calls.Outcome`.
    """
    try:
        known = house.plans.get(job.tool)
        if known is None or job.expected is not None or (known.tool.is_async and job.colour == "blocking"):
            found = _look(house, job, known)
            if isinstance(found, Refused):
                return (yield from turn_down(house, job, found))
            known = found
        tool = known.tool
        try:
            good = tool.validate(job.arguments)
        except ArgumentsInvalid as error:
            return (yield from turn_down(house, job, _invalid(job, error)))
        spec = tool.spec
        run = job.run
        context = run.context
        job.key, print_, chosen = _key(job, tool, good)
        job.ids = (("call", job.call_id), ("key", job.key))
        edit_of: str | None = None
        asked = job.arguments  # replaced by what an approver makes of them
        for _ in range(_ROUNDS):
            labels, version = run.seen
            job.decision = decision = house.rules.decide(spec.name, good.effective, context, labels, job.now_ns)
            ready = good
            if decision.verdict != "allow" or decision.obligations is not NO_OBLIGATIONS or known.sandboxed:
                obliged = _oblige(job, known, good, decision)
                if isinstance(obliged, Refused):
                    return (yield from turn_down(house, job, obliged, audited=spec.audit))
                ready = obliged
            given = to_json(ready.effective)
            job.arguments_json = house.recordable(given) if house.redactor is not None or house.secrets else given
            demand = None
            if edit_of is not None or (decision.verdict != "allow" and not decision.allowed):
                demand = ApprovalDemand(
                    terms=decision.approval if decision.approval is not None else _NO_TERMS,
                    arguments=ready.effective,
                    proposed=_proposed(job.arguments, good) if edit_of is None else good.effective,
                    canonical=canonical_arguments(ready.effective, spec.cosmetic_args),
                    tool_digest=spec.digest,
                    risk=spec.risk,
                    effect=spec.effect,
                    rules=tuple(map(str, decision.rules)),
                    reasons=decision.reasons,
                    id=f"ap_{(yield from DRAW)}",
                    nonce=(yield from DRAW),
                )
            begin = _begin(
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
                version if decision.stateful else None,
                run.meters,
                known.reserve,
                known.lease_ns,
                spec.concurrency,
                demand,
                run.max_repeats if run.max_repeats is not None else house.max_repeats,
                _intent(house, job, spec, decision) if spec.audit else None,
                known.rerun,
                edit_of,
                spec.output_labels,
            )
            try:
                admission: Admission = yield begin
            except Interrupted as stop:
                if isinstance(stop.answer, Proceed):
                    yield from execute(house, job, known, ready, decision, stop.answer, None, stop)
                raise
            match admission:
                case Proceed():
                    job.seq = admission.seq
                    job.approval_id = admission.approval_id
                    demanded = None if demand is None else demand.canonical
                    outcome = yield from execute(house, job, known, ready, decision, admission, demanded)
                    if spec.fallback is None:
                        return outcome
                    return (yield from _fall_back(house, job, spec, asked, chosen, outcome))
                case Replayed(call, records):
                    yield from tell_sinks(house, records)
                    outcome = _replay(house, job, tool, decision, call)
                    return (yield from _fall_back(house, job, spec, asked, chosen, outcome))
                case Turned():
                    yield from tell_sinks(house, admission.records)
                    refusal = refused(
                        job,
                        admission.reason,
                        admission.detail,
                        retryable=admission.retryable,
                        message=_declined(admission),
                        code=_TURNED.get(admission.reason, "AG620"),
                    )
                    return (yield from turn_down(house, job, refusal, audited=spec.audit))
                case Waiting(request, records, _):
                    job.approval_id = request.id
                    yield from tell_sinks(house, records)
                    if not house.has_approver:
                        return Suspended(request, decision, job.call_id)
                    try:
                        verdict = yield from Ask(request)
                        if verdict is None:
                            return Suspended(request, decision, job.call_id)
                        voted = yield from Vote(request.id, verdict, context.tenant)
                    except StoreError:
                        raise
                    except Exception as error:
                        return _unanswered(house, job, request.id, error)
                    if voted.status == "pending":
                        return Suspended(voted, decision, job.call_id)
                    if voted.decided_at is not None:  # a person takes time, and the policy may know office hours
                        job.now_ns = max(job.now_ns, voted.decided_at)
                case Edited(request):
                    edit_of = request.id
                    asked = request.edited or {}
                    try:
                        good = tool.validate(asked)
                    except ArgumentsInvalid as error:
                        return (yield from turn_down(house, job, _invalid(job, error), audited=spec.audit))
                case Moved(labels, moved):
                    run.learn(labels, moved)
                case Unresolved(call, records):
                    yield from tell_sinks(house, records)
                    if not (yield from _probe(house, job, tool, ready, decision, call)):
                        return Ambiguous(call, _INTERRUPTED, decision, job.call_id)
        detail = f"The call was decided {_ROUNDS} times and the run kept changing; try again."
        refusal = refused(job, StopReason.INTERNAL_ERROR, detail, retryable=True, code="AG678")
        return (yield from turn_down(house, job, refusal, audited=spec.audit))
    except StoreError as error:
        detail = house.clean(f"The store does not answer: {text_of(error)}")
        return refused(job, StopReason.STORE_UNAVAILABLE, detail, retryable=True, code="AG670")
    except Exception as error:
        # Anything unforeseen inside the gateway is a refusal, never an ungoverned call.
        detail = f"The call could not be checked: {name_of(error)}: {text_of(error)}"
        return (yield from turn_down(house, job, refused(job, StopReason.INTERNAL_ERROR, detail, code="AG679")))


def _look(house: House, job: Job, known: ToolPlan | None) -> ToolPlan | Refused:
    """The tool that is meant, or why there is none, or not this one, or not for this caller."""
    if known is None:
        changed = house.locked_out.get(job.tool) if isinstance(job.tool, str) else None
        if changed is not None:
            return refused(job, StopReason.DEFINITION_CHANGED, changed, code="AG605")
        hint = house.registry.did_you_mean(job.tool) if isinstance(job.tool, str) else ""
        detail = f"No tool {job.tool!r:.140} is registered{f'; {hint}' if hint else ''}."
        return refused(job, StopReason.UNKNOWN_TOOL, detail, code="AG601")
    tool = known.tool
    if job.expected is not None and not tool.is_same(job.expected):
        detail = f"The tool registered as {job.tool} is another function than the one that was called."
        return refused(job, StopReason.UNKNOWN_TOOL, detail, code="AG602")
    if tool.is_async and job.colour == "blocking":
        detail = f"{job.tool} is an async tool; call it with acall/aattempt (await) instead of call/attempt."
        return refused(job, StopReason.ASYNC_TOOL, detail, code="AG603")
    return known


def _invalid(job: Job, error: ArgumentsInvalid) -> Refused:
    message = f"The arguments do not fit the tool's schema and nothing was done: {error.message}"[:500]
    detail = f"Invalid arguments for {job.tool}: {error.detail}"
    return refused(job, StopReason.INVALID_ARGUMENTS, detail, message=message, code="AG604")


def _oblige(job: Job, known: ToolPlan, good: Validated, decision: Decision) -> Validated | Refused:
    """The arguments as the obligations of a decision leave them, or why the call cannot go on."""
    if decision.verdict != "allow" and not decision.allowed and decision.verdict != "require_approval":
        detail = "; ".join(decision.reasons) or "No rule allows this call."
        return refused(job, StopReason.POLICY_DENIED, detail, message=decision.message, code="AG610")
    obligations = decision.obligations
    cannot = unenforceable(known.tool.spec, obligations)
    if cannot is not None:
        return refused(job, StopReason.UNENFORCEABLE, cannot, code="AG611")
    if obligations.changes_arguments:
        try:
            return known.tool.validate(apply(obligations, good.effective))
        except (ArgumentsInvalid, Unenforceable) as error:
            detail = f"An obligation of the policy leaves arguments that {job.tool} does not accept: {error}"
            return refused(job, StopReason.POLICY_DENIED, detail, code="AG612")
    return good


def _key(job: Job, tool: Tool, good: Validated) -> tuple[str, str, str | None]:
    """Store key, fingerprint and idempotency key. The fingerprint is empty when no other call can have the same key."""
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
        return key, quick_fingerprint(tool.spec.name, good.effective, fingerprint), chosen
    key = f"{run.prefix}{len(job.call_id)}:{job.call_id}"
    if job.explicit or run.max_repeats is not None:
        return key, quick_fingerprint(tool.spec.name, good.effective, fingerprint), None
    return key, "", None


def _proposed(arguments: Mapping[str, Any], good: Validated) -> Mapping[str, Any]:
    """What the caller asked for as JSON; Python callers may pass values that only their effective form can show."""
    try:
        given = from_json(to_json(arguments))
    except Exception:
        return good.effective
    return given if isinstance(given, dict) else good.effective


def _unanswered(house: House, job: Job, approval_id: str, error: Exception) -> Refused:
    """The approver was asked and gave no answer that counts; the request is still there for somebody else."""
    if isinstance(error, ApprovalError):
        detail, code = f"The approver's answer to {approval_id} does not count: {text_of(error)}", error.code
    else:
        detail = f"The approver failed ({name_of(error)}: {text_of(error)}); {approval_id} is still pending."
        code = "AG682"
    return refused(job, StopReason.APPROVAL_PENDING, house.clean(detail), retryable=True, code=code)


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


def _intent(house: House, job: Job, spec: ToolSpec, decision: Decision) -> Event:
    known = job.run.intents.get(spec.name)
    if known is not None and known[0] is decision:
        facts = known[1]
    else:
        context = job.run.context
        facts = {
            "agent": context.agent,
            "decision": decision.verdict,
            "effect": spec.effect,
            "environment": context.environment,
            "mode": decision.mode,
            "policy": decision.policy_digest,
            "rule": decision.rule_id,
            "tool": spec.name,
            "tool_digest": spec.digest,
            "tool_version": spec.version,
            "user": context.user,
        }
        # Decisions that need no explaining are made once per policy, so the same one comes again and again.
        job.run.intents[spec.name] = (decision, facts)
    body = b'{"arguments":' + job.arguments_json + b"}" if house.keep_bodies else b""
    return _event("call.intent", facts, body, job.ids)


def _probe(house: House, job: Job, tool: Tool, ready: Validated, decision: Decision, call: CallRecord) -> Flow[bool]:
    """Ask the tool's probe about a lost call; ``False`` when nobody knows more than before.

    What it found is stored, and the next ``Begin`` answers with it: the probed result takes the same way as any
    other remembered one.
    """
    if tool.probe is None:
        return False
    context = job.run.context
    try:
        # Arguments of its own: what the probe does to them must not reach the body.
        kwargs = tool.validate(ready.effective).kwargs
        found = yield from Probe(tool, kwargs, CallContext(context, job.call_id, call.key))
        if found is None:
            return False
        if found.state == "absent":
            resolve = ResolveCall(context.tenant, call.key, "refused", None, "probe", "the probe found no effect")
        elif found.state == "completed":
            output = tool.check_output(found.value)
            stored = shape(house, decision, output.value, output.json).stored
            resolve = ResolveCall(context.tenant, call.key, "succeeded", stored, "probe", "the probe found the effect")
        else:
            return False
        yield from resolve
    except StoreConflict:
        return True  # somebody resolved it at the same time: look again
    except Exception:  # a probe that fails, or whose finding cannot be kept, has found out nothing
        return False
    return True


def _replay(house: House, job: Job, tool: Tool, decision: Decision, call: CallRecord) -> Outcome:
    """The remembered outcome of an earlier call with the same key, as the policy of now shows it."""
    kept = _kept(call.outcome)
    if call.status == "succeeded":
        if "value" not in kept:
            detail = "The call has run before; its result was not kept."
            return refused(job, StopReason.IDEMPOTENCY_CONFLICT, detail, message=_NOT_KEPT, code="AG627")
        stored = to_json(kept["value"])
        value = kept["value"] if kept.get("redacted") else tool.revive(stored.decode())
        job.run.gain(tool.spec.output_labels)
        shown = shape(house, decision, value, stored)
        return Completed(shown.value, replayed=True, decision=None, call_id=job.call_id, attempts=0)
    if call.status != "failed":
        raise ValueError(f"a call that is {call.status} cannot be replayed")
    try:
        reason = StopReason(str(kept.get("reason")))
    except ValueError:
        reason = StopReason.TOOL_ERROR
    text = house.clean(f"{kept.get('type', 'Exception')}: {kept.get('message', '')}")
    return Failed(RuntimeError(text), reason, str(kept.get("model", "The tool failed.")), True, None, job.call_id, 0)


def _kept(text: str | None) -> dict[str, Any]:
    """A stored outcome; what cannot be read was not kept."""
    try:
        kept = from_json(text) if text else {}
    except ValueError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _fall_back(
    house: House, job: Job, spec: ToolSpec, asked: Mapping[str, Any], chosen: str | None, outcome: Outcome
) -> Flow[Outcome]:
    """Call the fallback tool, as a governed call of its own, when the tool is known not to have delivered.

    Its call id follows from the first one, and its idempotency key is that of the first one unless it declares
    its own, so the same call again finds what the fallback answered.
    """
    name = spec.fallback
    failed = isinstance(outcome, Failed) and outcome.reason is not StopReason.INVALID_OUTPUT
    resting = isinstance(outcome, Refused) and outcome.reason is StopReason.CIRCUIT_OPEN
    if name is None or not (failed or resting) or name in (*job.fallback_of, spec.name):
        return outcome
    stand_in = house.plans.get(name)
    if job.idempotency_key is None and stand_in is not None and stand_in.tool.spec.idempotency_key is not None:
        chosen = None
    second = replace(
        job,
        tool=name,
        arguments=asked,
        call_id=_fallback_id(job.call_id, name),
        expected=None,
        idempotency_key=chosen,
        fallback_of=(*job.fallback_of, spec.name),
    )
    answer: Outcome = yield from govern(house, second)
    if isinstance(answer, Completed):
        note = f"{spec.name} failed; {name} answered in its place"
        return replace(answer, warnings=(*answer.warnings, note))
    # The first failure says more than the fallback's refusal; a pending approval must be seen, though.
    return answer if isinstance(answer, (Suspended, Ambiguous)) else outcome


def _fallback_id(call_id: str, name: str) -> str:
    """The id of a fallback's call: within the grammar of ids, the same every time, and no other call's."""
    plain = f"{call_id}/fallback/{name}"
    if len(plain) <= 128:
        return plain
    return f"{call_id[:50]}/fallback/{hashlib.sha256(plain.encode()).hexdigest()}"
