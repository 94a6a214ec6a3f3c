"""Schemas out of signatures: reads a function's parameters and compiles them, once, when a tool is defined.

What must stay true: validation is strict (``1``, ``1.0``, ``True`` and ``"1"`` are four different things),
unknown keys are refused at every depth, and the Python values of the body are computed from ``effective`` or
equal to it, so that validating ``effective`` again gives the same call. Scalars take one pass through
pydantic-core; everything else goes through JSON, which is also the copy.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, PydanticUndefined, SchemaValidator, from_json, to_json
from typing_extensions import TypedDict

from agentguard.domain.context import CallContext
from agentguard.errors import ToolDefinitionError
from agentguard.tools.schema import (
    MAX_INT,
    ArgumentsInvalid,
    Output,
    OutputInvalid,
    Plain,
    Problem,
    Validated,
    at,
    dotted,
    problems_of,
    property_names,
    shown,
    unknown_argument,
    walk,
)

Injected: TypeAlias = Literal["credentials", "context"]

_SCALARS = {"str", "int", "float", "bool", "none"}

_output: Any = tuple.__new__  # a NamedTuple's own constructor takes twice as long

# Results of these types, when nothing more is asked of them, need no look by pydantic-core: an instance of exactly the
# type is valid, and its JSON form is that of any other value.
_EXACT: dict[str, type] = {"str": str, "int": int, "bool": bool, "none": NoneType}

# Core schemas whose JSON form validates to the same value again; anything else is checked on every call.
_STABLE = _SCALARS | {
    *("any", "date", "datetime", "time", "timedelta", "uuid", "decimal", "literal", "enum", "nullable", "list", "dict"),
    *("tuple", "set", "frozenset", "union", "tagged-union", "typed-dict", "typed-dict-field", "model", "model-fields"),
    *("model-field", "dataclass", "dataclass-args", "dataclass-field", "default", "definitions", "definition-ref"),
}


class _Schemas(GenerateJsonSchema):
    """JSON Schemas without the titles that repeat each field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the signature is pydantic's
        return False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a tool: name, type, JSON default, and whether Python accepts it by position or keyword."""

    name: str
    hint: Any
    required: bool
    default: Any = None
    positional: bool = True
    keyword: bool = True


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes and gives, injected parameters apart.

    Attributes:
        parameters: Arguments in order.
        injected: Parameter name to what is injected.
        returns: Return hint, or ``inspect.Signature.empty``.
        variadic: The function takes ``**kwargs``.
        public: The signature that callers see.
    """

    parameters: tuple[Parameter, ...]
    injected: dict[str, Injected]
    returns: Any
    variadic: bool
    public: inspect.Signature = field(repr=False)


def _injection(hint: Any) -> Injected | None:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType, Annotated) else (hint,)
    for option in options:
        if option is CallContext:
            return "context"
        if isinstance(option, type) and getattr(option, "__agentguard_inject__", None) == "credentials":
            return "credentials"
    return None


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """Resolved hints. Names local to the function that defines the tool are found through its frame."""
    target: Any = function
    if not hasattr(target, "__annotations__") and not isinstance(target, type):
        target = getattr(target, "func", None) or type(target).__call__
    qualified = str(getattr(target, "__qualname__", ""))
    local: dict[str, Any] = {}
    frame = sys._getframe(1)
    while True:
        try:
            return typing.get_type_hints(target, localns=local or None, include_extras=True)
        except NameError as error:
            # walk outwards: each frame adds the names that nearer ones do not have
            if frame.f_back is None:
                raise ToolDefinitionError(
                    f"{where}: the type hints cannot be resolved ({error}). Import the type at run time "
                    "(not under TYPE_CHECKING) or give input_schema= and output_schema=.",
                    code="AG218",
                ) from error
            frame = frame.f_back
            if qualified.startswith(f"{frame.f_code.co_qualname}."):  # a function or class body around it
                local = {**frame.f_locals, **local}
        except Exception as error:
            raise ToolDefinitionError(f"{where}: the type hints cannot be resolved ({error}).", code="AG218") from error


