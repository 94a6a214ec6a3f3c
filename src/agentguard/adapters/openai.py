"""Adapter of the OpenAI SDK, 2.x and 3.x: chat completions and responses, streaming, sync and async.

::

    with gateway.run(agent="support", budget=Budget(max_tool_calls=12)) as run:
        client = govern(OpenAI(), run)
        result = run_loop(client, run, model="gpt-5", messages=[{"role": "user", "content": "Where is A-17?"}])

With a loop of your own, send requests with the governed client and hand every answer to ``run_tool_calls``.

What must stay true: every request of a governed client, of its copies and of its raw and streaming forms goes
through ``request`` and is looked at there before it is sent; whatever cannot be looked at is refused; whatever
goes wrong while looking keeps the request from being sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agentguard.errors import MissingExtra

try:
    import openai
except ImportError as error:
    raise MissingExtra("openai", "openai") from error

from agentguard.adapters import _openai_wire as wire
from agentguard.adapters._executing import aexecute, execute
from agentguard.adapters._looping import LoopResult, LoopStatus, PendingCall, adrive, drive, going_on, starting
from agentguard.adapters._metering import Estimate, ahold, awatch, hold, watch
from agentguard.adapters._openai_dialect import CHAT, DIALECTS, read_answer
from agentguard.adapters._openai_runner import aregistered_functions, registered_functions
from agentguard.adapters._provenance import Given, Provenance, UngovernedToolResult, provenance_of
from agentguard.adapters._screening import Screen, hosted_tool, unenforceable
from agentguard.adapters._wire import ToolResults, collected, plain
from agentguard.errors import ConfigurationError

if TYPE_CHECKING:
    from agentguard.gateway import Run

__all__ = [
    "LoopResult",
    "LoopStatus",
    "PendingCall",
    "ToolResults",
    "UngovernedToolResult",
    "aregistered_functions",
    "aresume_loop",
    "arun_loop",
    "arun_tool_calls",
    "govern",
    "hosted_tool",
    "registered_functions",
    "resume_loop",
    "run_loop",
    "run_tool_calls",
]

ClientT = TypeVar("ClientT", bound=openai.OpenAI | openai.AsyncOpenAI)
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol")


# --- the client --------------------------------------------------------------------------------------------------


class _Governor:
    """What a governed client knows: its run, and what to do before and after a request."""

    def __init__(self, run: Run, estimate: Callable[[Mapping[str, Any]], int] | None) -> None:
        self.run = run
        self.estimate = estimate
        self.provenance: Provenance = provenance_of(run)

    def look(self, options: Any) -> tuple[Any, Estimate | None, list[Given]]:
        """The request as it may be sent, what it may use (``None``: it calls no model), and its tool results."""
        kind = wire.endpoint(str(options.method), str(options.url))
        if kind == "free":
            return options, None, []
        body = _body_of(options)
        results = wire.results_in(kind, body)
        if kind == "items":
            return options, None, results
        body = wire.screened(kind, body, Screen(self.run))
        expected = wire.estimate(kind, body)
        if self.estimate is not None:
            expected = Estimate(expected.model, self.estimate(body), expected.output_tokens)
        return options.model_copy(update={"json_data": body, "extra_json": None}), expected, results

    def heard(self, answer: Any) -> tuple[int | None, int | None]:
        """Take an answer or an event of a stream; tokens sent and received according to it."""
        if self.provenance.notes:
            for found in wire.calls_heard(answer):
                if found.arguments is not None:
                    self.provenance.note(found.call_id, found.name, found.arguments)
        return wire.usage_of_event(answer)


def _body_of(options: Any) -> dict[str, Any]:
    body = options.json_data
    extra = getattr(options, "extra_json", None)
    hidden = getattr(options, "content", None) is not None or options.files is not None
    if hidden or not isinstance(body, Mapping) or not isinstance(extra, Mapping | None):
        raise unenforceable("A request to a model whose body is not a JSON object")
    return cast("dict[str, Any]", plain({**body, **(extra or {})}))


def _was_not_done(error: BaseException) -> bool:
    """Whether the provider surely did not do the work: it said so, or nothing was sent."""
    if isinstance(error, openai.APIStatusError):
        return True
    if isinstance(error, openai.APIConnectionError):
        return type(error.__cause__).__name__ in _NOT_SENT
    return isinstance(error, openai.OpenAIError) and not isinstance(error, openai.APIError)


class _Blocking:
    """Put before a sync client class: its requests go through the governor."""

    _agentguard: _Governor | None = None

    def copy(self, **settings: Any) -> Any:
        made = super().copy(**settings)  # type: ignore[misc]
        made._agentguard = self._agentguard
        return made

    with_options = copy

    def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        governor = _of(self)
        options, expected, results = governor.look(options)
        if results:
            governor.provenance.check(governor.run, results)
        send = partial(super().request, cast_to, options, stream=stream, stream_cls=stream_cls)  # type: ignore[misc]
        if expected is None:
            return send()
        meter = hold(governor.run, expected)
        try:
            answer = send()
            content = answer.parse() if hasattr(answer, "http_response") else answer
        except BaseException as error:
            meter.release() if _was_not_done(error) else meter.settle()
            raise
        if stream and hasattr(content, "_iterator"):
            watch(content, meter, governor.heard)
        else:
            meter.report(*governor.heard(content))
            meter.settle()
        return answer


class _Awaiting:
    """The same for async client classes."""

    _agentguard: _Governor | None = None

    def copy(self, **settings: Any) -> Any:
        made = super().copy(**settings)  # type: ignore[misc]
        made._agentguard = self._agentguard
        return made

    with_options = copy

    async def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        governor = _of(self)
        options, expected, results = governor.look(options)
        if results:
            await governor.provenance.acheck(governor.run, results)
        send = partial(super().request, cast_to, options, stream=stream, stream_cls=stream_cls)  # type: ignore[misc]
        if expected is None:
            return await send()
        meter = await ahold(governor.run, expected)
        try:
            answer = await send()
            content = answer.parse() if hasattr(answer, "http_response") else answer
            if inspect.isawaitable(content):
                content = await content
        except BaseException as error:
            await (meter.arelease() if _was_not_done(error) else meter.asettle())
            raise
        if stream and hasattr(content, "_iterator"):
            awatch(content, meter, governor.heard)
        else:
            meter.report(*governor.heard(content))
            await meter.asettle()
        return answer


def _of(client: Any) -> _Governor:
    governor: _Governor | None = client._agentguard
    if governor is None:  # made by other means than copy(): no run, so nothing may be sent
        raise ConfigurationError("AG657 this client lost its run; make one with govern(client, run).", code="AG657")
    return governor


_CLASSES: dict[type, type] = {}
_SOCKETS = ("live", "realtime", "responses", "sideband", "translations")


def _refuse_socket(*_: Any, **__: Any) -> Any:
    raise unenforceable("A connection that stays open (realtime)")


def _sealed(resource: Any, depth: int = 2) -> Any:
    """A resource of the SDK without the ways to a model that do not go through ``request``."""
    if hasattr(resource, "connect"):
        resource.connect = _refuse_socket
    if depth:
        for name in _SOCKETS:
            if hasattr(type(resource), name):
                _sealed(getattr(resource, name), depth - 1)
    return resource


def _governed_class(base: type) -> type:
    made = _CLASSES.get(base)
    if made is None:
        mixin = _Awaiting if issubclass(base, openai.AsyncOpenAI) else _Blocking
        members: dict[str, Any] = {"__module__": base.__module__, "__doc__": base.__doc__}
        made = type(f"Governed{base.__name__}", (mixin, base), members)
        for name in (*_SOCKETS, "beta"):
            if hasattr(base, name):
                found = partial(_sealed_attribute, made, name)
                setattr(made, name, property(found))
        _CLASSES[base] = made
    return made


def _sealed_attribute(owner: type, name: str, client: Any) -> Any:
    return _sealed(getattr(super(owner, client), name))


def govern(
    client: ClientT,
    run: Run,
    *,
    earlier: Iterable[Any] = (),
    estimate: Callable[[Mapping[str, Any]], int] | None = None,
) -> ClientT:
    """Make a client whose model calls belong to a run; the given client stays as it is.

    Before a request is sent: tool results that the gateway did not give are refused, tools the run may not see
    and hosted tools are taken out, and the budget of the call is held. Afterwards its usage is charged. Copies
    made with ``with_options()`` are governed too. Requests that could reach a model without any of this
    (realtime, assistants, batches, background responses, stored prompts) are refused.

    A call of which the provider reports no usage, such as a stream that is broken off, is charged with the
    tokens that were held, and counts as unpriced.

    Args:
        client: ``OpenAI``, ``AsyncOpenAI``, or a class derived from one of them (Azure).
        run: The run.
        earlier: Messages (or input items) of earlier runs of the conversation, kept by the service itself; their
            tool results are accepted as they are.
        estimate: Tokens that a request body will take; by default a quarter of its characters.

    Raises:
        ConfigurationError: The client is of another SDK or belongs to another run.
    """
    if not isinstance(client, openai.OpenAI | openai.AsyncOpenAI):
        raise ConfigurationError(f"AG658 {type(client).__name__} is no client of the OpenAI SDK.", code="AG658")
    present = getattr(client, "_agentguard", None)
    if present is not None and present.run is not run:
        raise ConfigurationError("AG658 the client belongs to another run; govern the original client.", code="AG658")
    made: Any = client.copy()
    if present is None:  # a shell of the governed class, for the SDK's own copying to make the client of
        shell: Any = object.__new__(_governed_class(type(client)))
        shell.__dict__.update(made.__dict__)
        made = shell.copy()
    governor = _Governor(run, estimate)
    known = [plain(entry) for entry in earlier]
    governor.provenance.trust(g for kind in ("chat", "responses") for g in _results(kind, known))
    made._agentguard = governor
    return cast("ClientT", made)


def _results(kind: str, known: list[Any]) -> list[Given]:
    return [g for g in wire.results_in(kind, {"messages" if kind == "chat" else "input": known}) if g.call_id]


# --- tool calls of one answer ------------------------------------------------------------------------------------


def run_tool_calls(run: Run, answer: Any, *, parallel: bool = True) -> ToolResults:
    """Run the tool calls of a model's answer through the gateway.

    The provider's id of a call is its ``call_id``: running the same answer again, also in another process, gives
    back what was done before and goes on with what waited for a person. Refusals, unknown tools and unreadable
    arguments become messages for the model.

    Args:
        run: The run.
        answer: A chat completion, its message, a response, its output items, or any of these as plain data.
        parallel: Run several calls at the same time, each in a thread.

    Returns:
        Messages to append, and what waits for a person; while something waits, nothing may be sent.

    Raises:
        ConfigurationError: It is no answer, or one with several choices.
    """
    proposals, written = read_answer(answer)
    outcomes = execute(run, proposals, parallel=parallel)
    return collected(proposals, outcomes, written, provenance_of(run).remember)


async def arun_tool_calls(run: Run, answer: Any, *, parallel: bool = True) -> ToolResults:
    """The same for async code; several calls run in tasks of their own."""
    proposals, written = read_answer(answer)
    outcomes = await aexecute(run, proposals, parallel=parallel)
    return collected(proposals, outcomes, written, provenance_of(run).remember)


# --- a whole loop ------------------------------------------------------------------------------------------------


def _start(model: str, messages: Any, given: Any, settings: Mapping[str, Any]) -> LoopResult:
    if (messages is None) == (given is None):
        raise ConfigurationError("AG656 pass messages= (chat completions) or input= (responses).", code="AG656")
    api, content = ("chat", messages) if given is None else ("responses", given)
    return starting(api, content, {"model": model, **settings})


def run_loop(
    client: openai.OpenAI,
    run: Run,
    *,
    model: str,
    messages: str | Sequence[Any] | None = None,
    input: str | Sequence[Any] | None = None,
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
        messages: Conversation for chat completions (a text is one user message), or
        input: for the responses interface.
        max_turns: Model calls at most.
        parallel: Run several tool calls of one answer at the same time.
        on_event: Called with each event of the stream; the model then streams.
        **settings: Further arguments of the requests, plain JSON.

    Raises:
        ConfigurationError: The arguments do not fit together.
        openai.APIError: The provider failed.
    """
    start = _start(model, messages, input, settings)
    return _drive(client, run, start, max_turns, parallel, on_event)


