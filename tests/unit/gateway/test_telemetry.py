"""What a gateway tells OpenTelemetry and the log about its calls, end to end with the in-memory exporters."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentguard import ApproverIdentity, Budget, Policy, Prices, ToolGateway, tool
from agentguard.tracing import Telemetry

SECRET = "sk-very-secret-value"


@tool(name="orders.get", effect="read", cost_usd="0.002", description="Reads an order.")
def get_order(order_id: str) -> dict[str, str]:
    with trace.get_tracer("inside", tracer_provider=Scene.provider).start_as_current_span("query"):
        return {"id": order_id}


@tool(name="orders.break", effect="read")
def broken(order_id: str) -> str:
    raise ValueError(order_id)


@tool(name="refunds.create", effect="irreversible")
async def refund(amount: int) -> str:
    return f"refunded {amount}"


@tool(name="orders.delete", effect="irreversible")
def delete(order_id: str) -> str:
    return order_id


class Scene:
    """A gateway whose telemetry is kept in memory."""

    provider: TracerProvider

    def __init__(self, **settings: Any) -> None:
        self.spans = InMemorySpanExporter()
        self.metrics = InMemoryMetricReader()
        Scene.provider = TracerProvider()
        Scene.provider.add_span_processor(SimpleSpanProcessor(self.spans))
        meters = MeterProvider([self.metrics])
        self.gateway = ToolGateway(
            [get_order, broken, refund, delete],
            Policy(allow={"orders.get", "orders.break"}, require_approval={"refunds.create"}),
            prices=Prices({"m": ("1", "2")}),
            telemetry=Telemetry(tracer_provider=Scene.provider, meter_provider=meters),
            **settings,
        )

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        # Read once: a gauge that was read is empty until it is set again.
        data = self._read = getattr(self, "_read", None) or self.metrics.get_metrics_data()
        assert data is not None
        found = []
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        found += [
                            (dict(point.attributes or {}), getattr(point, "count", getattr(point, "value", 0)))
                            for point in metric.data.data_points
                        ]
        return found


def test_a_call_that_ran_is_one_span_with_the_facts_of_its_decision() -> None:
    scene = Scene()
    with scene.gateway.run(agent="bot", session="chat-9") as run:
        run.call("orders.get", {"order_id": "A-17"}, call_id="c1")
    (span,) = scene.named("execute_tool orders.get")
    attributes = dict(span.attributes or {})
    digest = attributes.pop("agentguard.policy.digest")
    assert digest == scene.gateway.policy_digest
    key = attributes.pop("agentguard.call.key")
    assert str(key).endswith("c1")
    assert attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "orders.get",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "c1",
        "gen_ai.tool.description": "Reads an order.",
        "gen_ai.agent.name": "bot",
        "gen_ai.conversation.id": "chat-9",
        "agentguard.run.id": run.run_id,
        "agentguard.decision": "allow",
        "agentguard.rule.id": "allow",
        "agentguard.reason": "completed",
        "agentguard.enforcement.mode": "enforce",
        "agentguard.audit.seq": 2,
        "agentguard.replayed": False,
    }
    assert "A-17" not in str(span.to_json())


def test_what_a_tool_traces_hangs_below_its_call() -> None:
    scene = Scene()
    with scene.gateway.run(agent="bot"):
        get_order("A-17")
    (outer,), (inner,) = scene.named("execute_tool orders.get"), scene.named("query")
    assert inner.parent is not None
    assert outer.context is not None
    assert inner.parent.span_id == outer.context.span_id


def test_a_denied_call_is_an_error_and_a_failed_one_too() -> None:
    scene = Scene()
    with scene.gateway.run(agent="bot") as run:
        run.attempt("orders.delete", {"order_id": "A"})
        run.attempt("orders.break", {"order_id": "A"})
    (denied,), (failed,) = scene.named("execute_tool orders.delete"), scene.named("execute_tool orders.break")
    assert (denied.attributes or {})["error.type"] == "policy_denied"
    assert (failed.attributes or {})["error.type"] == "ValueError"
    assert [s.status.status_code.name for s in (denied, failed)] == ["ERROR", "ERROR"]


@pytest.mark.anyio
async def test_a_call_that_waits_for_a_person_is_no_error() -> None:
    scene = Scene()
    async with scene.gateway.run(agent="bot") as run:
        asked = await run.aattempt("refunds.create", {"amount": 5}, call_id="c1")
        scene.gateway.approvals.approve(asked.request.id, by=ApproverIdentity("ann"))  # type: ignore[union-attr]
        await run.aattempt("refunds.create", {"amount": 5}, call_id="c1")
    waiting, ran = scene.named("execute_tool refunds.create")
    assert waiting.status.status_code.name == "UNSET"
    assert (waiting.attributes or {})["agentguard.approval.state"] == "pending"
    assert (ran.attributes or {})["agentguard.approval.id"] == asked.request.id  # type: ignore[union-attr]
    assert scene.points("agentguard.approval.duration")[0][1] == 1
    assert scene.points("agentguard.approvals.pending")[0][1] == 0


def test_metrics_count_decisions_durations_and_money() -> None:
    scene = Scene()
    with scene.gateway.run(agent="bot", budget=Budget(max_tokens=10, warn_at=0.5)) as run:
        run.call("orders.get", {"order_id": "A"})
        run.attempt("orders.delete", {"order_id": "A"})
        run.charge_llm(model="m", input_tokens=5, output_tokens=1)
    decisions = {(a["agentguard.decision"], a["agentguard.tool"]): n for a, n in scene.points("agentguard.decisions")}
    assert decisions == {("allow", "orders.get"): 1, ("deny", "orders.delete"): 1}
    assert sum(n for _, n in scene.points("gen_ai.execute_tool.duration")) == 2
    assert sum(n for _, n in scene.points("agentguard.decision.duration")) == 2
    spent = sum(Decimal(str(n)) for _, n in scene.points("agentguard.cost"))
    assert abs(spent - Decimal("0.002007")) < Decimal("0.0000001")
    assert scene.points("agentguard.budget.used")
    assert run.run_id not in str(scene._read)


@pytest.mark.parametrize(
    ("logging_section", "wanted"),
    [
        ("{tool_calls: true, stop_reasons: true}", {"orders.get", "orders.delete"}),
        ("{tool_calls: false}", {"orders.delete"}),
        ("{stop_reasons: false}", {"orders.get"}),
        ("{tool_calls: false, stop_reasons: false}", set()),
    ],
)
def test_the_logging_section_of_a_file_says_what_is_logged(
    caplog: pytest.LogCaptureFixture, logging_section: str, wanted: set[str]
) -> None:
    text = f"version: 1\nlogging: {logging_section}\nrules:\n  - allow: orders.get\n"
    gateway = ToolGateway.from_string(text, [get_order, delete])
    Scene()
    with caplog.at_level(logging.INFO, "agentguard"), gateway.run(agent="bot") as run:
        run.attempt("orders.get", {"order_id": "A"})
        run.attempt("orders.delete", {"order_id": "A"})
    records = [r for r in caplog.records if r.name == "agentguard" and hasattr(r, "verdict")]
    assert {r.tool for r in records} == wanted  # type: ignore[attr-defined]
    assert all(r.run_id == run.run_id for r in records)  # type: ignore[attr-defined]
