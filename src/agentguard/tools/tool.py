"""The ``@tool`` decorator and what it makes: a governed function that keeps its face, and a ``Tool``.

What must stay true:

* A governed function never runs its body itself. It hands the call to the current run, or refuses.
* The wrapper looks like the function it wraps: signature, hints, docstring, colour; only injected parameters
  are gone from the signature that callers see.
* A ``Tool`` is a value. Its body is invoked by the drivers and by nobody else.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from agentguard.domain.calls import Refused
from agentguard.domain.decisions import StopReason
from agentguard.domain.plans import Breaker, EffectClass, Retry, RiskTier, Sandbox, ToolSpec, Trust
from agentguard.errors import InvalidArguments, NoActiveRun
from agentguard.tools.current import CURRENT
from agentguard.tools.defining import digest_of
from agentguard.tools.given import GivenInput, GivenResult
from agentguard.tools.schema import ArgumentsInvalid, Input, Output, Problem, Result, Validated, shown, unknown_argument
from agentguard.tools.settings import check_name, check_spec, fail, read_settings
from agentguard.tools.signature import HintResult, Injected, Signature, SignatureInput, read_signature

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Governed(Protocol[P, R_co]):
    """A governed function: called like the function it was made from, carried out by the current run."""

    @property
    def spec(self) -> ToolSpec:
        """The registry entry."""
        ...

    @property
    def ungoverned(self) -> Callable[P, R_co]:
        """The raw function, for unit tests."""
        ...

    @property
    def tool(self) -> Tool:
        """The tool, for registries."""
        ...

    @property
    def __name__(self) -> str:
        """Name of the function."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Hand the call to the current run."""
        ...

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None, /) -> Governed[P, R_co]: ...
    @overload
    def __get__(
        self: Governed[Concatenate[S, Q], R_co], instance: S, owner: type[Any] | None = None, /
    ) -> Governed[Q, R_co]: ...


