"""A leased secret is seen by the tool's body and by nobody else."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import sqlite3
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentguard import Credentials, MemorySink, Policy, tool
from agentguard.errors import AgentGuardError
from agentguard.tracing import Telemetry
from tests.battery.scene import Scene

SECRET = 'S3cr3t"\\\n/ü+h0bb1t'
FORMS = (SECRET, json.dumps(SECRET)[1:-1], json.dumps(SECRET, ensure_ascii=False)[1:-1], repr(SECRET)[1:-1], "h0bb1t")


def _clean(what: Any) -> None:
    text = what if isinstance(what, str) else repr(what)
    for form in FORMS:
        assert form not in text, text[:2000]


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("agentguard")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


@tool(name="leak", effect="read", credentials=["bank"])
def leak(how: str, bank: Credentials) -> Any:
    secret = bank["bank"]
    assert secret == SECRET
    if how == "return":
        return {"it is": secret, secret: ["x", f"a{secret}b"]}
    if how == "raise":
        raise ValueError(f"cannot log in with {secret}")
    if how == "chain":
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise ValueError("cannot log in") from error
    if how == "context":
        try:
            raise KeyError(secret)
        except KeyError:
            raise ValueError("cannot log in")  # noqa: B904
    if how == "note":
        error = ValueError("cannot log in")
        error.add_note(secret)
        raise error
    if how == "unprintable":
        return object()
    return "fine"


@tool(name="echo", effect="read")
def echo(text: str) -> str:
    return text


@pytest.mark.parametrize("how", ["return", "raise", "chain", "context", "note", "unprintable", "fine"])
def test_a_secret_appears_nowhere(scene: Scene, log: io.StringIO, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    exporter = InMemorySpanExporter()
    spans = TracerProvider()
    spans.add_span_processor(SimpleSpanProcessor(exporter))
    sink = MemorySink()
    given: list[Any] = []

    def provide(request: Any) -> str:
        given.append(request)
        return SECRET

    gateway = scene.gateway(
        Policy(allow={"leak", "echo"}, require_approval={"pay"}),
        tools=[leak, echo, scene.pay],
        credentials=provide,
        sinks=[sink],
        telemetry=Telemetry(tracer_provider=spans),
    )
    run = scene.run(gateway)
    outcome = scene.attempt(gateway, {"how": how}, "leak", run=run, call_id="c1")
    _clean(outcome)
    _clean(repr(dataclasses.asdict(outcome)) if how != "unprintable" else "")
    _clean(scene.attempt(gateway, {"how": how}, "leak", run=run, call_id="c1"))  # replayed
    try:
        scene.hand.do(run, "call", "leak", {"how": how})
    except AgentGuardError as error:
        _clean("".join(traceback.format_exception(error)))
        _clean(getattr(error, "for_people", ""))
        _clean(getattr(error, "for_model", ""))
    # What once was a secret stays one, also where a model brings it back.
    _clean(scene.attempt(gateway, {"text": SECRET}, "echo", run=run))
    _clean(scene.attempt(gateway, {"txt": SECRET}, "echo", run=run))
    _clean(scene.attempt(gateway, {"a": SECRET}, "none", run=run).detail)  # type: ignore[union-attr]
    scene.hand.do(run, "step", "plan", f"with {SECRET}", input=SECRET, output={SECRET: SECRET})
    scene.hand.do(run, "complete", {"answer": SECRET}, evidence=[SECRET], warnings=[SECRET])
    _clean(scene.hand.do(run, "report"))
    for record in [*gateway.audit.records(run.run_id), *sink.records]:
        _clean(record.line.decode())
        _clean((record.body or b"").decode())
    _clean(b"".join(gateway.audit.export()).decode())
    for span in exporter.get_finished_spans():
        _clean(span.to_json())
    _clean(log.getvalue())
    _clean(gateway)
    assert [r.name for r in given][:1] == ["bank"]
    if scene.kind == "sqlite":
        for file in scene.folder.glob("*.db"):
            database = sqlite3.connect(file)
            for table in [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]:
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    for value in row:
                        _clean(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
            database.close()


def test_what_a_provider_says_when_it_fails_is_not_passed_on(scene: Scene, log: io.StringIO) -> None:
    def provide(request: Any) -> str:
        raise RuntimeError(f"vault rejected {SECRET}")

    gateway = scene.gateway(Policy(allow={"leak"}), tools=[leak], credentials=provide)
    run = scene.run(gateway)
    outcome = scene.attempt(gateway, {"how": "fine"}, "leak", run=run)
    assert outcome.reason.value == "credentials_unavailable"  # type: ignore[union-attr]
    _clean(outcome)
    for record in gateway.audit.records(run.run_id):
        _clean((record.body or b"").decode())
    _clean(log.getvalue())


def test_the_request_says_for_whom_the_secret_is(scene: Scene) -> None:
    asked: list[Any] = []
    gateway = scene.gateway(
        Policy(allow={"leak"}), tools=[leak], credentials=lambda request: asked.append(request) or SECRET
    )
    run = scene.run(gateway, tenant="acme")
    scene.attempt(gateway, {"how": "fine"}, "leak", run=run)
    one = asked[0]
    assert (one.name, one.tool, one.tenant, one.environment, one.agent, one.user, one.run_id) == (
        "bank",
        "leak",
        "acme",
        "prod",
        "bot",
        "u-1",
        run.run_id,
    )


def test_a_refused_call_leases_nothing(scene: Scene) -> None:
    asked: list[Any] = []
    gateway = scene.gateway(Policy(), tools=[leak], credentials=lambda request: asked.append(request) or SECRET)
    scene.attempt(gateway, {"how": "fine"}, "leak")
    assert asked == []
