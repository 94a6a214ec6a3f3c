"""What a governed call tells the outside, checked against the real SDK and the published conventions."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode

from agentguard import tracing
from agentguard.domain.approvals import ApprovalRequest
from agentguard.domain.calls import Ambiguous, CallRecord, Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.context import RunContext
from agentguard.domain.decisions import ApprovalTerms, Decision, RuleRef, StopReason
from agentguard.tracing import GEN_AI, JsonFormatter, Telemetry, error_type

CONTEXT = RunContext(run_id="run_1", agent="support", tenant="acme", user="ann", session="chat_7")
ALLOW = Decision("allow", (RuleRef("mail-ok"),), policy_digest="d1")
DENY = Decision("deny", (RuleRef("no-mail"),), policy_digest="d1")
ASK = Decision("require_approval", (RuleRef("ask"),), policy_digest="d1", mode="observe")
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

REQUEST = ApprovalRequest(
    id="ap_1", tenant="acme", run_id="run_1", call_key="k", call_id="c1", tool="mail.send", tool_digest="",
    arguments={}, proposed={}, agent="support", user=None, environment="prod", risk="low", effect="read", rules=(),
    reasons=(), policy_digest="d1", budget_effect={}, terms=ApprovalTerms(), nonce="n", digest="x", created_at=1,
    expires_at=2,
)  # fmt: skip
CALL = CallRecord("acme", "run_1", "k", "c1", "mail.send", "ambiguous", "", 1, "irreversible", 0, 0)


def refused(reason: StopReason, decision: Decision | None = None) -> Refused:
    return Refused(reason, decision, "no")


class Recorder:
    """A telemetry with an SDK behind it whose spans and metrics can be read."""

    def __init__(self, **settings: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.telemetry = Telemetry(tracer_provider=self.provider, meter_provider=self.meters, **settings)

    def call(self, outcome: Outcome, decision: Decision | None = None, tool: str = "mail.send", **details: Any) -> None:
        with self.telemetry.calling(tool, CONTEXT, "c1", "Sends mail.") as span:
            span.finish(outcome, decision, **details)
        assert self.telemetry.errors == 0

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        data = self.reader.get_metrics_data()
        out: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points: Any = metric.data.data_points
                    out[metric.name] = [
                        (dict(p.attributes), getattr(p, "value", getattr(p, "sum", None))) for p in points
                    ]
        return out


def span_id(context: SpanContext | None) -> int:
    assert context is not None
    return context.span_id


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def captured() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    logger = logging.getLogger("agentguard")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


# --- names ---------------------------------------------------------------------------------------


def test_attribute_names_are_those_of_the_semantic_conventions() -> None:
    published = {
        value
        for module in (gen_ai_attributes, error_attributes)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    assert set(GEN_AI.values()) <= published


def test_operations_and_providers_are_those_of_the_semantic_conventions() -> None:
    operations = {item.value for item in vars(gen_ai_attributes)["GenAiOperationNameValues"]}
    assert {"execute_tool", "chat"} | tracing._MODEL_OPERATIONS <= operations


# --- spans ---------------------------------------------------------------------------------------


def test_an_allowed_call_is_one_span_with_these_attributes(recorder: Recorder) -> None:
    recorder.call(Completed(1, call_id="c1", decision=ALLOW), seq=4, key="k1", approval_id="ap_1",
                  approval_state="consumed", duration_s=0.5, decision_s=1e-5)  # fmt: skip
    (span,) = recorder.spans
    assert span.name == "execute_tool mail.send"
    assert span.kind is SpanKind.INTERNAL
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "agentguard"
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "mail.send",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "c1",
        "gen_ai.tool.description": "Sends mail.",
        "gen_ai.agent.name": "support",
        "gen_ai.conversation.id": "chat_7",
        "agentguard.run.id": "run_1",
        "agentguard.decision": "allow",
        "agentguard.policy.digest": "d1",
        "agentguard.rule.id": "mail-ok",
        "agentguard.reason": "completed",
        "agentguard.enforcement.mode": "enforce",
        "agentguard.approval.id": "ap_1",
        "agentguard.approval.state": "consumed",
        "agentguard.call.key": "k1",
        "agentguard.audit.seq": 4,
        "agentguard.replayed": False,
    }


OUTCOMES: list[tuple[Outcome, str, str | None]] = [
    (Completed(1), "allow", None),
    (Completed(1, replayed=True), "allow", None),
    (Suspended(REQUEST, ASK), "require_approval", None),
    (Suspended(REQUEST), "require_approval", None),
    (Failed(KeyError("secret"), decision=ALLOW), "allow", "KeyError"),
    (Failed(TimeoutError(), StopReason.TOOL_TIMEOUT), "allow", "timeout"),
    (Failed(ValueError(), StopReason.INVALID_OUTPUT), "allow", "invalid_output"),
    (refused(StopReason.POLICY_DENIED, DENY), "deny", "policy_denied"),
    (refused(StopReason.UNKNOWN_TOOL), "deny", "unknown_tool"),
    (refused(StopReason.BUDGET_COST, ALLOW), "allow", "budget_exceeded"),
    (refused(StopReason.BUDGET_TIME), "deny", "budget_exceeded"),
    (refused(StopReason.APPROVAL_REJECTED, ASK), "require_approval", "approval_rejected"),
    (refused(StopReason.APPROVAL_EXPIRED, ASK), "require_approval", "approval_expired"),
    (refused(StopReason.APPROVAL_PENDING, ASK), "require_approval", None),
    (Ambiguous(CALL), "deny", "ambiguous"),
]


@pytest.mark.parametrize(("outcome", "verdict", "failure"), OUTCOMES)
def test_failures_have_a_type_and_an_error_status_and_waiting_has_not(
    outcome: Outcome, verdict: str, failure: str | None
) -> None:
    recorder = Recorder(guardrail_spans="off")
    recorder.call(outcome)
    (span,) = recorder.spans
    attributes = dict(span.attributes or {})
    assert attributes["agentguard.decision"] == verdict
    assert attributes.get("error.type") == failure == error_type(outcome)
    assert span.status.status_code is (StatusCode.ERROR if failure else StatusCode.UNSET)
    assert "secret" not in span.to_json()


def test_a_suspension_names_its_approval(recorder: Recorder) -> None:
    recorder.call(Suspended(REQUEST, ASK))
    attributes = dict(recorder.spans[-1].attributes or {})
    assert attributes["agentguard.approval.id"] == "ap_1"
    assert attributes["agentguard.approval.state"] == "pending"
    assert attributes["agentguard.enforcement.mode"] == "observe"


def test_agent_id_and_version_are_given_where_known(recorder: Recorder) -> None:
    with recorder.telemetry.calling("t", CONTEXT, "c", agent_id="a7", agent_version="3") as span:
        span.finish(Completed(1))
    attributes = dict(recorder.spans[0].attributes or {})
    assert (attributes["gen_ai.agent.id"], attributes["gen_ai.agent.version"]) == ("a7", "3")


def test_spans_of_the_tool_nest_under_the_call(recorder: Recorder) -> None:
    tracer = recorder.provider.get_tracer("tool")
    before = trace.get_current_span()
    with recorder.telemetry.calling("t", CONTEXT, "c") as span:
        with tracer.start_as_current_span("inside"):
            pass
        span.finish(Completed(1))
    inside, call = recorder.spans
    assert span_id(inside.parent) == span_id(call.context)
    assert trace.get_current_span() is before


def test_calls_in_concurrent_tasks_do_not_nest_under_each_other(recorder: Recorder) -> None:
    async def call(n: int) -> None:
        with recorder.telemetry.calling(f"t{n}", CONTEXT, str(n)) as span:
            await asyncio.sleep(0)
            span.finish(Completed(n))

    async def main() -> None:
        await asyncio.gather(*map(call, range(5)))

    asyncio.run(main())
    assert [span.parent for span in recorder.spans] == [None] * 5


def test_an_exception_that_passes_through_marks_the_span_without_its_words(recorder: Recorder) -> None:
    with pytest.raises(KeyboardInterrupt), recorder.telemetry.calling("t", CONTEXT, "c"):
        raise KeyboardInterrupt("secret")
    (span,) = recorder.spans
    assert dict(span.attributes or {})["error.type"] == "KeyboardInterrupt"
    assert span.status.status_code is StatusCode.ERROR
    assert "secret" not in span.to_json()


def test_an_exception_after_the_outcome_changes_nothing(recorder: Recorder) -> None:
    with pytest.raises(ValueError), recorder.telemetry.calling("t", CONTEXT, "c") as span:
        span.finish(Completed(1))
        raise ValueError
    assert recorder.spans[0].status.status_code is StatusCode.UNSET


def test_only_the_first_outcome_counts(recorder: Recorder) -> None:
    with recorder.telemetry.calling("t", CONTEXT, "c") as span:
        span.finish(Completed(1))
        span.finish(refused(StopReason.KILLED))
    assert dict(recorder.spans[0].attributes or {})["agentguard.reason"] == "completed"


def test_the_span_of_a_framework_is_enriched_and_not_doubled(recorder: Recorder) -> None:
    tracer = recorder.provider.get_tracer("framework")
    theirs = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "mail.send"}
    with tracer.start_as_current_span("running tool", attributes=theirs):
        recorder.call(refused(StopReason.POLICY_DENIED, DENY), key="k1")
    guardrail, span = recorder.spans
    assert (guardrail.name, span.name) == ("run_guardrail agentguard", "running tool")
    attributes = dict(span.attributes or {})
    assert attributes["agentguard.run.id"] == "run_1"
    assert attributes["agentguard.call.key"] == "k1"
    assert attributes["error.type"] == "policy_denied"
    assert "gen_ai.agent.name" not in attributes


def test_an_exception_marks_the_span_of_a_framework_and_leaves_it_open(recorder: Recorder) -> None:
    theirs = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "t"}
    with recorder.provider.get_tracer("f").start_as_current_span("x", attributes=theirs) as outer:
        with pytest.raises(OSError), recorder.telemetry.calling("t", CONTEXT, "c"):
            raise OSError
        assert outer.is_recording()
    assert dict(recorder.spans[0].attributes or {})["error.type"] == "OSError"


@pytest.mark.parametrize(
    "theirs",
    [
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "other"},
        {"gen_ai.operation.name": "chat", "gen_ai.tool.name": "t"},
        {},
    ],
)
def test_the_span_of_something_else_is_not_enriched(recorder: Recorder, theirs: dict[str, str]) -> None:
    with recorder.provider.get_tracer("f").start_as_current_span("x", attributes=theirs):
        recorder.call(Completed(1), tool="t")
    assert [span.name for span in recorder.spans] == ["execute_tool t", "x"]
    assert "agentguard.run.id" not in dict(recorder.spans[1].attributes or {})


def test_a_tool_that_calls_itself_through_the_gateway_gets_two_spans(recorder: Recorder) -> None:
    with recorder.telemetry.calling("t", CONTEXT, "outer") as outer:
        with recorder.telemetry.calling("t", CONTEXT, "inner") as inner:
            inner.finish(Completed(1))
        outer.finish(Completed(1))
    assert [dict(span.attributes or {})["gen_ai.tool.call.id"] for span in recorder.spans] == ["inner", "outer"]


def test_a_span_that_does_not_record_is_not_enriched(recorder: Recorder) -> None:
    with trace.use_span(NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)):
        recorder.call(Completed(1))
    assert len(recorder.spans) == 1


# --- guardrail spans -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "decision", "expected"),
    [("off", DENY, 0), ("non_allow", DENY, 1), ("non_allow", ASK, 1), ("non_allow", ALLOW, 0), ("always", ALLOW, 1)],
)
def test_the_guardrail_span_follows_its_setting(setting: str, decision: Decision, expected: int) -> None:
    recorder = Recorder(guardrail_spans=setting)
    recorder.call(Completed(1, decision=decision), decision_s=0.001)
    found = [span for span in recorder.spans if span.name == "run_guardrail agentguard"]
    assert len(found) == expected
    for span in found:
        parent = recorder.spans[-1]
        assert span_id(span.parent) == span_id(parent.context)
        attributes = dict(span.attributes or {})
        assert attributes["openinference.span.kind"] == "GUARDRAIL"
        assert attributes["gen_ai.tool.name"] == "mail.send"
        assert attributes["agentguard.decision"] == decision.verdict
        assert (span.end_time or 0) - (span.start_time or 0) == 1_000_000


def test_an_unknown_guardrail_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="off, non_allow or always"):
        Telemetry(guardrail_spans="sometimes")  # type: ignore[arg-type]


# --- content -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "on_span", "on_event"),
    [
        (None, False, False),
        ("NO_CONTENT", False, False),
        ("true", False, False),
        ("SPAN_ONLY", True, False),
        ("event_only", False, True),
        (" SPAN_AND_EVENT ", True, True),
    ],
)
def test_arguments_and_results_are_kept_only_where_the_host_asks(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, on_span: bool, on_event: bool
) -> None:
    monkeypatch.delenv(CAPTURE, raising=False)
    if wanted is not None:
        monkeypatch.setenv(CAPTURE, wanted)
    recorder = Recorder()
    assert recorder.telemetry.wants_content is (on_span or on_event)
    recorder.call(Completed(1), arguments_json='{"a":1}', result_json="2")
    (span,) = recorder.spans
    said = {"gen_ai.tool.call.arguments": '{"a":1}', "gen_ai.tool.call.result": "2"}
    assert (said.items() <= dict(span.attributes or {}).items()) is on_span
    assert [dict(event.attributes or {}) for event in span.events] == ([said] if on_event else [])


def test_content_that_is_absent_leaves_no_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPTURE, "SPAN_AND_EVENT")
    recorder = Recorder()
    recorder.call(Completed(1))
    assert "gen_ai.tool.call.arguments" not in dict(recorder.spans[0].attributes or {})
    assert recorder.spans[0].events == ()


# --- hostile names, failing telemetry ------------------------------------------------------------


@pytest.mark.parametrize("name", ["x\x1b[2J", "a b", "", "x" * 129, "a\n"])
def test_a_name_that_a_model_made_up_carries_no_text(
    recorder: Recorder, name: str, captured: list[logging.LogRecord]
) -> None:
    recorder.call(refused(StopReason.UNKNOWN_TOOL), tool=name)
    assert recorder.spans[-1].name == "execute_tool invalid_name"
    assert {record.tool for record in captured} == {"invalid_name"}  # type: ignore[attr-defined]


class Broken:
    """A provider whose parts raise after ``good`` calls."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __getattr__(self, name: str) -> Any:
        def act(*args: Any, **settings: Any) -> Any:
            if name == self.where:
                raise RuntimeError("broken")
            return self

        return act


