"""What decorators and files say about a tool, read strictly into the fields of a ``ToolSpec``.

What must stay true: a setting is either understood completely or refused with the name of the tool, the
setting and a way out. Nothing is guessed, nothing is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn, cast

from agentguard import units
from agentguard.domain.plans import EFFECTS, RISKS, Breaker, Retry, ToolSpec
from agentguard.errors import ToolDefinitionError
from agentguard.tools.schema import did_you_mean, shown

_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}", re.ASCII)
_LABEL = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,254}[^\s\x00-\x1f\x7f])?")

MAX_ATTEMPTS = 100
"""More attempts than this are taken for a mistake."""


class SettingError(ToolDefinitionError):
    """A definition error that knows which setting it is about.

    Attributes:
        setting: Name of the setting, or ``""``.
    """

    def __init__(self, message: str, *, code: str, setting: str = "") -> None:
        super().__init__(message, code=code)
        self.setting = setting


def fail(where: str, code: str, message: str, setting: str = "") -> NoReturn:
    """Raise the definition error of one tool."""
    raise SettingError(f"{where}: {message}", code=code, setting=setting)


def check_name(where: str, value: Any, what: str = "name") -> str:
    """A tool name, or AG210."""
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        fail(
            where,
            "AG210",
            f"{what} {shown(value)} is not a tool name; use 1 to 128 of letters, digits and _ . : / - "
            '(such as "orders.get")',
        )
    return value


def _word(where: str, key: str, value: Any, known: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        fail(
            where, "AG211", f"{key} must be one of {', '.join(known)}, not {shown(value)}{f' ({hint})' if hint else ''}"
        )
    return value


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        fail(where, "AG211", f"{key} must be text, not {shown(value)}")
    return value


def _label(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or _LABEL.fullmatch(value) is None:
        fail(where, "AG211", f"{key} must be a word of 1 to 256 printable characters, not {shown(value)}")
    return value


def _labels(where: str, key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (list, tuple, set, frozenset)):
        fail(where, "AG211", f"{key} must be a list of words, not {shown(value)}")
    words = [_label(where, key, item) for item in value]
    if len(set(words)) != len(words):
        fail(where, "AG211", f"{key} names something twice: {shown(words)}")
    return tuple(sorted(words))


def _flag(where: str, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        fail(where, "AG211", f"{key} must be true or false, not {shown(value)}")
    return value


def _version(where: str, key: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _label(where, key, value)


def _count(where: str, key: str, value: Any, most: int = 1_000_000) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        fail(where, "AG216", f"{key} must be a whole number from 1 to {most}, not {shown(value)}")
    return value


def _unit(where: str, key: str, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ToolDefinitionError(f"{where}: {key}: {error}", code="AG215") from error


def _duration(where: str, key: str, value: Any, *, zero: bool = False) -> float:
    duration: float = _unit(where, key, value, units.seconds)
    if not duration and not zero:
        fail(where, "AG215", f"{key} must be longer than zero; leave it out for no limit")
    return duration


def _money(where: str, key: str, value: Any) -> Decimal:
    _unit(where, key, value, units.nano_usd)
    return Decimal(value)


def _parts(where: str, key: str, value: Mapping[Any, Any], known: Sequence[str]) -> None:
    for part in value:
        if part not in known:
            hint = did_you_mean(part, known) if isinstance(part, str) else ""
            fail(where, "AG211", f"{key} has no setting {shown(part)} ({hint or 'known: ' + ', '.join(known)})")


def _retry(where: str, key: str, value: Any) -> Retry:
    retry: Retry
    if isinstance(value, Mapping):
        _parts(where, key, value, ("attempts", "wait", "max_wait", "jitter", "on"))
        fields: dict[str, Any] = {}
        if "attempts" in value:
            fields["attempts"] = value["attempts"]
        for part, name in (("wait", "wait_s"), ("max_wait", "max_wait_s"), ("jitter", "jitter_s")):
            if part in value:
                fields[name] = _duration(where, f"{key}.{part}", value[part], zero=True)
        if "on" in value:
            on = value["on"]
            fields["on"] = tuple(on) if isinstance(on, (list, tuple)) else (on,)
        retry = Retry(**fields)
    elif isinstance(value, Retry):
        retry = value
    else:
        retry = Retry(attempts=_count(where, key, value, MAX_ATTEMPTS))
    _count(where, f"{key}.attempts", retry.attempts, MAX_ATTEMPTS)
    for name in ("wait_s", "max_wait_s", "jitter_s"):
        _duration(where, f"{key}.{name}", getattr(retry, name), zero=True)
    if not retry.on or not all(isinstance(item, type) and issubclass(item, Exception) for item in retry.on):
        fail(where, "AG211", f"{key}.on must be exception classes (subclasses of Exception), not {shown(retry.on)}")
    return retry


def _breaker(where: str, key: str, value: Any) -> Breaker:
    breaker: Breaker
    if isinstance(value, Mapping):
        _parts(where, key, value, ("failures", "reset"))
        fields: dict[str, Any] = {}
        if "failures" in value:
            fields["failures"] = value["failures"]
        if "reset" in value:
            fields["reset_s"] = _duration(where, f"{key}.reset", value["reset"])
        breaker = Breaker(**fields)
    elif isinstance(value, Breaker):
        breaker = value
    else:
        breaker = Breaker(failures=_count(where, key, value))
    _count(where, f"{key}.failures", breaker.failures)
    _duration(where, f"{key}.reset_s", breaker.reset_s)
    return breaker


def _trust(where: str, key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        fail(where, "AG211", f'{key} must map output fields to "trusted" or "untrusted", not {shown(value)}')
    return {
        _label(where, key, path): _word(where, f"{key}[{shown(path)}]", trust, ("trusted", "untrusted"))
        for path, trust in sorted(value.items(), key=lambda item: str(item[0]))
    }


def _idempotency(where: str, key: str, value: Any) -> tuple[str, ...] | Callable[..., str]:
    if callable(value):
        return cast("Callable[..., str]", value)
    names = _labels(where, key, value)
    if not names:
        fail(where, "AG219", f"{key} must name at least one argument, or be a function of the arguments")
    return names


def _sandbox(where: str, key: str, _: Any) -> NoReturn:
    fail(
        where,
        "AG221",
        "a sandbox cannot be enforced in this version, so it is refused rather than ignored; remove the setting and "
        "run the body in a process or container that you limit yourself",
        key,
    )


_READERS: dict[str, tuple[str, Callable[[str, str, Any], Any]]] = {
    "description": ("description", _text),
    "permissions": ("permissions", _labels),
    "owner": ("owner", _label),
    "version": ("version", _version),
    "deprecated": ("deprecated", _flag),
    "replaced_by": ("replaced_by", lambda where, key, value: check_name(where, value, key)),
    "cost_usd": ("cost_usd", _money),
    "effect": ("effect", lambda where, key, value: _word(where, key, value, EFFECTS)),
    "risk": ("risk", lambda where, key, value: _word(where, key, value, RISKS)),
    "output_labels": ("output_labels", _labels),
    "output_trust": ("output_trust", _trust),
    "cosmetic_args": ("cosmetic_args", _labels),
    "timeout": ("timeout_s", _duration),
    "retry": ("retry", _retry),
    "breaker": ("breaker", _breaker),
    "concurrency": ("concurrency", _count),
    "fallback": ("fallback", lambda where, key, value: check_name(where, value, key)),
    "sandbox": ("sandbox", _sandbox),
    "credentials": ("credentials", _labels),
    "idempotency_key": ("idempotency_key", _idempotency),
    "inline": ("inline", _flag),
    "audit": ("audit", _flag),
}

SETTINGS = tuple(_READERS)
"""Names of the settings that decorators and files share."""


def read_settings(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read settings into fields of a ``ToolSpec``; ``None`` counts as not given.

    Args:
        where: How messages name the tool.
        given: Setting to value, names as in ``@tool``.

    Raises:
        ToolDefinitionError: AG211 to AG221, a setting is unknown or its value cannot be understood.
    """
    fields: dict[str, Any] = {}
    for key, value in given.items():
        if key not in _READERS:
            hint = did_you_mean(key, SETTINGS) if isinstance(key, str) else ""
            fail(where, "AG229", f"no setting is called {shown(key)}{f' ({hint})' if hint else ''}", key)
        if value is not None:
            field, read = _READERS[key]
            try:
                fields[field] = read(where, key, value)
            except ToolDefinitionError as error:
                raise SettingError(str(error), code=error.code, setting=key) from error
    return fields