class Tool:
    """A tool: its entry, its body, and everything compiled from them. A value; ``with_spec`` makes another.

    Attributes:
        spec: The registry entry.
        body: What the drivers call, with keyword arguments. Nobody else calls it.
        is_async: ``body`` returns an awaitable.
        abody: What the drivers call instead of ``body`` for async callers, or ``None``.
        injected: Parameter name to ``"credentials"`` or ``"context"``.
        probe: Finds out what became of a call whose fate is unknown, or ``None``. The drivers call it with
            those arguments of the call that it names, and the ``CallContext`` as ``context`` when it names that.
        probe_is_async: ``probe`` returns an awaitable.
        method: The tool was made from a method and is not bound to an instance yet.
    """

    __slots__ = (
        "_function",
        "_input",
        "_instance",
        "_names",
        "_output",
        "_positional",
        "_public",
        "abody",
        "body",
        "injected",
        "is_async",
        "method",
        "probe",
        "probe_is_async",
        "spec",
        "validate",
    )

    def __init__(
        self,
        spec: ToolSpec,
        body: Callable[..., Any],
        *,
        input: Input,
        output: Result,
        function: Callable[..., Any] | None = None,
        public: Signature | None = None,
        probe: Callable[..., Any] | None = None,
        method: bool = False,
        instance: Any = None,
    ) -> None:
        self.spec = spec
        self.body = body
        self.abody: Callable[..., Any] | None = None
        self.is_async = is_coroutine_function(body)
        self.injected: Mapping[str, Injected] = dict(public.injected) if public else {}
        self.probe = probe
        self.probe_is_async = probe is not None and is_coroutine_function(probe)
        self.method = method
        self.validate: Callable[[Mapping[str, Any]], Validated] = input.validate
        self._input = input
        self._output = output
        self._function = function or body
        self._instance = instance
        self._public = public
        parameters = public.parameters if public else ()
        self._positional = tuple(p.name for p in parameters if p.positional)
        self._names = None if public is None or public.variadic else frozenset(p.name for p in parameters if p.keyword)

    def __eq__(self, other: object) -> bool:
        return (
            self.is_same(other) and self.spec.digest == other.spec.digest if isinstance(other, Tool) else NotImplemented
        )

    def __hash__(self) -> int:
        return hash((self.spec.digest, id(self._function), id(self._instance)))

    def __repr__(self) -> str:
        return f"<Tool {self.spec.name} {self.spec.effect} {self.spec.digest[:12]}>"

    @property
    def name(self) -> str:
        """Name of the tool."""
        return self.spec.name

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a Python call by parameter name, not validated.

        Raises:
            ArgumentsInvalid: Python would not accept the call, or a parameter is injected and cannot be passed.
        """
        for name in kwargs:
            if name in self.injected:
                raise ArgumentsInvalid([Problem(name, "is injected by agentguard and cannot be passed")])
            if self._names is not None and name not in self._names:
                if name in self._positional:
                    raise ArgumentsInvalid([Problem(name, "must be passed by position")])
                raise ArgumentsInvalid([unknown_argument(name, self._names)])
        if not args:
            return dict(kwargs)
        if len(args) > len(self._positional):
            raise ArgumentsInvalid(
                [Problem("", f"takes at most {len(self._positional)} positional arguments", f"found {len(args)}")]
            )
        arguments = dict(zip(self._positional, args, strict=False))
        for name, value in kwargs.items():
            if name in arguments:
                raise ArgumentsInvalid([Problem(name, "is given twice")])
            arguments[name] = value
        return arguments

    def check_output(self, value: Any) -> Output:
        """Check a result against the output schema and write it as JSON.

        Raises:
            OutputInvalid: It does not fit, or has no JSON form.
        """
        return self._output.check(value)

    def revive(self, text: str | bytes) -> Any:
        """The result out of its stored JSON text; plain JSON where the text no longer fits the type."""
        return self._output.revive(text)

    def with_spec(self, **changes: Any) -> Tool:
        """The same tool with other fields of its entry, checked, with a new digest.

        Raises:
            ToolDefinitionError: The fields do not go together.
        """
        spec = replace(self.spec, **{**changes, "digest": ""})
        where = f"tool {spec.name}"
        check_name(where, spec.name)
        known = frozenset(spec.input_schema.get("properties", {}))
        check_spec(where, spec, known=known, is_async=self.is_async)
        return self._copy(replace(spec, digest=digest_of(spec, self.probe)), self.body, self._instance, self.method)

    def bound_to(self, instance: Any) -> Tool:
        """The tool of a method, bound to the instance (or class) it acts on."""
        return self._copy(self.spec, self.body.__get__(instance), instance, False)

    @property
    def awaits(self) -> bool:
        """Whether async callers get an awaitable from the body."""
        return self.is_async or self.abody is not None

    def with_async_body(self, function: Callable[..., Any]) -> Tool:
        """The tool with a coroutine function that does the same for async callers.

        For tools that come in both colours from elsewhere; sync callers go on getting the sync body.

        Raises:
            ToolDefinitionError: AG217, it is no coroutine function, or the tool is async already, or a method.
        """
        if self.is_async or self.method or self._instance is not None or not is_coroutine_function(function):
            fail(f"tool {self.spec.name}", "AG217", "an async body is a coroutine function beside a sync function")
        other = self._copy(self.spec, self.body, self._instance, self.method)
        other.abody = function
        return other

    def is_same(self, other: Tool) -> bool:
        """Whether both run the same function on the same instance, whatever their entries say."""
        return self._function is other._function and self._instance is other._instance and self.method == other.method

    def _copy(self, spec: ToolSpec, body: Callable[..., Any], instance: Any, method: bool) -> Tool:
        other = Tool.__new__(Tool)
        for slot in Tool.__slots__:
            setattr(other, slot, getattr(self, slot))
        other.spec = spec
        other.body = body
        other._instance = instance
        other.method = method
        return other


def is_coroutine_function(function: Any) -> bool:
    """Whether calling ``function`` gives a coroutine: functions, partials, methods and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def refuse_arguments(error: ArgumentsInvalid, call_id: str = "") -> InvalidArguments:
    """The refusal that invalid arguments end in."""
    return InvalidArguments(
        Refused(StopReason.INVALID_ARGUMENTS, None, error.message, detail=error.detail, call_id=call_id, code="AG604")
    )