@pytest.mark.parametrize("where", ["get_tracer", "start_span", "set_attributes", "set_attribute", "end"])
def test_broken_tracing_never_reaches_the_call(where: str) -> None:
    telemetry = Telemetry(tracer_provider=Broken(where))  # type: ignore[arg-type]
    with telemetry.calling("t", CONTEXT, "c") as span:
        span.finish(refused(StopReason.KILLED))
    assert telemetry.errors >= 1
    with pytest.raises(KeyError), telemetry.calling("t", CONTEXT, "c"):
        raise KeyError
    with telemetry.chatting("m", CONTEXT, "openai") as chat:
        chat.used(1, 2)
    with pytest.raises(KeyError), telemetry.chatting("m", CONTEXT, "openai"):
        raise KeyError
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize("where", ["get_meter", "create_counter", "add"])
def test_broken_metrics_never_reach_the_call(where: str) -> None:
    telemetry = Telemetry(meter_provider=Broken(where))  # type: ignore[arg-type]
    with telemetry.calling("t", CONTEXT, "c") as span:
        span.finish(Completed(1))
    telemetry.cost(1.0)
    assert telemetry.errors == 2


# --- metrics -------------------------------------------------------------------------------------


def test_a_call_is_measured_without_ids_principals_or_arguments(recorder: Recorder) -> None:
    recorder.call(Completed(1, decision=ALLOW, attempts=3), key="k1", duration_s=0.5, decision_s=0.00001)
    recorder.call(Failed(KeyError("x"), attempts=2, replayed=True), duration_s=0.25)
    found = recorder.metrics()
    tool = {"agentguard.tool": "mail.send"}
    allowed = {"agentguard.decision": "allow"} | tool
    assert found["agentguard.decisions"] == [
        (allowed | {"agentguard.rule.id": "mail-ok", "agentguard.enforcement.mode": "enforce"}, 1),
        (allowed, 1),
    ]
    timed = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "mail.send"}
    assert found["gen_ai.execute_tool.duration"] == [(timed, 0.5), (timed | {"error.type": "KeyError"}, 0.25)]
    assert found["agentguard.decision.duration"] == [({"agentguard.decision": "allow"}, 0.00001)]
    assert found["agentguard.retries"] == [(tool, 2)]
    for secret in ("run_1", "c1", "k1", "ann", "acme", "support", "chat_7"):
        assert secret not in str(found)