def check_spec(where: str, spec: ToolSpec, *, known: frozenset[str] | None, is_async: bool) -> None:
    """Check what several settings say together.

    Args:
        where: How messages name the tool.
        spec: The complete entry.
        known: Names of the arguments, or ``None`` when the schema leaves them open.
        is_async: The body is a coroutine function.

    Raises:
        ToolDefinitionError: AG212 to AG225.
    """
    if spec.retry is not None and spec.retry.attempts > 1 and spec.effect == "irreversible":
        fail(
            where,
            "AG212",
            "an irreversible tool is not retried: a second attempt could do it twice. Declare "
            'effect="idempotent" (with a key the service honours) or effect="read", or remove retry',
            "retry",
        )
    if not spec.audit and spec.effect not in ("pure", "read"):
        fail(
            where,
            "AG213",
            f'audit can only be off for effect "pure" or "read", and this tool is {spec.effect}',
            "audit",
        )
    if spec.inline and spec.timeout_s is not None and not is_async:
        fail(
            where,
            "AG214",
            "an inline tool cannot have a timeout: it runs in the event loop's own thread, where nothing can stop it. "
            "Remove one of the two",
            "inline",
        )
    for key, names in (
        ("cosmetic_args", spec.cosmetic_args),
        ("idempotency_key", () if callable(spec.idempotency_key) else spec.idempotency_key or ()),
    ):
        for name in names:
            if known is not None and name not in known:
                hint = did_you_mean(name, known) or f"known: {', '.join(sorted(known)) or 'none'}"
                fail(where, "AG219", f"{key} names {shown(name)}, which is not an argument ({hint})", key)
    if spec.replaced_by is not None and not spec.deprecated:
        fail(where, "AG225", "replaced_by needs deprecated=True", "replaced_by")
    if spec.replaced_by == spec.name:
        fail(where, "AG225", "a tool cannot replace itself", "replaced_by")
    if spec.fallback == spec.name:
        fail(where, "AG227", "a tool cannot be its own fallback", "fallback")
    if spec.sandbox is not None:
        _sandbox(where, "sandbox", spec.sandbox)


