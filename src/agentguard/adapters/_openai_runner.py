"""The governed executors of the OpenAI SDK's own tool runner for responses (openai 3.31 and newer).

The runner gives an executor the arguments and not the id of the call. The governed client therefore notes the
calls of every answer it lets through, and the executor takes the id from there. What must stay true: an executor
runs nothing that no noted call accounts for, and each noted call once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentguard.adapters._executing import aattempt, attempt
from agentguard.adapters._provenance import Provenance, provenance_of
from agentguard.adapters._screening import HOSTED
from agentguard.adapters._wire import Proposal, answer_to
from agentguard.domain.calls import Outcome, Suspended
from agentguard.errors import ApprovalPending, ConfigurationError

if TYPE_CHECKING:
    from agentguard.gateway import Run


def _class(name: str) -> Any:
    try:
        from openai.lib import responses_tool_runner
    except ImportError as error:
        raise ConfigurationError(
            "AG001 this version of openai has no ResponsesToolRunner; it came with openai 3.31.", code="AG001"
        ) from error
    return getattr(responses_tool_runner, name)


def _definitions(run: Run) -> list[dict[str, Any]]:
    seen = run._gateway.visible(run)
    return seen.only(n for n in seen.names if not n.startswith(HOSTED)).to_openai("responses")


def _noted(provenance: Provenance, name: str, arguments: Any) -> Proposal:
    given = dict(arguments) if isinstance(arguments, Mapping) else None
    call_id = provenance.take(name, given)
    if given is None or call_id is None:
        raise ConfigurationError(
            f"AG659 {name}: no answer of a client governed by this run proposed this call, so it was not made. Give the "
            "runner a client made with govern(client, run).",
            code="AG659",
        )
    return Proposal(call_id, name, given)


def _output(provenance: Provenance, found: Proposal, outcome: Outcome) -> str:
    if isinstance(outcome, Suspended):
        provenance.remember(found.call_id, None)
        raise ApprovalPending(outcome)
    answer = answer_to(found.call_id, outcome)
    assert answer is not None
    provenance.remember(found.call_id, answer.text)
    return answer.text


def registered_functions(run: Run) -> list[Any]:
    """The tools a run may see, as functions for the SDK's ``ResponsesToolRunner(functions=...)``.

    Use the runner with a client made by ``govern(client, run)``. A call that waits for a person ends the runner
    with ``ApprovalPending``.

    Args:
        run: The run.

    Returns:
        ``RegisteredFunction`` objects.

    Raises:
        ConfigurationError: This version of the SDK has no such runner.
    """
    made = _class("RegisteredFunction")
    provenance = provenance_of(run)
    provenance.note_calls()

    def executor(name: str) -> Any:
        def run_function(arguments: Any) -> str:
            found = _noted(provenance, name, arguments)
            return _output(provenance, found, attempt(run, found))

        return run_function

    return [made(definition, executor(definition["name"])) for definition in _definitions(run)]


def aregistered_functions(run: Run) -> list[Any]:
    """The same for ``AsyncResponsesToolRunner``: ``AsyncRegisteredFunction`` objects."""
    made = _class("AsyncRegisteredFunction")
    provenance = provenance_of(run)
    provenance.note_calls()

    def executor(name: str) -> Any:
        async def run_function(arguments: Any) -> str:
            found = _noted(provenance, name, arguments)
            return _output(provenance, found, await aattempt(run, found))

        return run_function

    return [made(definition, executor(definition["name"])) for definition in _definitions(run)]
