"""One value, one sequence of bytes: the forms that digests are taken over.

``dumps`` is RFC 8785 (JSON Canonicalization Scheme): keys sorted by UTF-16 code units, ECMAScript numbers,
no insignificant white space. Integers beyond 2**53 are written in full, where the RFC leaves them out.
``tagged`` writes the type of every scalar too, so that ``1``, ``1.0``, ``True`` and ``"1"`` differ; approvals
and idempotency fingerprints are bound to that form.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

_string = json.JSONEncoder(ensure_ascii=False).encode

MAX_DEPTH = 64
"""Values nested deeper than this are refused."""


class NotCanonical(ValueError):
    """The value has no canonical form: NaN, infinity, a lone surrogate, a foreign type, or too deep."""


def _number(value: float) -> str:
    # ECMAScript Number::toString as RFC 8785 section 3.2.2.3 asks for.
    if not math.isfinite(value):
        raise NotCanonical("NaN and infinity have no canonical form")
    if value == 0:
        return "0"
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    digits, _, fraction = mantissa.lstrip("-").partition(".")
    if fraction == "0":
        fraction = ""
    point = len(digits) + int(exponent or 0)
    digits = digits + fraction
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    digits = stripped.rstrip("0")
    if 0 < point <= 21:
        body = digits.ljust(point, "0")[:point] + ("." + digits[point:] if len(digits) > point else "")
    elif -6 < point <= 0:
        body = "0." + "0" * -point + digits
    else:
        power = point - 1
        body = digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + f"e{'+' if power > 0 else '-'}{abs(power)}"
    return sign + body


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be", "surrogatepass")


def _write(value: Any, out: list[str], tags: bool, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH} levels")
    kind = type(value)
    if kind is str:
        out.append(_string(value))
    elif value is None:
        out.append("null")
    elif kind is bool:
        out.append("true" if value else "false")
    elif kind is int:
        out.append(f"i{value}" if tags else str(value))
    elif kind is float:
        out.append(f"f{_number(value)}" if tags else _number(value))
    elif isinstance(value, Mapping):
        out.append("{")
        for index, key in enumerate(sorted(value, key=_key)):
            out.append(("," if index else "") + _string(key) + ":")
            _write(value[key], out, tags, depth + 1)
        out.append("}")
    elif isinstance(value, (list, tuple)):
        out.append("[")
        for index, item in enumerate(value):
            if index:
                out.append(",")
            _write(item, out, tags, depth + 1)
        out.append("]")
    elif isinstance(value, str):  # subclasses (enums and the like) as their plain value
        _write(str.__str__(value), out, tags, depth)
    elif isinstance(value, (int, float)):
        _write(int(value) if isinstance(value, int) else float(value), out, tags, depth)
    else:
        raise NotCanonical(f"{kind.__name__} is not a JSON value")


def _key(key: Any) -> bytes:
    if not isinstance(key, str):
        raise NotCanonical("object keys must be strings")
    return _utf16(key)


def _encode(value: Any, tags: bool) -> bytes:
    out: list[str] = []
    _write(value, out, tags, 0)
    try:
        return "".join(out).encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotCanonical("a lone surrogate has no canonical form") from error


def dumps(value: Any) -> bytes:
    """Encode a JSON value canonically (RFC 8785).

    Raises:
        NotCanonical: The value has no canonical form.
    """
    return _encode(value, False)


def tagged(value: Any) -> bytes:
    """Encode a JSON value canonically with the type of each number, so that equal-looking values differ.

    Raises:
        NotCanonical: The value has no canonical form.
    """
    return _encode(value, True)


def sha256(data: bytes) -> str:
    """SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """SHA-256 (hex) over the canonical form of a JSON value.

    Raises:
        NotCanonical: The value has no canonical form.
    """
    return sha256(dumps(value))


def joined(*parts: str) -> str:
    """One key out of several parts, each with its length before it, so that no two lists collide."""
    return "".join(f"{len(part)}:{part}" for part in parts)