def _no_run(name: str) -> NoActiveRun:
    return NoActiveRun(
        Refused(
            StopReason.NO_ACTIVE_RUN,
            None,
            "This tool cannot be used here.",
            detail=f"{name} was called outside a run, so nothing decides, pays for or records the call. Call it "
            "inside 'with gateway.run(agent=...) as run:' (a new thread starts outside: pass it "
            "contextvars.copy_context().run), or use .ungoverned in a unit test.",
            code="AG625",
        )
    )


def _by_keyword(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """A body that takes keywords, for a function with positional-only parameters."""
    if is_coroutine_function(function):

        async def abody(*bound: Any, **kwargs: Any) -> Any:
            return await function(*bound, *[kwargs.pop(name) for name in names], **kwargs)

        return abody

    def body(*bound: Any, **kwargs: Any) -> Any:
        return function(*bound, *[kwargs.pop(name) for name in names], **kwargs)

    return body


def _check_function(where: str, function: Any) -> None:
    if isinstance(function, (staticmethod, classmethod)):
        kind = type(function).__name__
        fail(where, "AG217", f"put @{kind} above @tool, not below")
    if isinstance(function, property):
        fail(where, "AG217", "a property cannot be a tool; give it a method")
    if isinstance(function, type):
        fail(where, "AG217", "a class cannot be a tool; decorate a function that makes the object")
    if not callable(function):
        fail(where, "AG217", f"{shown(function)} is not a function; write @tool or @tool(name=...)")
    if isinstance(getattr(function, "tool", None), Tool):
        fail(where, "AG217", "this function is a tool already; use its .tool.with_spec(name=...) for a variant")
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    for candidate in (inner, type(inner).__call__):
        if inspect.isgeneratorfunction(candidate) or inspect.isasyncgenfunction(candidate):
            fail(
                where,
                "AG217",
                "a generator cannot be a tool: it would act while somebody iterates, after the call was settled. "
                "Return a list",
            )


def define(function: Callable[..., Any], settings: Mapping[str, Any], *, name: str | None = None) -> Tool:
    """Make a tool out of a function and settings as ``@tool`` takes them.

    Raises:
        ToolDefinitionError: It cannot be governed as declared.
    """
    settings = dict(settings)
    label = name if name is not None else getattr(function, "__name__", None) or type(function).__name__
    where = f"tool {shown(label).strip(chr(39))}"
    _check_function(where, function)
    check_name(where, label)
    input_schema = settings.pop("input_schema", None)
    output_schema = settings.pop("output_schema", None)
    probe = settings.pop("probe", None)
    fields = read_settings(where, settings)
    if probe is not None and not callable(probe):
        fail(where, "AG224", f"probe must be a function, not {shown(probe)}")
    first = next(iter(_parameters(function)), None)
    method = first in ("self", "cls") and not inspect.ismethod(function)
    signature = read_signature(function, where, method=method, open_keywords=input_schema is not None)
    given: Input
    if input_schema is None:
        # Its `validate` is a slot that holds a function, which pyright takes for a method.
        given = cast("Input", SignatureInput(signature, where))
    else:
        given = GivenInput(input_schema, signature, where)
    output: Result = (
        HintResult(signature.returns, where) if output_schema is None else GivenResult(output_schema, where)
    )
    injected = signature.injected.values()
    if bool(fields.get("credentials")) != ("credentials" in injected):
        fail(
            where,
            "AG220",
            "credentials=[...] and a parameter annotated Credentials go together; "
            + ("add the parameter" if fields.get("credentials") else 'name the secrets: credentials=["..."]'),
        )
    fields.setdefault("description", _first_paragraph(inspect.getdoc(function)))
    spec = ToolSpec(
        name=label,
        input_schema=copy.deepcopy(given.schema),  # a changed entry must not change what is validated
        output_schema=output.schema,
        takes_key="context" in injected,
        **fields,
    )
    names = signature.parameters
    open_schema = signature.variadic and given.schema.get("additionalProperties", True) is not False
    check_spec(
        where,
        spec,
        known=None if open_schema else frozenset(given.schema.get("properties", {})),
        is_async=is_coroutine_function(function),
    )
    if probe is not None:
        _check_probe(where, probe, {*given.schema.get("properties", {}), *signature.injected})
    only = tuple(p.name for p in names if not p.keyword)
    return Tool(
        replace(spec, digest=digest_of(spec, probe)),
        _by_keyword(function, only) if only else function,
        input=given,
        output=output,
        function=function,
        public=signature,
        probe=probe,
        method=method,
    )


def _check_probe(where: str, probe: Callable[..., Any], known: set[str]) -> None:
    try:
        wanted = inspect.signature(probe).parameters.values()
    except (ValueError, TypeError):
        fail(where, "AG224", f"probe {shown(probe)} has no signature that can be read")
    for parameter in wanted:
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL) or (
            needed and parameter.name not in {*known, "context"}
        ):
            fail(
                where,
                "AG224",
                f"the probe's parameter {parameter.name} cannot be filled; a probe takes arguments of the tool by name, "
                "and context",
            )