def test_names_that_a_model_makes_up_become_one_series(recorder: Recorder) -> None:
    for n in range(5):
        recorder.call(refused(StopReason.UNKNOWN_TOOL), tool=f"made_up_{n}")
    assert recorder.metrics()["agentguard.decisions"] == [
        ({"agentguard.decision": "deny", "agentguard.tool": "unknown"}, 5)
    ]


def test_approvals_budgets_and_costs_are_measured(recorder: Recorder) -> None:
    telemetry = recorder.telemetry
    telemetry.approval_requested("a")
    telemetry.approval_requested("a")
    telemetry.approval_ended("a", "approved", 12.5)
    telemetry.budget("tool_calls", "run", 3, 10)
    telemetry.budget("tokens", "tenant", 30, 100)
    telemetry.budget("cost_usd", "team", 0.5, 2.0)
    telemetry.cost(0.25, tool="a")
    telemetry.cost(0.5, model="gpt")
    found = recorder.metrics()
    assert found["agentguard.approvals.pending"] == [({"agentguard.tool": "a"}, 1)]
    assert found["agentguard.approval.duration"] == [
        ({"agentguard.tool": "a", "agentguard.approval.state": "approved"}, 12.5)
    ]
    units = {point[0]["agentguard.budget.unit"]: point[1] for point in found["agentguard.budget.used"]}
    assert units == {"{call}": 3, "{token}": 30, "{USD}": 0.5}
    assert [value for _, value in found["agentguard.budget.limit"]] == [10, 100, 2.0]
    assert found["agentguard.cost"] == [({"agentguard.tool": "a"}, 0.25), ({"gen_ai.request.model": "gpt"}, 0.5)]
    assert telemetry.errors == 0


