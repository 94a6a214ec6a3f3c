"""A tripwire for LangChain: tools and models that are called anywhere in a context, and not through the gateway.

What must stay true: a tool that starts without the gateway having said so is stopped before it runs, and so is one
that starts with other arguments than were decided; a model that is called elsewhere is paid for and stopped when the
budget is used up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.tracers.context import register_configure_hook
from pydantic_core import to_jsonable_python

from agentguard.adapters._continuing import current
from agentguard.adapters._metering import Estimate, Metered, hold
from agentguard.adapters._wire import estimate_tokens
from agentguard.canonical import tagged
from agentguard.domain.calls import Refused
from agentguard.domain.decisions import StopReason
from agentguard.errors import CallRefused
from agentguard.gateway.running import Run

log = logging.getLogger("agentguard")


class Expected:
    """The one start of a tool that the gateway has permitted."""

    def __init__(self, name: str, arguments: Mapping[str, Any], known: frozenset[str]) -> None:
        self._name = name
        self._arguments = arguments
        self._known = known
        self._open = True

    def take(self, name: str, inputs: Mapping[str, Any] | None) -> bool:
        """Whether this start is the permitted one; it is so once."""
        if not self._open or name != self._name:
            return False
        if inputs is not None:
            seen = {key: value for key, value in inputs.items() if key in self._known}
            if not _is_as_decided(seen, self._arguments):
                return False
        self._open = False
        return True


def _is_as_decided(seen: Mapping[str, Any], decided: Mapping[str, Any]) -> bool:
    """Whether a tool starts with what was decided; the framework may have parsed values, or filled in defaults."""
    try:
        plain = to_jsonable_python(dict(seen))
        return set(plain) <= set(decided) and all(tagged(plain[key]) == tagged(decided[key]) for key in plain)
    except Exception:  # it cannot be compared, so it is not what was decided
        return False


_EXPECTED: ContextVar[Expected | None] = ContextVar("agentguard_expected_tool", default=None)
_PAID: ContextVar[bool] = ContextVar("agentguard_paid_model_call", default=False)
_WATCHER: ContextVar[BaseCallbackHandler | None] = ContextVar("agentguard_watcher", default=None)
register_configure_hook(_WATCHER, inheritable=True)


class Watcher(BaseCallbackHandler):
    """Is told by LangChain about every tool and model that starts."""

    raise_error = True
    run_inline = True

    def __init__(self, run: Run) -> None:
        self.run = run
        self._meters: dict[UUID, Metered] = {}
        self._lock = threading.Lock()

    def _is_outer(self) -> bool:
        """Whether another watcher, further inside, is the one to act."""
        inner = _WATCHER.get()
        return inner is not None and inner is not self

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        inputs: dict[str, Any] | None = None,
        **about: Any,
    ) -> None:
        """Stop a tool that the gateway has not let through.

        Raises:
            CallRefused: It is not run.
        """
        if self._is_outer():
            return
        name = str((serialized or {}).get("name") or about.get("name") or "")
        expected = _EXPECTED.get()
        if expected is not None and expected.take(name, inputs):
            return
        detail = (
            f"The tool {name!r:.140} was about to run past the gateway, or with other arguments than were decided. It was "
            "stopped. Let an agent with AgentGuardMiddleware or a governed_tool_node call it, and put the middleware last."
        )
        log.error("a tool was stopped on its way past the gateway", extra={"tool": name[:128]})
        message = "This tool cannot be used here. It was not run."
        raise CallRefused(Refused(StopReason.UNENFORCEABLE, None, message, False, detail, "", "AG694"))

    def _start(self, run_id: UUID, said: Any, about: Mapping[str, Any]) -> None:
        if _PAID.get() or self._is_outer():
            return
        settings: Mapping[str, Any] = about.get("invocation_params") or {}
        most = settings.get("max_tokens")
        name = settings.get("model") or settings.get("model_name") or settings.get("_type") or "unknown"
        texts = to_jsonable_python(said, fallback=repr, bytes_mode="base64")
        meter = hold(self.run, Estimate(str(name), estimate_tokens(texts), most if isinstance(most, int) else 1))
        with self._lock:
            self._meters[run_id] = meter

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[Any]], *, run_id: UUID, **about: Any
    ) -> None:
        """Hold the budget of a model call that no governed agent makes.

        Raises:
            BudgetExceeded: It is not made.
        """
        self._start(run_id, [getattr(m, "content", m) for batch in messages for m in batch], about)

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **about: Any) -> None:
        """The same for models without messages."""
        self._start(run_id, prompts, about)

    def _taken(self, run_id: UUID) -> Metered | None:
        with self._lock:
            return self._meters.pop(run_id, None)

    def on_llm_end(self, response: Any, *, run_id: UUID, **about: Any) -> None:
        """Charge what the provider reports."""
        meter = self._taken(run_id)
        if meter is not None:
            report(meter, [getattr(g, "message", None) for batch in response.generations for g in batch])
            meter.settle()

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **about: Any) -> None:
        """Give back or keep the hold of a call that came to nothing."""
        meter = self._taken(run_id)
        if meter is not None:
            meter.release() if was_not_done(error) else meter.settle()


def report(meter: Metered, messages: list[Any]) -> None:
    """Note the usage that the messages of an answer carry."""
    usages = [m.usage_metadata for m in messages if isinstance(m, AIMessage) and m.usage_metadata]
    if usages:
        meter.report(sum(u["input_tokens"] for u in usages), sum(u["output_tokens"] for u in usages))


def was_not_done(error: BaseException) -> bool:
    """Whether the provider says that it did not do the work."""
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and status >= 400


@contextmanager
def watch(run: Run | None = None) -> Generator[None]:
    """Watch LangChain in this context: ungoverned tools are stopped, model calls are paid for.

    Use it around graphs whose nodes call models or tools by themselves. Governed agents and tool nodes watch what
    happens inside their tools without it.

    Args:
        run: The run that pays, or ``None`` for the current one.
    """
    token = _WATCHER.set(Watcher(current(run)))
    try:
        yield
    finally:
        _WATCHER.reset(token)


@contextmanager
def permitting(
    run: Run, name: str, arguments: Mapping[str, Any], known: frozenset[str], *, watched: bool
) -> Generator[None]:
    """Let one tool start with these arguments, and watch what it does meanwhile."""
    expected = _EXPECTED.set(Expected(name, arguments, known))
    paid = _PAID.set(False)
    outer = _WATCHER.get()
    watcher = _WATCHER.set(Watcher(run)) if watched and not (isinstance(outer, Watcher) and outer.run is run) else None
    try:
        yield
    finally:
        if watcher is not None:
            _WATCHER.reset(watcher)
        _PAID.reset(paid)
        _EXPECTED.reset(expected)


@contextmanager
def paying() -> Generator[None]:
    """A model call whose budget is held already."""
    token = _PAID.set(True)
    try:
        yield
    finally:
        _PAID.reset(token)
