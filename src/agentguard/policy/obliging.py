"""Doing what a decision demands of arguments and results: rewrite, clamp, redact.

Pure: values in, new values out; nothing given is changed. What cannot be carried out exactly is refused with
:class:`Unenforceable`, never skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agentguard.domain.decisions import NO_OBLIGATIONS, Obligations
from agentguard.policy.truth import kind

REDACTED = "[redacted]"
"""What stands in the place of a redacted value."""


class Unenforceable(ValueError):
    """An obligation cannot be carried out on these values; the call must not run."""


def tightest(obligations: Iterable[Obligations]) -> Obligations:
    """Merge obligations; of two that concern the same thing the tighter one wins.

    Raises:
        Unenforceable: Two of them contradict each other: disjoint clamps, different rewrites of one argument.
    """
    several = [o for o in obligations if o != NO_OBLIGATIONS]
    if len(several) < 2:
        return several[0] if several else NO_OBLIGATIONS
    clamps: dict[str, tuple[Any, Any]] = {}
    rewrites: dict[str, Any] = {}
    for item in several:
        for path, bounds in item.clamp:
            known = clamps.get(path, (None, None))
            low, high = _pick(max, bounds[0], known[0]), _pick(min, bounds[1], known[1])
            if low is not None and high is not None and low > high:
                raise Unenforceable(f"clamps of {path} contradict each other")
            clamps[path] = (low, high)
        for path, value in item.rewrite:
            if path in rewrites and (type(rewrites[path]), rewrites[path]) != (type(value), value):
                raise Unenforceable(f"rewrites of {path} contradict each other")
            rewrites[path] = value
    return Obligations(
        redact_arguments=_union(o.redact_arguments for o in several),
        redact_output=_union(o.redact_output for o in several),
        clamp=tuple(sorted(clamps.items())),
        rewrite=tuple(sorted(rewrites.items(), key=lambda pair: pair[0])),
        timeout_s=_least(o.timeout_s for o in several),
        memory_bytes=_least(o.memory_bytes for o in several),
        cpu=_least(o.cpu for o in several),
        network="none" if any(o.network for o in several) else None,
        messages=tuple(dict.fromkeys(m for o in several for m in o.messages)),
    )


def _pick(choose: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return choose(one, other)


def _least(values: Iterable[Any]) -> Any:
    return min((v for v in values if v is not None), default=None)


def _union(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({item for group in groups for item in group}))


def apply(obligations: Obligations, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that may run: rewritten, then clamped, then redacted.

    Returns:
        A new mapping; the parts that did not change are shared with ``arguments``.

    Raises:
        Unenforceable: A path leads through a scalar, or a value to be clamped is no number.
    """
    result: Any = dict(arguments)
    for path, value in obligations.rewrite:
        result = _replace(result, path.split("."), functools.partial(_put, value), create=True)
    for path, (low, high) in obligations.clamp:
        result = _replace(result, path.split("."), functools.partial(_clamped, low, high))
    for path in obligations.redact_arguments:
        result = _replace(result, path.split("."), lambda _: REDACTED)
    return result  # type: ignore[no-any-return]


def _put(new: Any, _old: Any) -> Any:
    return new


def _clamped(low: Any, high: Any, value: Any) -> Any:
    if kind(value) != "number":
        raise Unenforceable("a value to be clamped is not a number")
    if low is not None and value < low:
        return low
    return high if high is not None and value > high else value


def redact_output(paths: Sequence[str], value: Any) -> Any:
    """The result without what must not be seen; ``""`` stands for the whole result.

    A path that the result does not have is no error. A path that leads through something unexpected withholds the
    part it leads through, because what was meant may be inside.
    """
    for path in paths:
        if not path:
            return REDACTED
        value = _replace(value, path.split("."), lambda _: REDACTED, strict=False)
    return value


def _replace(
    value: Any,
    path: Sequence[str],
    change: Callable[[Any], Any],
    *,
    create: bool = False,
    strict: bool = True,
) -> Any:
    if not path:
        return change(value)
    step, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        copy = dict(value)
        if step == "*":
            for key, item in copy.items():
                copy[key] = _replace(item, rest, change, create=create, strict=strict)
        elif step in copy:
            copy[step] = _replace(copy[step], rest, change, create=create, strict=strict)
        elif create:
            if rest:
                raise Unenforceable(f"{step} is missing, so nothing inside it can be rewritten")
            copy[step] = change(None)
        return copy
    if isinstance(value, (list, tuple)) and (step == "*" or (step.isascii() and step.isdigit() and len(step) < 10)):
        items = list(value)
        for index in range(len(items)) if step == "*" else [int(step)]:
            if index < len(items):
                items[index] = _replace(items[index], rest, change, create=create, strict=strict)
            elif create:
                raise Unenforceable(f"there is no item {step} to rewrite")
        return items
    if value is None and not create:
        return None
    if strict:
        raise Unenforceable(f"{step} cannot be reached: it is not inside a list or an object")
    return REDACTED