def _parameters(function: Callable[..., Any]) -> Sequence[str]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (ValueError, TypeError):
        return ()  # read_signature says so in full


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n", 1)[0].split())


def _wrapped(function: Callable[..., Any], made: Tool) -> Any:
    method = made.method

    def prepare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tool, dict[str, Any]]:
        target = made
        if method:
            if not args:
                raise ArgumentsInvalid([Problem("", "must be called on an instance")])
            target, args = made.bound_to(args[0]), args[1:]
        return target, target.bind(args, kwargs)

    wrapper: Any
    if made.is_async:

        @functools.wraps(function)
        async def agoverned(*args: Any, **kwargs: Any) -> Any:
            caller = CURRENT.get()
            if caller is None:
                raise _no_run(made.spec.name)
            try:
                target, arguments = prepare(args, kwargs)
            except ArgumentsInvalid as error:
                raise refuse_arguments(error) from None
            return await caller.acall_tool(target, arguments)

        wrapper = agoverned
    else:

        @functools.wraps(function)
        def governed(*args: Any, **kwargs: Any) -> Any:
            caller = CURRENT.get()
            if caller is None:
                raise _no_run(made.spec.name)
            try:
                target, arguments = prepare(args, kwargs)
            except ArgumentsInvalid as error:
                raise refuse_arguments(error) from None
            return caller.call_tool(target, arguments)

        wrapper = governed
    assert made._public is not None
    wrapper.__signature__ = made._public.public
    wrapper.spec = made.spec
    wrapper.ungoverned = function
    wrapper.tool = made
    return wrapper