def _admits_none(hint: Any) -> bool:
    if hint is None or hint is NoneType or hint is Any:
        return True
    if get_origin(hint) in (Union, UnionType, Annotated):
        return any(_admits_none(option) for option in get_args(hint))
    return get_origin(hint) is Literal and None in get_args(hint)


def read_signature(function: Callable[..., Any], where: str, *, method: bool, open_keywords: bool) -> Signature:
    """Read a function's parameters.

    Args:
        function: The raw function, bound method or callable object.
        where: How messages name it.
        method: Leave the first parameter out, it is the instance.
        open_keywords: ``**kwargs`` is permitted, because the schema is given.

    Raises:
        ToolDefinitionError: AG218, a parameter cannot be represented in a schema.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise ToolDefinitionError(f"{where}: has no signature that can be read ({error})", code="AG217") from error
    hints = _hints(function, where)
    found = list(signature.parameters.values())
    kept = found[:1] if method else []
    parameters: list[Parameter] = []
    injected: dict[str, Injected] = {}
    variadic = False
    for parameter in found[len(kept) :]:
        if parameter.kind is parameter.VAR_POSITIONAL or (
            parameter.kind is parameter.VAR_KEYWORD and not open_keywords
        ):
            star = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise ToolDefinitionError(
                f"{where}: {star}{parameter.name} has no place in a schema, so it could not be governed; name each "
                "parameter, take one list or dict"
                + ("" if star == "*" else ", or describe the keywords with input_schema="),
                code="AG218",
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            variadic = True
            kept.append(parameter)
            continue
        hint = hints.get(parameter.name, Any)
        injection = _injection(hint)
        if injection is not None:
            if injection in injected.values() or parameter.kind is parameter.POSITIONAL_ONLY:
                raise ToolDefinitionError(
                    f"{where}: {parameter.name} cannot be injected; have one {injection} parameter, passed by keyword",
                    code="AG220",
                )
            injected[parameter.name] = injection
            continue
        kept.append(parameter)
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        if isinstance(default, FieldInfo):
            hint = Annotated[hint, default]
            default = default.get_default(call_default_factory=True) if not default.is_required() else PydanticUndefined
            required = default is PydanticUndefined
        if not required and default is None and not _admits_none(hint):
            hint = hint | None if isinstance(hint, type) else Union[hint, None]  # noqa: UP007 - not every hint has |
        parameters.append(
            Parameter(
                parameter.name,
                hint,
                required,
                None if required else default,
                parameter.kind is not parameter.KEYWORD_ONLY,
                parameter.kind is not parameter.POSITIONAL_ONLY,
            )
        )
    returns = hints.get("return", signature.empty)
    return Signature(tuple(parameters), injected, returns, variadic, signature.replace(parameters=kept))


def _adapter(hint: Any, where: str, code: str, config: ConfigDict | None = None) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=config)
    except (PydanticUserError, NameError, TypeError) as error:
        if config is not None and getattr(error, "code", None) == "type-adapter-config-unused":
            return _adapter(hint, where, code)  # models bring their own
        text = str(error).split("\n", 1)[0]
        raise ToolDefinitionError(
            f"{where}: the type has no JSON form ({text}). Use JSON types, pydantic models or dataclasses, or "
            f"give {'output_schema=' if code == 'AG223' else 'input_schema='}.",
            code=code,
        ) from error


def _json_schema(adapter: TypeAdapter[Any], mode: Literal["validation", "serialization"], where: str, code: str) -> Any:
    try:
        return adapter.json_schema(mode=mode, schema_generator=_Schemas)
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        text = str(error).split("\n", 1)[0]
        raise ToolDefinitionError(f"{where}: the type has no JSON Schema ({text}).", code=code) from error


def _stable(core: Any) -> bool:
    for node in walk(core):
        kind = node.get("type")
        if isinstance(kind, str) and kind not in _STABLE:
            return False
        if node.get("serialization") or node.get("serialization_exclude") or node.get("computed_fields"):
            return False
        if node.get("custom_init") or node.get("post_init") or node.get("root_model"):
            return False
        if node.get("validation_alias") != node.get("serialization_alias"):
            return False
    return True


class SignatureInput:
    """Checks arguments against the parameters of a function."""

    __slots__ = ("_adapter", "_count", "_defaults", "_known", "_names", "_stable", "schema", "validate")

    def __init__(self, signature: Signature, where: str) -> None:
        fields = {p.name: p.hint if p.required else NotRequired[p.hint] for p in signature.parameters}
        make: Any = TypedDict  # type checkers want a literal
        shape = make("Arguments", fields)
        shape.__pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
        self._adapter: TypeAdapter[dict[str, Any]] = _adapter(shape, where, "AG218")
        self.schema: dict[str, Any] = _json_schema(self._adapter, "validation", where, "AG218")
        self.schema.pop("title", None)
        self._names = frozenset(fields)
        properties = self.schema.setdefault("properties", {})
        if set(properties) != self._names:
            raise ToolDefinitionError(
                f"{where}: an alias renames an argument; tools are called by the names of their parameters",
                code="AG218",
            )
        for node in walk(self.schema):
            if isinstance(node.get("properties"), dict) and node.get("type") == "object":
                node.setdefault("additionalProperties", False)
            if node.get("format") == "password":
                raise ToolDefinitionError(
                    f"{where}: a secret cannot be an argument, the model would have to know it; declare "
                    'credentials=["..."] and take a Credentials parameter',
                    code="AG220",
                )
        core = _arguments_core(self._adapter.core_schema)
        self._stable = _stable(self._adapter.core_schema)
        self._known = property_names(self.schema)
        self._count = len(fields)
        self._defaults = self._read_defaults(signature, where)
        for name, value in self._defaults.items():
            properties[name]["default"] = value
        flat = core is not None and all(_is_scalar(item["schema"]) for item in core["fields"].values())
        self.validate: Callable[[Mapping[str, Any]], Validated] = self._scalars(core) if flat else self._through_json
        """Checks arguments and fills in defaults; raises :class:`ArgumentsInvalid` when they do not fit."""

    def _read_defaults(self, signature: Signature, where: str) -> dict[str, Any]:
        defaults: dict[str, Any] = {}
        for parameter in signature.parameters:
            if parameter.required:
                continue
            adapter = _adapter(parameter.hint, where, "AG218")
            try:
                form = Plain(instances=True).copy(parameter.default)
                value = adapter.validate_json(to_json(form), strict=True)
                defaults[parameter.name] = adapter.dump_python(value, mode="json", by_alias=True)
            except (ArgumentsInvalid, ValidationError, PydanticSerializationError) as error:
                raise ToolDefinitionError(
                    f"{where}: the default of {parameter.name} is not a value that a caller could pass; policy "
                    "must see it like any other argument. Use a JSON value of the declared type, or None.",
                    code="AG218",
                ) from error
        return defaults

    def _scalars(self, core: Any) -> Callable[[Mapping[str, Any]], Validated]:
        """One pass through pydantic-core; only immutable values come out, so one dict serves for both."""
        validate = SchemaValidator(_bounded(core)).validate_python
        count, defaults = self._count, self._defaults
        new: Any = tuple.__new__  # a NamedTuple's own constructor takes half a pass more

        def check(arguments: Mapping[str, Any]) -> Validated:
            try:
                result = validate(arguments)
            except ValidationError as error:
                if isinstance(arguments, Mapping) and not isinstance(arguments, dict):
                    return check(dict(arguments))
                raise ArgumentsInvalid(problems_of(error, self._known, self._names)) from None
            if len(result) != count:
                result = {**defaults, **result}
            validated: Validated = new(Validated, (result, result))
            return validated

        return check

    def _through_json(self, arguments: Mapping[str, Any]) -> Validated:
        if not isinstance(arguments, Mapping):
            raise ArgumentsInvalid([Problem("", "must be an object")])
        plain = Plain(instances=True, known=self._known)
        given = plain.copy(arguments)
        for name in given:
            if name not in self._names:
                raise ArgumentsInvalid([unknown_argument(name, self._names)])
        for name, default in self._defaults.items():
            if name not in given:
                given[name] = default
        kwargs, effective = self._parsed(given)
        if not self._stable:
            # What runs is computed from what is decided on, and computing it twice must change nothing.
            kwargs, again = self._parsed(effective)
            if again != effective:
                raise ArgumentsInvalid(
                    [
                        Problem(
                            "",
                            "cannot be written as JSON and read back without a change",
                            "a validator or serializer of the tool's own types is not idempotent",
                        )
                    ]
                )
        _refuse_changed(given, effective, self._known)
        for path, original in plain.converted:
            part = at(kwargs, path)
            if type(part) in (str, int, float, bool) and not isinstance(original, type(part)):
                raise ArgumentsInvalid(
                    [Problem(dotted(path, self._known), "must be a JSON value", f"found {shown(original)}")]
                )
        return Validated(kwargs, effective)

    def _parsed(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            kwargs = self._adapter.validate_json(to_json(given), strict=True)
            return kwargs, self._adapter.dump_python(kwargs, mode="json", by_alias=True)
        except ValidationError as error:
            raise ArgumentsInvalid(problems_of(error, self._known, self._names)) from None
        except Exception as error:  # validators and serializers of the tool's own types may raise anything
            raise ArgumentsInvalid(
                [Problem("", "cannot be read", f"{type(error).__name__}: {shown(error)}")]
            ) from error


def _arguments_core(core: Any) -> Any:
    while core.get("type") == "definitions":
        core = core["schema"]
    return core if core.get("type") == "typed-dict" else None


def _is_scalar(core: Mapping[str, Any]) -> bool:
    if "serialization" in core:
        return False
    if core["type"] == "nullable":
        return _is_scalar(core["schema"])
    if core["type"] == "literal":
        return all(type(item) in (str, NoneType) for item in core["expected"])  # 1, 1.0 and True are equal
    return core["type"] in _SCALARS


def _bounded(core: Any) -> Any:
    """Scalars that pydantic-core checks for what cannot be written down: lone surrogates and endless integers."""
    kind = core["type"]
    if kind == "typed-dict":
        fields = {name: {**item, "schema": _bounded(item["schema"])} for name, item in core["fields"].items()}
        return {**core, "fields": fields}
    if kind == "nullable":
        return {**core, "schema": _bounded(core["schema"])}
    if kind == "str":  # any length bound makes it decode the text
        return {"min_length": 0, **core}
    if kind == "int":
        return {
            **({} if "lt" in core else {"le": MAX_INT}),
            **({} if "gt" in core else {"ge": -MAX_INT}),
            **core,
        }
    return core


def _refuse_changed(given: Any, effective: Any, known: frozenset[str], path: tuple[Any, ...] = ()) -> None:
    """A model that ignores unknown keys must not swallow a misspelt one, nor an enumeration take ``True`` for ``1``."""
    if isinstance(given, dict) and isinstance(effective, dict):
        for key, value in given.items():
            if key not in effective:
                raise ArgumentsInvalid([unknown_argument(key, effective, dotted(path, known))])
            _refuse_changed(value, effective[key], known, (*path, key))
    elif isinstance(given, list) and isinstance(effective, list) and len(given) == len(effective):
        for index, (value, kept) in enumerate(zip(given, effective, strict=True)):
            _refuse_changed(value, kept, known, (*path, index))
    elif isinstance(effective, (bool, int)) and type(given) is not type(effective):
        if isinstance(given, (bool, int, float)):
            kind = "a boolean" if isinstance(effective, bool) else "an integer"
            raise ArgumentsInvalid([Problem(dotted(path, known), f"must be {kind}", f"found {shown(given)}")])


class HintResult:
    """Checks results against the return hint, or only that they can be written as JSON when there is none."""

    __slots__ = ("_adapter", "_exact", "_look_for_nan", "schema")

    def __init__(self, returns: Any, where: str) -> None:
        self.schema: dict[str, Any] | None = None
        self._exact: type | None = None
        self._adapter: TypeAdapter[Any] | None = None
        if returns in (inspect.Signature.empty, Any, object, typing.NoReturn, typing.Never):
            return
        self._adapter = _adapter(returns, where, "AG223", ConfigDict(allow_inf_nan=False, ser_json_inf_nan="constants"))
        core: Any = self._adapter.core_schema
        self._exact = _EXACT.get(core["type"]) if set(core) == {"type"} else None
        kinds = {node.get("type") for node in walk(self._adapter.core_schema) if isinstance(node.get("type"), str)}
        # models write NaN as null unless they are told otherwise
        self._look_for_nan = bool(kinds & {"model", "dataclass", "typed-dict"} and kinds & {"float", "any"})
        schema: dict[str, Any] = _json_schema(self._adapter, "serialization", where, "AG223")
        schema.pop("title", None)
        self.schema = schema

    def check(self, value: Any) -> Output:
        """Check a result and write it as JSON.

        Raises:
            OutputInvalid: It is of another type than declared, or has no JSON form.
        """
        if type(value) is self._exact:
            try:
                output: Output = _output(Output, (value, to_json(value)))
                return output
            except Exception as error:  # a lone surrogate
                raise _unwritable(value, error) from error
        if self._adapter is None:
            return Output(value, written(value))
        try:
            checked = self._adapter.validator.validate_python(value, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            kind = shown(type(value).__name__)
            place = ".".join(map(str, first["loc"]))
            raise OutputInvalid(
                "The tool returned something that its definition does not permit.",
                f"the tool returned a {kind} that is not what its return hint says: "
                f"{shown(place, 120) + ': ' if place else ''}{shown(first['msg'], 200)}",
            ) from None
        except Exception as error:
            raise _unwritable(value, error) from error
        text = written(checked, self._adapter)
        if self._look_for_nan:
            # what the type writes as null is NaN or infinity in the value as Python has it
            written(self._adapter.dump_python(checked, by_alias=True, warnings=False))
        return Output(checked, text)

    def revive(self, text: str | bytes) -> Any:
        """The value out of a stored JSON text; plain JSON where it no longer fits the type (redacted, changed)."""
        if self._adapter is not None:
            try:
                return self._adapter.validate_json(text, strict=True)
            except Exception:
                return revived(text)
        return revived(text)


def revived(text: str | bytes) -> Any:
    """The plain JSON value of a stored text."""
    return from_json(text, allow_inf_nan=False)


def written(value: Any, adapter: TypeAdapter[Any] | None = None) -> bytes:
    """A result as JSON text.

    Raises:
        OutputInvalid: It has no JSON form.
    """
    try:
        if adapter is None:
            text = to_json(value, inf_nan_mode="constants")
        else:
            text = adapter.serializer.to_json(value, by_alias=True, warnings=False)
    except Exception as error:  # the value's own serializer may raise anything
        raise _unwritable(value, error) from error
    if b"NaN" in text or b"Infinity" in text:
        try:
            revived(text)
        except ValueError as error:
            raise _unwritable(value, error) from error
    return text


def _unwritable(value: Any, error: Exception) -> OutputInvalid:
    if inspect.iscoroutine(value):
        value.close()
        kind = "coroutine that nobody awaited; declare the function with async def"
    else:
        kind = shown(type(value).__name__)
    return OutputInvalid(
        "The tool returned something that cannot be recorded.",
        f"the result cannot be written as JSON: the tool returned a {kind} ({shown(error, 200)}). "
        "Return JSON values, pydantic models or dataclasses.",
    )
