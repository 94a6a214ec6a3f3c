"""What a governed call tells the outside: OpenTelemetry spans and metrics, and structured log records.

What must stay true: OpenTelemetry is never imported here, only used when the host has imported it *and* set a
real provider; without one, and with the logger off, a call costs one look-up. Nothing in here can change an
outcome: whatever telemetry raises is counted (``Telemetry.errors``) and dropped. No ids, principals or
arguments go on metrics. Names follow the GenAI semantic conventions of OpenTelemetry.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeAlias

from agentguard._version import __version__
from agentguard.domain.calls import Ambiguous, Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.context import RunContext
from agentguard.domain.decisions import Decision, StopReason

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

GuardrailSpans: TypeAlias = Literal["off", "non_allow", "always"]

GEN_AI: Final[Mapping[str, str]] = {
    "operation": "gen_ai.operation.name",
    "provider": "gen_ai.provider.name",
    "tool": "gen_ai.tool.name",
    "tool_type": "gen_ai.tool.type",
    "tool_description": "gen_ai.tool.description",
    "call_id": "gen_ai.tool.call.id",
    "arguments": "gen_ai.tool.call.arguments",
    "result": "gen_ai.tool.call.result",
    "agent": "gen_ai.agent.name",
    "agent_id": "gen_ai.agent.id",
    "agent_version": "gen_ai.agent.version",
    "conversation": "gen_ai.conversation.id",
    "request_model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "error": "error.type",
}
"""Attributes of the OpenTelemetry semantic conventions that are used here."""

OURS: Final[Mapping[str, str]] = {
    "run": "agentguard.run.id",
    "decision": "agentguard.decision",
    "policy": "agentguard.policy.digest",
    "rule": "agentguard.rule.id",
    "reason": "agentguard.reason",
    "mode": "agentguard.enforcement.mode",
    "approval": "agentguard.approval.id",
    "approval_state": "agentguard.approval.state",
    "key": "agentguard.call.key",
    "seq": "agentguard.audit.seq",
    "replayed": "agentguard.replayed",
    "tool": "agentguard.tool",
    "dimension": "agentguard.budget.dimension",
    "scope": "agentguard.budget.scope",
    "unit": "agentguard.budget.unit",
    "kind": "openinference.span.kind",
}
"""Attributes of our own, and the one that Phoenix needs to know a guardrail."""

LOGGER: Final = logging.getLogger("agentguard")
LOGGER.addHandler(logging.NullHandler())

_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_MODEL_OPERATIONS: Final = frozenset(("chat", "generate_content", "text_completion"))
_DECISION_BUCKETS: Final = (5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1.0)
_CALL_BUCKETS: Final = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
)


def _shown(name: str) -> str:
    # A model may have made the name up: it must not carry text into span names, metrics or log lines.
    return name if _NAME.fullmatch(name) else "invalid_name"


def _reason(outcome: Outcome) -> StopReason:
    match outcome:
        case Completed():
            return StopReason.COMPLETED
        case Suspended():
            return StopReason.APPROVAL_PENDING
        case Ambiguous():
            return StopReason.AMBIGUOUS
        case Refused() | Failed():
            return outcome.reason


def error_type(outcome: Outcome) -> str | None:
    """The value of ``error.type`` for an outcome, ``None`` when it is no failure (completed, waiting)."""
    reason = _reason(outcome)
    if reason in (StopReason.COMPLETED, StopReason.APPROVAL_PENDING):
        return None
    if reason is StopReason.TOOL_TIMEOUT:
        return "timeout"
    if isinstance(outcome, Failed) and reason is StopReason.TOOL_ERROR:
        return type(outcome.error).__name__
    return "budget_exceeded" if reason.value.startswith("budget_") else reason.value


def _verdict(outcome: Outcome, decision: Decision | None) -> str:
    if decision is not None:
        return decision.verdict
    # Policy was not asked: refused before it, or answered from an earlier call.
    if isinstance(outcome, (Completed, Failed)):
        return "allow"
    return "require_approval" if isinstance(outcome, Suspended) else "deny"


def _enter(telemetry: Telemetry, span: Span | None) -> Any:
    # Makes the span the current one; the answer takes that back.
    try:
        trace = sys.modules["opentelemetry.trace"]
        return sys.modules["opentelemetry.context"].attach(trace.set_span_in_context(span))
    except Exception as problem:
        telemetry.count(problem)
        return None


def _fail(telemetry: Telemetry, span: Span, failure: str) -> None:
    try:
        trace = sys.modules["opentelemetry.trace"]
        span.set_attribute(GEN_AI["error"], failure)
        span.set_status(trace.Status(trace.StatusCode.ERROR, failure))
    except Exception as problem:
        telemetry.count(problem)


def _leave(telemetry: Telemetry, span: Span, token: Any) -> None:
    try:
        if token is not None:
            sys.modules["opentelemetry.context"].detach(token)
        span.end()
    except Exception as problem:
        telemetry.count(problem)


class CallSpan:
    """The telemetry of one governed call: a context manager around it, told the outcome once.

    While entered, its span is the current one, so that spans opened by the tool nest under it. It belongs to
    one thread or task, and is never held across the ``yield`` of a generator.
    """

    idle: ClassVar[bool] = False
    """Nobody listens: there is nothing to tell."""

    __slots__ = (
        "_began", "_call_id", "_context", "_done", "_own", "_span", "_start_ns", "_telemetry", "_token", "_tool", "_tracer",
    )  # fmt: skip

    def __init__(
        self, telemetry: Telemetry, tracer: Tracer | None, tool: str, context: RunContext, call_id: str
    ) -> None:
        self._telemetry = telemetry
        self._tracer = tracer
        self._tool = tool
        self._context = context
        self._call_id = call_id
        self._span: Span | None = None
        self._own = False
        self._token: Any = None
        self._start_ns = 0
        self._began = time.perf_counter()
        self._done = False

    def open(self, attributes: dict[str, Any]) -> None:
        """Prepare the span; called by :meth:`Telemetry.calling`."""
        if self._tracer is None:
            return
        trace = sys.modules["opentelemetry.trace"]
        current = trace.get_current_span()
        self._start_ns = time.time_ns()
        if _is_tool_span(current, self._tool):
            self._span = current
            current.set_attribute(OURS["run"], self._context.run_id)
            return
        self._own = True
        self._span = self._tracer.start_span(
            f"execute_tool {self._tool}", attributes=attributes, start_time=self._start_ns
        )

    def __enter__(self) -> Self:
        if self._own:
            self._token = _enter(self._telemetry, self._span)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        if kind is not None and not self._done:
            _fail(self._telemetry, self._span, kind.__name__)
        if self._own:
            _leave(self._telemetry, self._span, self._token)

    def finish(
        self,
        outcome: Outcome,
        decision: Decision | None = None,
        *,
        seq: int = 0,
        key: str = "",
        approval_id: str | None = None,
        approval_state: str | None = None,
        mode: str | None = None,
        duration_s: float | None = None,
        decision_s: float | None = None,
        arguments_json: str | None = None,
        result_json: str | None = None,
    ) -> None:
        """Tell what became of the call; later calls do nothing.

        Args:
            outcome: The outcome.
            decision: The policy decision; by default that of the outcome.
            seq: Number of the outcome's audit record, 0 when there is none.
            key: Store key of the call.
            approval_id: Approval it waits for or used.
            approval_state: Status of that approval.
            mode: ``enforce`` or ``observe``; by default that of the decision.
            duration_s: Seconds the call took; by default since this object was made.
            decision_s: Seconds the policy decision took.
            arguments_json: Redacted arguments; used only when the host asked for message content.
            result_json: Redacted result; likewise.
        """
        if self._done:
            return
        self._done = True
        if duration_s is None:
            duration_s = time.perf_counter() - self._began
        decision = decision if decision is not None else outcome.decision
        if isinstance(outcome, Suspended):
            approval_id = approval_id or outcome.request.id
            approval_state = approval_state or outcome.request.status
        reason = _reason(outcome).value
        verdict = _verdict(outcome, decision)
        mode = mode or (decision.mode if decision is not None else None)
        failure = error_type(outcome)
        try:
            if self._span is not None:
                values: dict[str, Any] = {
                    OURS["decision"]: verdict,
                    OURS["policy"]: decision.policy_digest if decision is not None else None,
                    OURS["rule"]: decision.rule_id if decision is not None else None,
                    OURS["reason"]: reason,
                    OURS["mode"]: mode,
                    OURS["approval"]: approval_id,
                    OURS["approval_state"]: approval_state,
                    OURS["key"]: key or None,
                    OURS["seq"]: seq or None,
                    OURS["replayed"]: getattr(outcome, "replayed", False),
                }
                content = {GEN_AI["arguments"]: arguments_json, GEN_AI["result"]: result_json}
                self._write(values, content, failure)
                self._guardrail(verdict, values, decision_s or 0.0)
            telemetry = self._telemetry
            telemetry.measure(self._tool, outcome, decision, verdict, mode, failure, duration_s, decision_s)
            told = telemetry.log_calls if isinstance(outcome, Completed) else telemetry.log_stop_reasons
            if told and LOGGER.isEnabledFor(logging.INFO):
                extra: dict[str, Any] = {
                    "run_id": self._context.run_id,
                    "tenant": self._context.tenant,
                    "agent": self._context.agent,
                    "call_id": self._call_id,
                    "call_key": key,
                    "tool": self._tool,
                    "verdict": verdict,
                    "rule_id": decision.rule_id if decision is not None else None,
                    "mode": mode,
                }
                LOGGER.info("call of %s decided: %s", self._tool, verdict, extra=extra)
                extra |= {
                    "reason": reason,
                    "error_type": failure,
                    "replayed": getattr(outcome, "replayed", False),
                    "audit_seq": seq,
                    "duration_ms": None if duration_s is None else round(duration_s * 1000, 3),
                }
                LOGGER.info("call of %s ended: %s", self._tool, reason, extra=extra)
        except Exception as problem:
            self._telemetry.count(problem)

    def _write(self, values: dict[str, Any], content: dict[str, Any], failure: str | None) -> None:
        span = self._span
        assert span is not None
        span.set_attributes({name: value for name, value in values.items() if value is not None})
        said = {name: value for name, value in content.items() if value is not None}
        if said and "SPAN" in self._telemetry.capture:
            span.set_attributes(said)
        if said and "EVENT" in self._telemetry.capture:
            span.add_event("agentguard.tool.content", said)
        if failure is not None:
            _fail(self._telemetry, span, failure)

    def _guardrail(self, verdict: str, values: dict[str, Any], decision_s: float) -> None:
        setting = self._telemetry.guardrail_spans
        if self._tracer is None or setting == "off" or (setting == "non_allow" and verdict == "allow"):
            return
        trace = sys.modules["opentelemetry.trace"]
        chosen = ("decision", "policy", "rule", "reason", "mode")
        attributes = {OURS[name]: values[OURS[name]] for name in chosen if values[OURS[name]] is not None}
        attributes |= {
            OURS["kind"]: "GUARDRAIL",
            OURS["run"]: self._context.run_id,
            GEN_AI["tool"]: self._tool,
            GEN_AI["agent"]: self._context.agent,
        }
        self._tracer.start_span(
            "run_guardrail agentguard",
            context=trace.set_span_in_context(self._span),
            attributes=attributes,
            start_time=self._start_ns,
        ).end(self._start_ns + int(decision_s * 1e9))


class _Off(CallSpan):
    # Shared by all calls while nobody listens.
    __slots__ = ()
    idle = True

    def __init__(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def finish(self, outcome: Outcome, decision: Decision | None = None, **details: Any) -> None:
        pass


_OFF: Final = _Off()


class ModelSpan:
    """The telemetry of one model call made through a governed client; a context manager."""

    __slots__ = ("_span", "_telemetry", "_token")

    def __init__(self, telemetry: Telemetry, span: Span | None) -> None:
        self._telemetry = telemetry
        self._span = span
        self._token: Any = None

    def __enter__(self) -> Self:
        if self._span is not None:
            self._token = _enter(self._telemetry, self._span)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        if kind is not None:
            _fail(self._telemetry, self._span, kind.__name__)
        _leave(self._telemetry, self._span, self._token)

    def used(self, input_tokens: int | None, output_tokens: int | None, response_model: str | None = None) -> None:
        """Tell what the call used, as far as known."""
        if self._span is None:
            return
        known = {"input_tokens": input_tokens, "output_tokens": output_tokens, "response_model": response_model}
        try:
            self._span.set_attributes({GEN_AI[name]: value for name, value in known.items() if value is not None})
        except Exception as problem:
            self._telemetry.count(problem)


def _attributes(span: Span) -> Mapping[str, Any]:
    # Reading back is a feature of the SDK's spans; others have nothing to compare.
    found = getattr(span, "attributes", None)
    return found if isinstance(found, Mapping) and span.is_recording() else {}


def _is_tool_span(span: Span, tool: str) -> bool:
    # A span that a framework opened for this very call; one that is ours already belongs to an outer call.
    known = _attributes(span)
    return (
        known.get(GEN_AI["tool"]) == tool
        and known.get(GEN_AI["operation"]) == "execute_tool"
        and OURS["run"] not in known
    )


_FROM_ENVIRONMENT: Final = any(
    os.environ.get(name) for name in ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
)


def _global_provider(module: str, slot: str, getter: str) -> Any:
    # The provider that the host has set, or None. The getter looks into the environment each time (1.1 us), so
    # the slot behind it is looked at first; an API that has no such slot is simply asked.
    api = sys.modules.get(module)
    if api is None or (not _FROM_ENVIRONMENT and getattr(api, slot, api) is None):
        return None
    provider = getattr(api, getter)()
    # The API's own providers (proxies, no-ops) do nothing.
    real = not type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))
    return provider if real else None


class Telemetry:
    """Spans, metrics and log records of one gateway; used by the drivers only.

    Args:
        guardrail_spans: When a child span ``run_guardrail agentguard`` is made: ``off``, ``non_allow`` (for
            calls that are not simply allowed) or ``always``.
        tracer_provider: Provider for spans; by default the global one, if a real one is set.
        meter_provider: Provider for metrics; likewise.
        log_calls: Whether calls that completed are logged.
        log_stop_reasons: Whether calls that were refused, suspended, failed or are ambiguous are logged.

    Attributes:
        capture: Value of ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` when the gateway was made:
            ``NO_CONTENT`` (also for anything unknown), ``SPAN_ONLY``, ``EVENT_ONLY`` or ``SPAN_AND_EVENT``.
        errors: How often telemetry itself failed.
    """

    def __init__(
        self,
        *,
        guardrail_spans: GuardrailSpans = "non_allow",
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        log_calls: bool = True,
        log_stop_reasons: bool = True,
    ) -> None:
        if guardrail_spans not in ("off", "non_allow", "always"):
            raise ValueError(f"guardrail_spans is off, non_allow or always, not {guardrail_spans!r}")
        self.guardrail_spans: GuardrailSpans = guardrail_spans
        wanted = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").strip().upper()
        self.capture = wanted if wanted in ("SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT") else "NO_CONTENT"
        self.errors = 0
        self.log_calls = log_calls
        self.log_stop_reasons = log_stop_reasons
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._by_default = tracer_provider is None and meter_provider is None and not _FROM_ENVIRONMENT
        self._tracer: Tracer | None = None
        self._instruments: dict[str, Any] | None = None

    @property
    def listening(self) -> bool:
        """Whether anybody wants to hear of calls: a tracer, a meter, or the log at level INFO."""
        try:
            if self._by_default and self._tracer is None and self._instruments is None:
                # As below, for nobody who has set anything up: this is asked before every call.
                trace = sys.modules.get("opentelemetry.trace")
                if trace is None or getattr(trace, "_TRACER_PROVIDER", trace) is None:
                    metrics = sys.modules.get("opentelemetry.metrics._internal")
                    if metrics is None or getattr(metrics, "_METER_PROVIDER", metrics) is None:
                        return LOGGER.isEnabledFor(logging.INFO)
            return (
                LOGGER.isEnabledFor(logging.INFO)
                or self._find_tracer() is not None
                or self._find_instruments() is not None
            )
        except Exception as problem:
            self.count(problem)
            return False

    @property
    def wants_content(self) -> bool:
        """Whether arguments and results should be handed to :meth:`CallSpan.finish`."""
        return self.capture != "NO_CONTENT" and self._find_tracer() is not None

    def count(self, problem: Exception) -> None:
        """Note that telemetry failed; the call goes on."""
        self.errors += 1
        LOGGER.debug("telemetry failed: %s", type(problem).__name__)

    def _find_tracer(self) -> Tracer | None:
        if self._tracer is None:
            provider = self._tracer_provider
            if provider is None:
                provider = _global_provider("opentelemetry.trace", "_TRACER_PROVIDER", "get_tracer_provider")
                if provider is None:
                    return None
            self._tracer = provider.get_tracer("agentguard", __version__)
        return self._tracer

    def _find_instruments(self) -> dict[str, Any] | None:
        if self._instruments is None:
            provider = self._meter_provider
            if provider is None:
                provider = _global_provider("opentelemetry.metrics._internal", "_METER_PROVIDER", "get_meter_provider")
                if provider is None:
                    return None
            meter = provider.get_meter("agentguard", __version__)
            self._instruments = {
                "call": meter.create_histogram(
                    "gen_ai.execute_tool.duration",
                    "s",
                    "Time a governed tool call took.",
                    explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
                ),
                "decisions": meter.create_counter("agentguard.decisions", "{decision}", "Decisions of the policy."),
                "decision": meter.create_histogram(
                    "agentguard.decision.duration",
                    "s",
                    "Time a policy decision took.",
                    explicit_bucket_boundaries_advisory=_DECISION_BUCKETS,
                ),
                "retries": meter.create_counter("agentguard.retries", "{retry}", "Attempts after the first."),
                "pending": meter.create_up_down_counter(
                    "agentguard.approvals.pending", "{approval}", "Approvals that wait for a person."
                ),
                "approval": meter.create_histogram(
                    "agentguard.approval.duration", "s", "Time from the request of an approval to its end."
                ),
                "cost": meter.create_counter("agentguard.cost", "{USD}", "Money spent."),
                # One name has one unit; a budget may count calls, tokens or dollars, so the unit is an attribute.
                "used": meter.create_gauge("agentguard.budget.used", "1", "Settled and held amount of a budget."),
                "limit": meter.create_gauge("agentguard.budget.limit", "1", "Limit of a budget."),
            }
        return self._instruments

    def calling(
        self,
        tool: str,
        context: RunContext,
        call_id: str,
        description: str = "",
        tool_type: str = "function",
        *,
        agent_id: str | None = None,
        agent_version: str | None = None,
    ) -> CallSpan:
        """The telemetry of one call; use it as ``with telemetry.calling(...) as span: ... span.finish(...)``.

        Args:
            tool: Name as the caller gave it.
            context: Identity of the run.
            call_id: Id of the call.
            description: Description of the tool.
            tool_type: ``function``, ``extension`` or ``datastore``.
            agent_id: Id of the agent where the framework has one.
            agent_version: Version of the agent, likewise.
        """
        try:
            tracer = self._find_tracer()
            if tracer is None and self._find_instruments() is None and not LOGGER.isEnabledFor(logging.INFO):
                return _OFF
            span = CallSpan(self, tracer, _shown(tool), context, call_id)
            if tracer is not None:
                values = {
                    GEN_AI["operation"]: "execute_tool",
                    GEN_AI["tool"]: _shown(tool),
                    GEN_AI["tool_type"]: tool_type,
                    GEN_AI["call_id"]: call_id,
                    GEN_AI["tool_description"]: description or None,
                    GEN_AI["agent"]: context.agent,
                    GEN_AI["agent_id"]: agent_id,
                    GEN_AI["agent_version"]: agent_version,
                    GEN_AI["conversation"]: context.session,
                    OURS["run"]: context.run_id,
                }
                span.open({name: value for name, value in values.items() if value is not None})
            return span
        except Exception as problem:
            self.count(problem)
            return _OFF

    def chatting(self, model: str, context: RunContext, provider: str) -> ModelSpan:
        """The telemetry of one model call: a span ``chat {model}`` unless a framework has opened one.

        Args:
            model: Name of the requested model.
            context: Identity of the run.
            provider: ``openai``, ``anthropic``, ... as in ``gen_ai.provider.name``.
        """
        try:
            tracer = self._find_tracer()
            if tracer is None:
                return ModelSpan(self, None)
            trace = sys.modules["opentelemetry.trace"]
            if _attributes(trace.get_current_span()).get(GEN_AI["operation"]) in _MODEL_OPERATIONS:
                return ModelSpan(self, None)
            values = {
                GEN_AI["operation"]: "chat",
                GEN_AI["provider"]: provider,
                GEN_AI["request_model"]: model,
                GEN_AI["agent"]: context.agent,
                GEN_AI["conversation"]: context.session,
                OURS["run"]: context.run_id,
            }
            attributes = {name: value for name, value in values.items() if value is not None}
            span = tracer.start_span(f"chat {_shown(model)}", kind=trace.SpanKind.CLIENT, attributes=attributes)
            return ModelSpan(self, span)
        except Exception as problem:
            self.count(problem)
            return ModelSpan(self, None)

    def measure(
        self,
        tool: str,
        outcome: Outcome,
        decision: Decision | None,
        verdict: str,
        mode: str | None,
        failure: str | None,
        duration_s: float | None,
        decision_s: float | None,
    ) -> None:
        """Count one call; called by :meth:`CallSpan.finish`."""
        instruments = self._find_instruments()
        if instruments is None:
            return
        if isinstance(outcome, Refused) and outcome.reason is StopReason.UNKNOWN_TOOL:
            tool = "unknown"  # names that a model makes up must not become time series
        counted = {OURS["decision"]: verdict, OURS["tool"]: tool}
        if decision is not None:
            counted |= {OURS["rule"]: decision.rule_id, OURS["mode"]: mode or decision.mode}
        instruments["decisions"].add(1, counted)
        if decision_s is not None:
            instruments["decision"].record(decision_s, {OURS["decision"]: verdict})
        if duration_s is not None:
            timed = {GEN_AI["operation"]: "execute_tool", GEN_AI["tool"]: tool}
            instruments["call"].record(duration_s, timed if failure is None else timed | {GEN_AI["error"]: failure})
        attempts = getattr(outcome, "attempts", 1)
        if attempts > 1 and not getattr(outcome, "replayed", False):
            instruments["retries"].add(attempts - 1, {OURS["tool"]: tool})

    def _emit(self, instrument: str, act: str, value: float, attributes: dict[str, str]) -> None:
        try:
            instruments = self._find_instruments()
            if instruments is not None:
                getattr(instruments[instrument], act)(value, attributes)
        except Exception as problem:
            self.count(problem)

    def approval_requested(self, tool: str) -> None:
        """An approval request was opened."""
        self._emit("pending", "add", 1, {OURS["tool"]: _shown(tool)})

    def approval_ended(self, tool: str, state: str, duration_s: float) -> None:
        """An approval request is no longer pending: its last state, and the seconds since it was opened."""
        self._emit("pending", "add", -1, {OURS["tool"]: _shown(tool)})
        self._emit("approval", "record", duration_s, {OURS["tool"]: _shown(tool), OURS["approval_state"]: state})

    def budget(self, dimension: str, scope: str, used: float, limit: float) -> None:
        """Where a budget stands: amounts in calls or steps, tokens, or US dollars, by kind of scope."""
        unit = "{USD}" if "usd" in dimension else "{token}" if "tokens" in dimension else "{call}"
        where = {OURS["dimension"]: dimension, OURS["scope"]: scope, OURS["unit"]: unit}
        self._emit("used", "set", used, where)
        self._emit("limit", "set", limit, where)

    def cost(self, usd: float, *, tool: str | None = None, model: str | None = None) -> None:
        """Money was spent, in US dollars, on a tool or a model."""
        where = {OURS["tool"]: _shown(tool)} if tool is not None else {}
        if model is not None:
            where[GEN_AI["request_model"]] = _shown(model)
        self._emit("cost", "add", usd, where)


_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Log records as one line of JSON each: ASCII, no control characters, extra fields at the top level.

    Values that are no JSON are given as the name of their type. Nothing is configured by the library::

        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.getLogger("agentguard").addHandler(handler)
        logging.getLogger("agentguard").setLevel(logging.INFO)
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON text without a line break."""
        value: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        value |= {name: item for name, item in vars(record).items() if name not in _STANDARD and name not in value}
        if record.exc_info and record.exc_info[0] is not None:
            value["exception"] = self.formatException(record.exc_info)
        text = json.dumps(value, default=lambda item: f"<{type(item).__name__}>")
        return text.replace("\x7f", "\\u007f")