# --- nobody listens ------------------------------------------------------------------------------


def test_without_providers_and_log_level_all_calls_share_one_object() -> None:
    telemetry = Telemetry()
    one, two = telemetry.calling("t", CONTEXT, "c"), telemetry.calling("u", CONTEXT, "d")
    assert one is two
    with one as span:
        span.finish(Completed(1), seq=1)
    assert not telemetry.wants_content
    with telemetry.chatting("m", CONTEXT, "openai") as chat:
        chat.used(1, 1)
    telemetry.cost(1.0)
    assert telemetry.errors == 0


def test_a_provider_that_the_host_sets_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Telemetry()
    with telemetry.calling("t", CONTEXT, "c") as span:
        span.finish(Completed(1))
    recorder = Recorder()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorder.provider)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", recorder.meters)
    with telemetry.calling("t", CONTEXT, "c") as span:
        span.finish(Completed(1))
    assert [span.name for span in recorder.spans] == ["execute_tool t"]
    assert "agentguard.decisions" in recorder.metrics()


def test_the_providers_of_the_api_itself_count_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", trace.NoOpTracerProvider())
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", metrics.NoOpMeterProvider())
    telemetry = Telemetry()
    assert telemetry.calling("t", CONTEXT, "c") is telemetry.calling("u", CONTEXT, "d")