@overload
def tool(fn: Callable[P, R], /) -> Governed[P, R]: ...
@overload
def tool(
    fn: Callable[P, R],
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    permissions: Sequence[str] | None = None,
    owner: str | None = None,
    version: str | int | None = None,
    deprecated: bool | None = None,
    replaced_by: str | None = None,
    cost_usd: str | Decimal | int | None = None,
    effect: EffectClass | None = None,
    risk: RiskTier | None = None,
    output_labels: Sequence[str] | None = None,
    output_trust: Mapping[str, Trust] | None = None,
    cosmetic_args: Sequence[str] | None = None,
    timeout: float | str | timedelta | None = None,
    retry: int | Mapping[str, Any] | Retry | None = None,
    breaker: int | Mapping[str, Any] | Breaker | None = None,
    concurrency: int | None = None,
    fallback: str | None = None,
    sandbox: Mapping[str, Any] | Sandbox | None = None,
    credentials: Sequence[str] | None = None,
    idempotency_key: str | Sequence[str] | Callable[[Mapping[str, Any]], str] | None = None,
    probe: Callable[..., Any] | None = None,
    input_schema: Mapping[str, Any] | None = None,
    output_schema: Mapping[str, Any] | None = None,
    inline: bool | None = None,
    audit: bool | None = None,
) -> Governed[P, R]: ...
@overload
def tool(
    fn: None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    permissions: Sequence[str] | None = None,
    owner: str | None = None,
    version: str | int | None = None,
    deprecated: bool | None = None,
    replaced_by: str | None = None,
    cost_usd: str | Decimal | int | None = None,
    effect: EffectClass | None = None,
    risk: RiskTier | None = None,
    output_labels: Sequence[str] | None = None,
    output_trust: Mapping[str, Trust] | None = None,
    cosmetic_args: Sequence[str] | None = None,
    timeout: float | str | timedelta | None = None,
    retry: int | Mapping[str, Any] | Retry | None = None,
    breaker: int | Mapping[str, Any] | Breaker | None = None,
    concurrency: int | None = None,
    fallback: str | None = None,
    sandbox: Mapping[str, Any] | Sandbox | None = None,
    credentials: Sequence[str] | None = None,
    idempotency_key: str | Sequence[str] | Callable[[Mapping[str, Any]], str] | None = None,
    probe: Callable[..., Any] | None = None,
    input_schema: Mapping[str, Any] | None = None,
    output_schema: Mapping[str, Any] | None = None,
    inline: bool | None = None,
    audit: bool | None = None,
) -> Callable[[Callable[P, R]], Governed[P, R]]: ...
def tool(fn: Callable[..., Any] | None = None, /, *, name: str | None = None, **settings: Any) -> Any:  # noqa: D417 - the overloads name them
    """Put a function or method behind the gateway.

    The result is called like the function and keeps its signature, hints, docstring and colour. The call is
    carried out by the current run; outside a run it raises ``NoActiveRun``. A parameter annotated
    ``Credentials`` or ``CallContext`` is injected and never part of the schema that the model sees.

    Args:
        fn: The function, for ``@tool`` without arguments and for ``tool(function, name=...)``.
        name: Name of the tool; the function's name when left out.
        description: For the model; the first paragraph of the docstring when left out.
        permissions: What the caller must be permitted to do.
        owner: Team or person answerable for the tool.
        version: Version of the definition.
        deprecated: Callers should move on.
        replaced_by: Successor of a deprecated tool.
        cost_usd: Price of one attempt in US dollars: text, ``Decimal`` or whole dollars, never ``float``.
        effect: ``pure``, ``read``, ``idempotent`` or ``irreversible`` (when left out).
        risk: ``low``, ``medium`` (when left out), ``high`` or ``critical``.
        output_labels: Data labels that a run carries after it has seen the output.
        output_trust: Output field to ``trusted`` or ``untrusted``.
        cosmetic_args: Arguments left out of the approval digest.
        timeout: Seconds, ``timedelta`` or text such as ``"5s"``.
        retry: Attempts in total, a mapping (``attempts, wait, max_wait, jitter, on``) or ``Retry``.
        breaker: Failures that open the circuit, a mapping (``failures, reset``) or ``Breaker``.
        concurrency: Calls that may run at once across all processes.
        fallback: Tool that is called when this one fails.
        sandbox: Refused: it cannot be enforced in this version.
        credentials: Names of the secrets that are leased for each call.
        idempotency_key: Arguments that make two calls the same one across runs, or a function of the
            effective arguments.
        probe: Finds out what became of a call whose fate is unknown: a function of any of the tool's arguments,
            by name, and of ``context`` (a ``CallContext``, with the idempotency key); returns a ``ProbeResult``.
        input_schema: JSON Schema of the arguments, instead of the one from the hints.
        output_schema: JSON Schema of the result, instead of the one from the return hint.
        inline: The body does no I/O and runs in the event loop's own thread.
        audit: ``False`` leaves calls out of the audit trail (pure and read tools only).

    Raises:
        ToolDefinitionError: The tool cannot be governed as declared (AG210 to AG229).
    """
    if fn is None:

        def decorate(function: Callable[..., Any]) -> Any:
            return _wrapped(function, define(function, settings, name=name))

        return decorate
    return _wrapped(fn, define(fn, settings, name=name))