def resume_loop(
    client: openai.OpenAI,
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
    start = going_on(saved, tuple(DIALECTS), settings)
    if start.status == "completed":
        return start
    return _drive(client, run, start, max_turns, parallel, on_event)


def _drive(
    client: openai.OpenAI,
    run: Run,
    start: LoopResult,
    max_turns: int,
    parallel: bool,
    on_event: Callable[[Any], object] | None,
) -> LoopResult:
    governed: Any = govern(client, run)

    def ask(arguments: dict[str, Any]) -> Mapping[str, Any]:
        create = governed.chat.completions.create if start.api == CHAT.api else governed.responses.create
        if on_event is None:
            return cast("Mapping[str, Any]", wire.echo(create(**arguments)))
        gathering = DIALECTS[start.api].gathering()
        with create(**arguments, stream=True) as stream:
            for event in stream:
                on_event(event)
                gathering.add(event)
        return gathering.answer()

    return drive(DIALECTS[start.api], run, start, ask, max_turns=max_turns, parallel=parallel)


async def arun_loop(
    client: openai.AsyncOpenAI,
    run: Run,
    *,
    model: str,
    messages: str | Sequence[Any] | None = None,
    input: str | Sequence[Any] | None = None,
    max_turns: int = 20,
    parallel: bool = True,
    on_event: Callable[[Any], object] | None = None,
    **settings: Any,
) -> LoopResult:
    """The same as :func:`run_loop` for async code; ``on_event`` may be a coroutine function."""
    start = _start(model, messages, input, settings)
    return await _adrive(client, run, start, max_turns, parallel, on_event)


async def aresume_loop(
    client: openai.AsyncOpenAI,
    run: Run,
    saved: LoopResult | str | bytes,
    *,
    max_turns: int = 20,
    parallel: bool = True,
    on_event: Callable[[Any], object] | None = None,
    **settings: Any,
) -> LoopResult:
    """The same as :func:`resume_loop` for async code."""
    start = going_on(saved, tuple(DIALECTS), settings)
    if start.status == "completed":
        return start
    return await _adrive(client, run, start, max_turns, parallel, on_event)


async def _adrive(
    client: openai.AsyncOpenAI,
    run: Run,
    start: LoopResult,
    max_turns: int,
    parallel: bool,
    on_event: Callable[[Any], object] | None,
) -> LoopResult:
    governed: Any = govern(client, run)

    async def ask(arguments: dict[str, Any]) -> Mapping[str, Any]:
        create = governed.chat.completions.create if start.api == CHAT.api else governed.responses.create
        if on_event is None:
            return cast("Mapping[str, Any]", wire.echo(await create(**arguments)))
        gathering = DIALECTS[start.api].gathering()
        async with await create(**arguments, stream=True) as stream:
            async for event in stream:
                told = on_event(event)
                if inspect.isawaitable(told):
                    await told
                gathering.add(event)
        return gathering.answer()

    return await adrive(DIALECTS[start.api], run, start, ask, max_turns=max_turns, parallel=parallel)
