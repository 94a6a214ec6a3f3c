"""Removes secrets from what is recorded, shown or sent on: known values first, then the look of common keys.

What must stay true: while no secret is known, redaction costs next to nothing; a value without secrets comes
back as the same object; what comes back is still JSON; every pattern runs in linear time on any input.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

from pydantic_core import to_json

REDACTED: Final = "[redacted]"
"""What stands where a secret was."""

MIN_LENGTH: Final = 4
"""Shorter secrets are not searched for: replacing every ``a`` would destroy the record and hide nothing."""

MAX_DEPTH: Final = 128
"""Values nested deeper than this are refused."""


def _walk(value: Any, text: Callable[[str], str], depth: int = 0) -> Any:
    # Gives back the same object when nothing changed.
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels; it cannot be redacted")
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        shown = str(value)
        return value if text(shown) == shown else REDACTED
    if isinstance(value, bytes):
        shown = value.decode("utf-8", "surrogateescape")
        changed = text(shown)
        return value if changed == shown else changed.encode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        out: dict[Any, Any] = {}
        same = True
        for key, item in value.items():
            new_key = _walk(key, text, depth + 1)
            new_item = _walk(item, text, depth + 1)
            if new_key != key or new_item is not item:
                same = False
            while new_key in out:  # two secret keys must not swallow each other's values
                new_key = f"{new_key}+"
            out[new_key] = new_item
        return value if same else out
    if isinstance(value, (list, tuple)):
        items = [_walk(item, text, depth + 1) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _forms(secret: str) -> tuple[str, ...]:
    # The shapes in which a secret travels: as it is, within JSON (and JSON within JSON), Base64, in a URL, and as
    # Python shows it (the text of a KeyError is such a form).
    raw = secret.encode("utf-8", "surrogatepass")
    forms = {secret, repr(secret)[1:-1], ascii(secret)[1:-1], repr(raw)[2:-1]}
    for ascii_only in (True, False):
        once = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        forms |= {once, json.dumps(once, ensure_ascii=ascii_only)[1:-1]}
    forms |= {
        base64.b64encode(raw).decode("ascii").rstrip("="),
        base64.urlsafe_b64encode(raw).decode("ascii").rstrip("="),
    }
    quoted = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    forms |= quoted | {re.sub("%[0-9A-F]{2}", lambda m: m[0].lower(), form) for form in quoted}
    return tuple(forms)


class KnownSecrets:
    """The secrets that are in use now, and their removal from anything that leaves.

    Values are counted: a secret leased by two calls at once stays known until both have given it back.
    Safe for use from several threads; readers take no lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._forms: dict[str, tuple[str, ...]] = {}
        # Both are replaced as a whole, longest form first, so that a reader always sees a consistent list.
        self._texts: tuple[str, ...] = ()
        self._bytes: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"<KnownSecrets: {len(self._counts)} values>"

    def add(self, secret: str) -> bool:
        """Make a secret known, once more if it is known already.

        Returns:
            ``False`` when it is shorter than four characters and therefore not searched for.
        """
        if len(secret) < MIN_LENGTH:
            return False
        with self._lock:
            count = self._counts.get(secret, 0)
            self._counts[secret] = count + 1
            if not count:
                self._forms[secret] = _forms(secret)
                self._publish()
        return True

    def remove(self, secret: str) -> None:
        """Take back one ``add``; what was never added is ignored."""
        with self._lock:
            count = self._counts.get(secret, 0)
            if count > 1:
                self._counts[secret] = count - 1
            elif count:
                del self._counts[secret], self._forms[secret]
                self._publish()

    def _publish(self) -> None:
        forms = {form for group in self._forms.values() for form in group}
        self._texts = tuple(sorted(forms, key=len, reverse=True))
        self._bytes = tuple(form.encode("utf-8", "surrogatepass") for form in self._texts)

    def redact_text(self, text: str) -> str:
        """The text with every form of every known secret replaced."""
        for form in self._texts:
            if form in text:
                text = text.replace(form, REDACTED)
        return text

    def redact(self, value: Any) -> Any:
        """A JSON-like value with secrets replaced in strings, numbers and keys; the same object when there are none.

        Raises:
            ValueError: The value is nested deeper than 128 levels.
        """
        return _walk(value, self.redact_text) if self._texts else value

    def redact_bytes(self, data: bytes) -> bytes:
        """JSON bytes with secrets replaced; the same object when there are none.

        The result is JSON again: when a secret is found, the document is read and rewritten. What then cannot
        be read is withheld altogether (``"[redacted]"``).
        """
        if not any(form in data for form in self._bytes):
            return data
        try:
            value = json.loads(data)
            cleaned = self.redact(value)
            return data if cleaned is value else to_json(cleaned)
        except Exception:
            return f'"{REDACTED}"'.encode()


# Each pattern starts only where no character of its own class precedes, so that every run of characters is
# looked at a constant number of times: linear on any input. Bounded look-aheads ask for a digit, which words
# such as "sk-learn-contrib-something" lack.
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"), REDACTED),
    (
        re.compile(
            r"(?i)(aws_?secret_?access_?key[\"']?[ \t]{0,8}[=:][ \t]{0,8}[\"']?)[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])"
        ),
        rf"\g<1>{REDACTED}",
    ),
    (re.compile(r"(?<![A-Za-z0-9_])gh[pousr]_[A-Za-z0-9]{36,}"), REDACTED),
    (re.compile(r"(?<![A-Za-z0-9_])github_pat_[A-Za-z0-9_]{22,}"), REDACTED),
    (re.compile(r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]{0,64}[0-9])[A-Za-z0-9_-]{20,}"), REDACTED),
    (re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), REDACTED),
    (
        re.compile(r"(?i)(?<![A-Za-z0-9])(bearer[ \t]{1,4})(?=[A-Za-z._~+/=-]{0,256}[0-9])[A-Za-z0-9._~+/=-]{16,}"),
        rf"\g<1>{REDACTED}",
    ),
)
_HINTS: Final = re.compile(r"AKIA|ASIA|gh[pousr]_|github_pat_|sk-|eyJ|(?i:bearer|aws_?secret)|PRIVATE KEY")
_PEM_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_PEM_END: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----")


def _pem(text: str) -> str:
    # Not one expression: BEGIN without END, many times over, would make any such expression quadratic.
    out: list[str] = []
    place = 0
    while begin := _PEM_BEGIN.search(text, place):
        out += (text[place : begin.start()], REDACTED)
        end = _PEM_END.search(text, begin.end())
        place = end.end() if end else len(text)  # a key that was cut off is a key all the same
    return "".join(out) + text[place:] if out else text


def redact_patterns(text: str) -> str:
    """The text with everything replaced that looks like a common key or token."""
    if not _HINTS.search(text):
        return text
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return _pem(text)


class PatternRedactor:
    """Replaces what looks like a key: AWS, GitHub, ``sk-...``, JSON Web Tokens, PEM private keys, bearer tokens.

    A :class:`~agentguard.protocols.Redactor`. It is a second net under :class:`KnownSecrets`: it knows looks,
    not values, and rather misses an unusual key than destroys ordinary text.
    """

    def redact(self, value: Any) -> Any:
        """The value without what looks like a key; the same object when there is nothing.

        Raises:
            ValueError: The value is nested deeper than 128 levels.
        """
        return _walk(value, redact_patterns)
