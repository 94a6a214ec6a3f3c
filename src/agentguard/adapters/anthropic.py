"""Adapter of the Anthropic SDK, 1.x and 2.x: messages, streaming, the tool runner, sync and async.

::

    with gateway.run(agent="support", budget=Budget(max_tool_calls=12)) as run:
        client = govern(Anthropic(), run)
        result = run_loop(client, run, model="claude-sonnet-4-5", max_tokens=1024, messages="Where is order A-17?")

With a loop of your own, send requests with the governed client and hand every answer to ``run_tool_calls``; with
the SDK's tool runner, call ``govern_runner(runner, run)`` before it runs.

What must stay true: every request of a governed client and of its copies is looked at before it is sent, after
every other middleware; whatever cannot be looked at is refused; whatever goes wrong while looking keeps the
request from being sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agentguard.errors import MissingExtra

try:
    import anthropic
except ImportError as error:
    raise MissingExtra("anthropic", "anthropic") from error

from agentguard.adapters import _anthropic_wire as wire
from agentguard.adapters._executing import aexecute, execute
from agentguard.adapters._looping import LoopResult, LoopStatus, PendingCall, adrive, drive, going_on, starting
from agentguard.adapters._metering import Estimate, ahold, awatch, hold, watch
from agentguard.adapters._provenance import Given, Provenance, UngovernedToolResult, provenance_of
from agentguard.adapters._screening import Screen, hosted_tool, unenforceable
from agentguard.adapters._wire import ToolResults, collected, plain
from agentguard.domain.calls import Suspended
from agentguard.errors import ApprovalPending, ConfigurationError

if TYPE_CHECKING:
    from agentguard.gateway import Run

__all__ = [
    "GovernedMiddleware",
    "LoopResult",
    "LoopStatus",
    "PendingCall",
    "ToolResults",
    "UngovernedToolResult",
    "aresume_loop",
    "arun_loop",
    "arun_tool_calls",
    "govern",
    "govern_runner",
    "hosted_tool",
    "resume_loop",
    "run_loop",
    "run_tool_calls",
]

ClientT = TypeVar("ClientT")
RunnerT = TypeVar("RunnerT")
_MESSAGES = wire.MessagesDialect()
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol")


# --- the client --------------------------------------------------------------------------------------------------


class GovernedMiddleware(anthropic.Middleware):
    """Middleware that puts the model calls of a client into a run: ``Anthropic(middleware=[GovernedMiddleware(run)])``.

    It must be the last one, so that it sees what is really sent; :func:`govern` takes care of that.

    Args:
        run: The run.
        earlier: Messages of earlier runs of the conversation, kept by the service itself; their tool results are
            accepted as they are.
        estimate: Tokens that a request body will take; by default a quarter of its characters.
    """

    def __init__(
        self,
        run: Run,
        *,
        earlier: Iterable[Any] = (),
        estimate: Callable[[Mapping[str, Any]], int] | None = None,
    ) -> None:
        self.run = run
        self._estimate = estimate
        self._provenance: Provenance = provenance_of(run)
        self._provenance.trust(wire.results_in({"messages": [plain(message) for message in earlier]}))

    def _look(self, request: Any) -> tuple[Any, Estimate | None, list[Given]]:
        """The request as it may be sent, what it may use (``None``: it calls no model), and its tool results."""
        if wire.endpoint(str(request.method), str(request.url)) == "free":
            return request, None, []
        options = request.options
        body, extra = options.json_data, getattr(options, "extra_json", None)
        hidden = getattr(options, "content", None) is not None or getattr(options, "files", None) is not None
        if hidden or not isinstance(body, Mapping) or not isinstance(extra, Mapping | None):
            raise unenforceable("A request to a model whose body is not a JSON object")
        read: dict[str, Any] = plain({**body, **(extra or {})})
        results = wire.results_in(read)
        read = wire.screened(read, Screen(self.run))
        expected = wire.estimate(read)
        if self._estimate is not None:
            expected = Estimate(expected.model, self._estimate(read), expected.output_tokens)
        request = request.copy(body=read)
        request.options.extra_json = None
        return request, expected, results

    def handle(self, request: Any, call_next: Callable[[Any], Any]) -> Any:
        """Look at a request, hold its budget, send it, and charge what it used."""
        request, expected, results = self._look(request)
        if results:
            self._provenance.check(self.run, results)
        if expected is None:
            return call_next(request)
        meter = hold(self.run, expected)
        try:
            response = call_next(request)
            if not _succeeded(response):
                meter.release()
                return response
            content = response.parse()
        except BaseException as error:
            meter.release() if _was_not_done(error) else meter.settle()
            raise
        if request.stream and hasattr(content, "_iterator"):
            watch(content, meter, wire.usage_of_event)
        else:
            meter.report(*wire.usage_of(content))
            meter.settle()
        return response

    async def handle_async(self, request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """The same for async clients."""
        request, expected, results = self._look(request)
        if results:
            await self._provenance.acheck(self.run, results)
        if expected is None:
            return await call_next(request)
        meter = await ahold(self.run, expected)
        try:
            response = await call_next(request)
            if not _succeeded(response):
                await meter.arelease()
                return response
            content = response.parse()
            if inspect.isawaitable(content):
                content = await content
        except BaseException as error:
            await (meter.arelease() if _was_not_done(error) else meter.asettle())
            raise
        if request.stream and hasattr(content, "_iterator"):
            awatch(content, meter, wire.usage_of_event)
        else:
            meter.report(*wire.usage_of(content))
            await meter.asettle()
        return response


def _succeeded(response: Any) -> bool:
    return bool(response.http_response.is_success)


def _was_not_done(error: BaseException) -> bool:
    """Whether the provider surely did not do the work: it said so, or nothing was sent."""
    if isinstance(error, anthropic.APIStatusError):
        return True
    if isinstance(error, anthropic.APIConnectionError):
        return type(error.__cause__).__name__ in _NOT_SENT
    return isinstance(error, anthropic.AnthropicError) and not isinstance(error, anthropic.APIError)


class _Keeping:
    """Put before a client class: whatever a copy changes, our middleware stays, and stays the last one."""

    def copy(self, **settings: Any) -> Any:
        ours = _middleware_of(self)
        made = super().copy(**settings)  # type: ignore[misc]
        if ours is not None and (not made.middleware or made.middleware[-1] is not ours):
            others = [entry for entry in made.middleware if entry is not ours]
            made = super().copy(**{**settings, "middleware": [*others, ours]})  # type: ignore[misc]
        return made

    with_options = copy


def _middleware_of(client: Any) -> GovernedMiddleware | None:
    entries = getattr(client, "middleware", ())
    return next((entry for entry in reversed(entries) if isinstance(entry, GovernedMiddleware)), None)


_CLASSES: dict[type, type] = {}


def govern(
    client: ClientT,
    run: Run,
    *,
    earlier: Iterable[Any] = (),
    estimate: Callable[[Mapping[str, Any]], int] | None = None,
) -> ClientT:
    """Make a client whose model calls belong to a run; the given client stays as it is.

    Before a request is sent: tool results that the gateway did not give are refused, tools the run may not see,
    hosted tools and MCP servers are taken out, and the budget of the call is held. Afterwards its usage is
    charged, cached tokens included. Copies made with ``with_options()`` are governed too. Requests that could
    reach a model without any of this (batches, sessions) are refused.

    A call of which the provider reports no usage, such as a stream that is broken off, is charged with the
    tokens that were held, and counts as unpriced.

    Args:
        client: ``Anthropic``, ``AsyncAnthropic``, or one of their siblings with ``middleware``.
        run: The run.
        earlier: As for :class:`GovernedMiddleware`.
        estimate: As for :class:`GovernedMiddleware`.

    Raises:
        ConfigurationError: The client is of another SDK or belongs to another run.
    """
    given: Any = client
    if not callable(getattr(given, "copy", None)) or not isinstance(getattr(given, "middleware", None), tuple):
        raise ConfigurationError(f"AG658 {type(client).__name__} is no client of the Anthropic SDK.", code="AG658")
    present = _middleware_of(given)
    if present is not None and present.run is not run:
        raise ConfigurationError("AG658 the client belongs to another run; govern the original client.", code="AG658")
    others = [entry for entry in given.middleware if not isinstance(entry, GovernedMiddleware)]
    ours = GovernedMiddleware(run, earlier=earlier, estimate=estimate)
    base: type = type(given)
    if issubclass(base, _Keeping):  # its own copy would put the old one back
        base = base.__mro__[2]
    made: Any = base.copy(given, middleware=[*others, ours])  # type: ignore[attr-defined]
    governed = _CLASSES.get(base)
    if governed is None:
        members = {"__module__": base.__module__, "__doc__": base.__doc__}
        governed = _CLASSES[base] = type(f"Governed{base.__name__}", (_Keeping, base), members)
    if type(made) is not governed:  # a shell of the governed class, for the SDK's own copying to make the client of
        shell: Any = object.__new__(governed)
        shell.__dict__.update(made.__dict__)
        made = shell.copy()
    return cast("ClientT", made)


# --- tool calls of one answer ------------------------------------------------------------------------------------


def run_tool_calls(run: Run, answer: Any, *, parallel: bool = True) -> ToolResults:
    """Run the tool calls of a model's answer through the gateway.

    The provider's id of a call is its ``call_id``: running the same answer again, also in another process, gives
    back what was done before and goes on with what waited for a person. Refusals, unknown tools and unreadable
    arguments become results for the model, marked ``is_error``.

    Args:
        run: The run.
        answer: A message of the model, its content, or either as plain data.
        parallel: Run several calls at the same time, each in a thread.

    Returns:
        The user message to append, and what waits for a person; while something waits, nothing may be sent.

    Raises:
        ConfigurationError: It is no answer.
    """
    proposals, written = wire.read_answer(answer)
    outcomes = execute(run, proposals, parallel=parallel)
    return collected(proposals, outcomes, written, provenance_of(run).remember)


async def arun_tool_calls(run: Run, answer: Any, *, parallel: bool = True) -> ToolResults:
    """The same for async code; several calls run in tasks of their own."""
    proposals, written = wire.read_answer(answer)
    outcomes = await aexecute(run, proposals, parallel=parallel)
    return collected(proposals, outcomes, written, provenance_of(run).remember)


def govern_runner(runner: RunnerT, run: Run) -> RunnerT:
    """Make the SDK's tool runner run its tool calls through the gateway.

    Call it on what ``client.beta.messages.tool_runner(...)`` of a governed client gives, before it runs. The
    runner's own tools are then only definitions for the model; ``gateway.visible(run).to_anthropic()`` serves. A
    call that waits for a person ends the runner with ``ApprovalPending``; keep its messages, and go on with
    :func:`run_tool_calls` and a new runner, or with :func:`resume_loop`.

    Do not use ``runner.append_messages()`` to keep tools from running: the runner carries them out all the same
    and throws the results away. Governed like this they at least go through the gateway.

    Args:
        runner: The runner, sync or async, streaming or not.
        run: The run its client belongs to.

    Raises:
        ConfigurationError: The client of the runner is not governed by this run, or the runner carries tools out
            while the answer still streams (``run_tools_eagerly``).
    """
    given: Any = runner
    ours = _middleware_of(getattr(given, "_client", None))
    if ours is None or ours.run is not run:
        raise ConfigurationError(
            "AG659 the runner's client is not governed by this run: make the runner with govern(client, run).",
            code="AG659",
        )
    last = getattr(given, "_get_last_message", None)
    if last is None or not hasattr(given, "generate_tool_call_response"):
        raise ConfigurationError("AG659 this is no tool runner that can be governed.", code="AG659")
    if getattr(given, "_run_tools_eagerly", False):
        raise ConfigurationError(
            "AG659 run_tools_eagerly carries tools out before their calls can be governed; leave it out.", code="AG659"
        )

    def respond() -> dict[str, Any] | None:
        message = last()
        return _response(run_tool_calls(run, message)) if message is not None else None

    async def arespond() -> dict[str, Any] | None:
        message = await last()
        return _response(await arun_tool_calls(run, message)) if message is not None else None

    awaited = inspect.iscoroutinefunction(given.generate_tool_call_response)
    given.generate_tool_call_response = arespond if awaited else respond
    return runner


def _response(results: ToolResults) -> dict[str, Any] | None:
    waiting = next((o for o in results.outcomes if isinstance(o, Suspended)), None)
    if waiting is not None:
        raise ApprovalPending(waiting)
    return results.messages[0] if results.messages else None


# --- a whole loop ------------------------------------------------------------------------------------------------


def run_loop(
    client: Any,
    run: Run,
    *,
    model: str,
    max_tokens: int,
    messages: str | Sequence[Any],
    max_turns: int = 20,
    parallel: bool = True,
    on_event: Callable[[Any], object] | None = None,
    **settings: Any,
) -> LoopResult:
    """Ask the model, run its tool calls, and ask again until it answers, is stopped, or has to wait.

    The tools are those the run may see, unless ``tools`` is given. When the gateway refuses the next model call
    (budget, kill switch), the run is ended with that reason. While a call waits for a person the loop returns:
    keep ``result.to_json()``, and call :func:`resume_loop` once it is decided.

    Args:
        client: Client of the SDK, governed or not.
        run: The run.
        model: Model name.
        max_tokens: Tokens of one answer at most.
        messages: The conversation; a text is one user message.
        max_turns: Model calls at most.
        parallel: Run several tool calls of one answer at the same time.
        on_event: Called with each event of the stream; the model then streams.
        **settings: Further arguments of the requests, plain JSON.

    Raises:
        ConfigurationError: The arguments do not fit together.
        anthropic.APIError: The provider failed.
    """
    start = starting("messages", messages, {"model": model, "max_tokens": max_tokens, **settings})
    return drive(_MESSAGES, run, start, _asking(client, run, on_event), max_turns=max_turns, parallel=parallel)


def resume_loop(
    client: Any,
    run: Run,
    saved: LoopResult | str | bytes,
    *,
    max_turns: int = 20,
    parallel: bool = True,
    on_event: Callable[[Any], object] | None = None,
    **settings: Any,
) -> LoopResult:
    """Go on with a loop, in this or another process: calls that waited are made again with their ids.

    Approved calls run (with the arguments a person may have edited), rejected ones are reported to the model,
    and while one is undecided the loop returns again without asking the model.

    Args:
        client: Client of the SDK.
        run: The same run, for example from ``gateway.resume(run_id)``.
        saved: What the loop returned, or its JSON text.
        max_turns: Model calls at most, those before included.
        parallel: As for :func:`run_loop`.
        on_event: As for :func:`run_loop`.
        **settings: Settings that replace the saved ones.

    Raises:
        ConfigurationError: It is no saved loop of this adapter.
    """
    start = going_on(saved, (_MESSAGES.api,), settings)
    if start.status == "completed":
        return start
    return drive(_MESSAGES, run, start, _asking(client, run, on_event), max_turns=max_turns, parallel=parallel)


def _asking(client: Any, run: Run, on_event: Callable[[Any], object] | None) -> Callable[[Any], Mapping[str, Any]]:
    governed: Any = govern(client, run)

    def ask(arguments: dict[str, Any]) -> Mapping[str, Any]:
        if on_event is None:
            return cast("Mapping[str, Any]", wire.echo(governed.messages.create(**arguments)))
        with governed.messages.stream(**arguments) as stream:
            for event in stream:
                on_event(event)
            return cast("Mapping[str, Any]", wire.echo(stream.get_final_message()))

    return ask


async def arun_loop(
    client: Any,
    run: Run,
    *,
    model: str,
    max_tokens: int,
    messages: str | Sequence[Any],
    max_turns: int = 20,
    parallel: bool = True,
    on_event: Callable[[Any], object] | None = None,
    **settings: Any,
) -> LoopResult:
    """The same as :func:`run_loop` for async code; ``on_event`` may be a coroutine function."""
    start = starting("messages", messages, {"model": model, "max_tokens": max_tokens, **settings})
    return await adrive(_MESSAGES, run, start, _aasking(client, run, on_event), max_turns=max_turns, parallel=parallel)


async def aresume_loop(
    client: Any,
    run: Run,
    saved: LoopResult | str | bytes,
    *,
    max_turns: int = 20,
    parallel: bool = True,
    on_event: Callable[[Any], object] | None = None,
    **settings: Any,
) -> LoopResult:
    """The same as :func:`resume_loop` for async code."""
    start = going_on(saved, (_MESSAGES.api,), settings)
    if start.status == "completed":
        return start
    return await adrive(_MESSAGES, run, start, _aasking(client, run, on_event), max_turns=max_turns, parallel=parallel)


def _aasking(
    client: Any, run: Run, on_event: Callable[[Any], object] | None
) -> Callable[[Any], Awaitable[Mapping[str, Any]]]:
    governed: Any = govern(client, run)

    async def ask(arguments: dict[str, Any]) -> Mapping[str, Any]:
        if on_event is None:
            return cast("Mapping[str, Any]", wire.echo(await governed.messages.create(**arguments)))
        async with governed.messages.stream(**arguments) as stream:
            async for event in stream:
                told = on_event(event)
                if inspect.isawaitable(told):
                    await told
            return cast("Mapping[str, Any]", wire.echo(await stream.get_final_message()))

    return ask