def test_an_api_that_keeps_its_provider_elsewhere_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.delattr(trace, "_TRACER_PROVIDER")
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: recorder.provider)
    with Telemetry().calling("t", CONTEXT, "c") as span:
        span.finish(Completed(1))
    assert len(recorder.spans) == 1


def test_opentelemetry_is_never_imported_by_the_library() -> None:
    program = """
import sys
from agentguard.domain.calls import Completed
from agentguard.domain.context import RunContext
from agentguard.tracing import Telemetry
telemetry = Telemetry()
with telemetry.calling("t", RunContext("r", "a"), "c") as span:
    span.finish(Completed(1))
with telemetry.chatting("m", RunContext("r", "a"), "openai"):
    telemetry.cost(1.0)
assert not telemetry.wants_content
print(any(name.startswith("opentelemetry") for name in sys.modules), telemetry.errors)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "0"]


# --- model calls ---------------------------------------------------------------------------------


def test_a_model_call_is_a_chat_span_with_its_usage(recorder: Recorder) -> None:
    inner = recorder.provider.get_tracer("http")
    with recorder.telemetry.chatting("gpt-5", CONTEXT, "openai") as span:
        inner.start_span("POST").end()
        span.used(10, 5, "gpt-5-2026")
    http, chat = recorder.spans
    assert (chat.name, chat.kind) == ("chat gpt-5", SpanKind.CLIENT)
    assert http.parent is not None
    assert dict(chat.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.response.model": "gpt-5-2026",
        "gen_ai.agent.name": "support",
        "gen_ai.conversation.id": "chat_7",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "agentguard.run.id": "run_1",
    }


def test_unknown_usage_is_left_out(recorder: Recorder) -> None:
    with recorder.telemetry.chatting("m", CONTEXT, "openai") as span:
        span.used(None, 3)
    attributes = dict(recorder.spans[0].attributes or {})
    assert "gen_ai.usage.input_tokens" not in attributes
    assert attributes["gen_ai.usage.output_tokens"] == 3


def test_a_model_call_that_raises_is_an_error(recorder: Recorder) -> None:
    with pytest.raises(ConnectionError), recorder.telemetry.chatting("m", CONTEXT, "openai"):
        raise ConnectionError("secret")
    (span,) = recorder.spans
    assert dict(span.attributes or {})["error.type"] == "ConnectionError"
    assert span.status.status_code is StatusCode.ERROR
    assert "secret" not in span.to_json()


def test_a_model_call_within_the_span_of_a_framework_opens_none(recorder: Recorder) -> None:
    theirs = {"gen_ai.operation.name": "chat"}
    with (
        recorder.provider.get_tracer("f").start_as_current_span("chat m", attributes=theirs),
        recorder.telemetry.chatting("m", CONTEXT, "openai") as span,
    ):
        span.used(1, 2)
    assert len(recorder.spans) == 1


# --- logs ----------------------------------------------------------------------------------------


def test_a_call_is_two_log_records_with_structured_fields(captured: list[logging.LogRecord]) -> None:
    with Telemetry().calling("mail.send", CONTEXT, "c1") as span:
        span.finish(refused(StopReason.POLICY_DENIED, DENY), key="k1", seq=3, duration_s=0.0015)
    decided, ended = captured
    assert decided.getMessage() == "call of mail.send decided: deny"
    assert ended.getMessage() == "call of mail.send ended: policy_denied"
    for record in captured:
        fields = vars(record)
        assert (fields["run_id"], fields["call_key"], fields["tool"]) == ("run_1", "k1", "mail.send")
        assert (fields["verdict"], fields["rule_id"], fields["tenant"]) == ("deny", "no-mail", "acme")
    assert vars(ended)["reason"] == "policy_denied"
    assert vars(ended)["duration_ms"] == 1.5
    assert vars(ended)["audit_seq"] == 3


def test_no_log_record_is_built_while_the_level_is_off(captured: list[logging.LogRecord], recorder: Recorder) -> None:
    logging.getLogger("agentguard").setLevel(logging.WARNING)
    recorder.call(Completed(1))
    assert captured == []


def test_the_library_adds_nothing_but_a_null_handler() -> None:
    handlers = logging.getLogger("agentguard").handlers
    assert all(isinstance(handler, logging.NullHandler) for handler in handlers)
    assert handlers


def formatted(message: str, *args: Any, **extra: Any) -> str:
    record = logging.LogRecord("agentguard", logging.INFO, "f", 1, message, args, None)
    vars(record).update(extra)
    return JsonFormatter().format(record)


def test_a_formatted_record_is_one_line_of_json_with_its_fields() -> None:
    value = json.loads(formatted("call of %s", "x", run_id="run_1", n=1, nothing=None))
    assert value.pop("time").endswith("Z")
    assert value == {
        "level": "INFO", "logger": "agentguard", "message": "call of x", "run_id": "run_1", "n": 1, "nothing": None,
    }  # fmt: skip


def test_a_formatted_record_has_no_control_characters() -> None:
    hostile = "a\nb\x1b[31m\x7f\u202e\u2028\x00\x9b\ud800"
    text = formatted("%s", hostile, tool=hostile)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["tool"] == hostile


def test_extra_fields_cannot_replace_the_standard_ones_and_odd_values_do_not_break_the_line() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    value = json.loads(formatted("real", level="forged", odd=Odd()))
    assert (value["level"], value["odd"]) == ("INFO", "<Odd>")


def test_an_exception_is_part_of_the_line() -> None:
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        record = logging.LogRecord("agentguard", logging.ERROR, "f", 1, "m", (), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "ValueError" in json.loads(text)["exception"]


def test_a_span_that_cannot_be_made_current_is_ended_all_the_same(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(trace, "set_span_in_context", fail)
    with recorder.telemetry.calling("t", CONTEXT, "c") as span:
        span.finish(Completed(1))
    assert [span.name for span in recorder.spans] == ["execute_tool t"]
    assert recorder.telemetry.errors == 1