def tightened(where: str, spec: ToolSpec, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a file only completes or tightens what the decorator declares.

    Args:
        where: How messages name the tool.
        spec: What the decorator declares.
        changes: Fields from :func:`read_settings`.

    Returns:
        The fields to replace.

    Raises:
        ToolDefinitionError: AG228, a field would be loosened.
    """
    fields = dict(changes)

    def loosened(key: str, declared: Any, wanted: Any) -> NoReturn:
        fail(
            where,
            "AG228",
            f"{key} would be loosened from {shown(declared)} to {shown(wanted)}; a file can only tighten what the "
            "decorator declares. Change the decorator",
            key.split("[", maxsplit=1)[0],
        )

    for key, order in (("effect", EFFECTS), ("risk", RISKS)):
        if key in fields and order.index(fields[key]) < order.index(getattr(spec, key)):
            loosened(key, getattr(spec, key), fields[key])
    if "timeout_s" in fields and spec.timeout_s is not None and fields["timeout_s"] > spec.timeout_s:
        loosened("timeout", spec.timeout_s, fields["timeout_s"])
    if "audit" in fields and spec.audit and not fields["audit"]:
        loosened("audit", True, False)
    if "inline" in fields and fields["inline"] and not spec.inline:
        loosened("inline", False, True)
    if "deprecated" in fields and spec.deprecated and not fields["deprecated"]:
        loosened("deprecated", True, False)
    if "cost_usd" in fields and fields["cost_usd"] < spec.cost_usd:
        loosened("cost_usd", str(spec.cost_usd), str(fields["cost_usd"]))
    if "concurrency" in fields and spec.concurrency is not None and fields["concurrency"] > spec.concurrency:
        loosened("concurrency", spec.concurrency, fields["concurrency"])
    if "retry" in fields and spec.retry is not None and fields["retry"].attempts > spec.retry.attempts:
        loosened("retry", spec.retry.attempts, fields["retry"].attempts)
    if "breaker" in fields and spec.breaker is not None and fields["breaker"].failures > spec.breaker.failures:
        loosened("breaker", spec.breaker.failures, fields["breaker"].failures)
    for key in ("permissions", "output_labels"):
        if key in fields:  # requirements and labels add up
            fields[key] = tuple(sorted({*getattr(spec, key), *fields[key]}))
    if "output_trust" in fields:
        for path, trust in fields["output_trust"].items():
            if trust == "trusted" and spec.output_trust.get(path, "untrusted") != "trusted":
                loosened(f"output_trust[{path}]", "untrusted", "trusted")
        fields["output_trust"] = {**spec.output_trust, **fields["output_trust"]}
    for key in ("cosmetic_args", "credentials"):
        if key in fields and not set(fields[key]) <= set(getattr(spec, key)):
            loosened(key, getattr(spec, key), fields[key])
    if "idempotency_key" in fields and spec.idempotency_key not in (None, fields["idempotency_key"]):
        loosened("idempotency_key", spec.idempotency_key, fields["idempotency_key"])
    return fields
