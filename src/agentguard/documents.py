"""Strict YAML: text in, plain values with their positions out. The only module that imports ``yaml``.

What must stay true: whatever the text, the answer comes in well under a second and is a :class:`Document` or a
:class:`~agentguard.errors.PolicyError` that names the line. Nothing is guessed: no anchors, aliases, tags, merge
keys, directives or second documents; duplicate keys are errors; ``no``, ``on`` and ``10:00`` are strings; a scalar
that YAML dialects read differently (``0100``, ``1_000``, ``.nan``, ``True``) must be quoted or written plainly.

The tree is built from parser events without recursion and without PyYAML's composer and constructors: those recurse
(the C one crashes the process on deep input), resolve by YAML 1.1, and let the last duplicate key win.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentguard.domain.decisions import Finding
from agentguard.errors import PolicyError

MAX_BYTES = 256 * 1024
"""Size limit of one file in bytes."""

MAX_DEPTH = 20
"""How deep mappings and lists may nest."""

MAX_NODES = 50_000
"""How many scalars, lists and mappings one file may hold."""

CODES: dict[str, str] = {
    "AG100": "The file cannot be read: missing, empty, a directory, or without permission.",
    "AG101": "The text is not valid UTF-8, not in Unicode normal form C, or contains invisible or control characters.",
    "AG102": "The file is too large, too deeply nested, or has too many values.",
    "AG103": "The text is not valid YAML.",
    "AG104": "The same key appears twice in one mapping.",
    "AG105": "Anchors, aliases, tags, merge keys, directives and several documents in one file are not permitted.",
    "AG106": "A value that YAML dialects read differently must be quoted or written plainly.",
    "AG107": "Keys must be strings.",
}
"""Finding codes of this module, each with one sentence of explanation."""

Path: TypeAlias = tuple[str | int, ...]
"""Way from the root to a value: keys of mappings and indices of lists."""

Position: TypeAlias = tuple[int, int]
"""1-based line and column."""

_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]{0,14})\.[0-9]{1,15}")
# Everything that some YAML 1.1 or 1.2 reader takes for a number, whether or not it is one of the two above.
_NUMBERISH = re.compile(
    r"[-+]?(?:\.(?:inf|nan)|0x[0-9a-f_]+|0o[0-7_]+|0b[01_]+|(?=\.?[0-9])[0-9_]*\.?[0-9_]*(?:e[-+]?[0-9]+)?)",
    re.IGNORECASE,
)
_WORDS = frozenset({"True", "TRUE", "False", "FALSE", "Null", "NULL", "~"})
_LINE = re.compile(r"\r\n|\n|\r")
# C0, C1 and DEL without tab and line ends; NEL and the Unicode line ends; soft hyphen; zero-width and bidi controls;
# invisible operators; byte order mark; interlinear annotation; surrogates; noncharacters; tag characters.
_HIDDEN_CLASS = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f"
)
_HIDDEN = re.compile(f"[{_HIDDEN_CLASS}]")
_HIDDEN_IN_VALUE = re.compile(f"[{_HIDDEN_CLASS}\r]")
_EXCERPT = 160


def printable(text: str, limit: int = 80) -> str:
    """Shorten ``text`` to ``limit`` characters and replace what would not print as itself."""
    clean = _HIDDEN.sub("?", text).replace("\n", " ").replace("\r", " ").replace("\t", " ")
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Suggest the candidate that ``word`` was probably meant to be.

    Returns:
        ``did you mean "x"?`` or ``""`` when nothing is close.
    """
    # Comparing is quadratic in length and linear in candidates; a registry may hold thousands of names.
    likely = (c for c in candidates if abs(len(c) - len(word)) <= max(3, len(word) // 2))
    known = {c.casefold(): c for c in itertools.islice(likely, 1000)}
    close = difflib.get_close_matches(word[:128].casefold(), known, n=1, cutoff=0.6)
    return f'did you mean "{known[close[0]]}"?' if close else ""


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: its value, and where each part of it stands.

    Attributes:
        value: ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool`` or ``None``; every key is a ``str``.
        source: File name, or another name for where the text came from.
        text: The text as read.
    """

    value: Any
    source: str
    text: str = field(repr=False)
    _values: dict[Path, Position] = field(repr=False, default_factory=dict)
    _keys: dict[Path, Position] = field(repr=False, default_factory=dict)
    _lines: list[str] = field(repr=False, default_factory=list)

    def where(self, path: Path) -> Position:
        """Line and column (1-based) of the value at ``path``, or of the nearest part above it that exists."""
        while path not in self._values:
            if not path:
                return (1, 1)
            path = path[:-1]
        return self._values[path]

    def key_where(self, path: Path) -> Position:
        """Line and column (1-based) of the key that leads to ``path``; of the value itself for list items."""
        return self._keys.get(path) or self.where(path)

    def places(self) -> list[Position]:
        """Line and column (1-based) where each key and each value begins, in the order of the text."""
        return sorted({*self._values.values(), *self._keys.values()})

    def finding(
        self,
        code: str,
        message: str,
        path: Path,
        *,
        key: bool = False,
        hint: str = "",
        severity: Literal["error", "warning", "info"] = "error",
    ) -> Finding:
        """Describe something wrong at ``path``, with the source line.

        Args:
            code: Stable code.
            message: What is wrong and what to do.
            path: Where.
            key: Point at the key instead of at the value.
            hint: "did you mean" or another way out.
            severity: ``error`` keeps the file from loading.
        """
        position = self.key_where(path) if key else self.where(path)
        if not self._lines:
            self._lines.extend(_LINE.split(self.text))
        return _finding(code, message, self.source, self._lines, position, hint, severity)


def _finding(
    code: str,
    message: str,
    source: str,
    lines: list[str],
    position: Position,
    hint: str = "",
    severity: Literal["error", "warning", "info"] = "error",
) -> Finding:
    line, column = position
    excerpt: str | None = None
    if line <= len(lines) and column <= _EXCERPT:
        excerpt = printable(lines[line - 1], _EXCERPT)
    return Finding(
        code=code,
        message=message,
        severity=severity,
        file=source,
        line=line,
        column=column,
        excerpt=excerpt,
        hint=hint,
    )


def _position(text: str, index: int) -> Position:
    before = _LINE.split(text[:index])
    return len(before), len(before[-1]) + 1


def _refuse(
    code: str, message: str, source: str, text: str = "", position: Position = (1, 1), hint: str = ""
) -> PolicyError:
    return PolicyError([_finding(code, message, source, _LINE.split(text) if text else [], position, hint)])


def _decode(text: str | bytes, source: str) -> str:
    if len(text) > MAX_BYTES:
        raise _too_large(source)
    if isinstance(text, bytes):
        raw = text
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            good = raw[: error.start].decode("utf-8")
            raise _refuse(
                "AG101",
                f"byte {error.start} is not UTF-8",
                source,
                good,
                _position(good, len(good)),
                "save the file as UTF-8",
            ) from None
    elif len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_large(source)
    text = text.removeprefix("\ufeff")
    hidden = _HIDDEN.search(text)
    if hidden:
        raise _refuse(
            "AG101",
            f"character U+{ord(hidden.group()):04X} is invisible or a control character and not permitted",
            source,
            text,
            _position(text, hidden.start()),
            "remove it",
        )
    return text


def _too_large(source: str) -> PolicyError:
    return _refuse("AG102", f"the file is larger than {MAX_BYTES // 1024} KiB", source, hint="split it into layers")


class _Open:
    """A mapping or list whose end has not been reached yet."""

    __slots__ = ("items", "key", "path")

    def __init__(self, items: dict[str, Any] | list[Any], path: Path) -> None:
        self.items = items
        self.path = path
        self.key: str | None = None


class _Builder:
    """Builds values and positions from parser events; refuses as soon as something is not permitted."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self.text = text
        self.values: dict[Path, Position] = {}
        self.keys: dict[Path, Position] = {}
        self.open: list[_Open] = []
        self.nodes = 0
        self.root: Any = None

    def refuse(self, code: str, message: str, at: Position, hint: str = "") -> PolicyError:
        return _refuse(code, message, self.source, self.text, at, hint)

    def place(self, at: Position) -> Path:
        """Path of the value that begins now."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.refuse("AG102", f"more than {MAX_NODES} values", at, "split the file into layers")
        if not self.open:
            return ()
        top = self.open[-1]
        if isinstance(top.items, list):
            return (*top.path, len(top.items))
        if top.key is None:
            raise self.refuse("AG107", "a mapping or list cannot be a key", at, "keys are strings")
        return (*top.path, top.key)

    def put(self, value: Any, path: Path, at: Position) -> None:
        self.values[path] = at
        if not self.open:
            self.root = value
            return
        top = self.open[-1]
        if isinstance(top.items, list):
            top.items.append(value)
        else:
            top.items[str(top.key)] = value
            top.key = None

    def begin(self, items: dict[str, Any] | list[Any], at: Position) -> None:
        path = self.place(at)
        if len(self.open) >= MAX_DEPTH:
            raise self.refuse("AG102", f"nested deeper than {MAX_DEPTH} levels", at)
        self.put(items, path, at)
        self.open.append(_Open(items, path))

    def scalar(self, value: str, plain: bool, at: Position) -> None:
        hidden = _HIDDEN_IN_VALUE.search(value)
        if hidden:
            raise self.refuse(
                "AG101", f"character U+{ord(hidden.group()):04X} is invisible or a control character", at, "remove it"
            )
        if not value.isascii() and not unicodedata.is_normalized("NFC", value):
            raise self.refuse("AG101", "text is not in Unicode normal form C (NFC)", at, "type the characters again")
        top = self.open[-1] if self.open else None
        if top is not None and isinstance(top.items, dict) and top.key is None:
            self.key(top, top.items, value, plain, at)
        else:
            self.put(self.resolve(value, at) if plain else value, self.place(at), at)

    def key(self, top: _Open, items: dict[str, Any], value: str, plain: bool, at: Position) -> None:
        self.nodes += 1
        if plain and value == "<<":
            raise self.refuse("AG105", "merge keys (<<) are not permitted", at, "write the keys out")
        if plain and not isinstance(self.resolve(value, at), str):
            raise self.refuse("AG107", f"key {printable(value)} is not a string", at, "put it in quotes")
        if value in items:
            line = self.keys[(*top.path, value)][0]
            raise self.refuse("AG104", f'key "{printable(value)}" is there twice', at, f"first in line {line}")
        top.key = value
        self.keys[(*top.path, value)] = at

    def resolve(self, text: str, at: Position) -> Any:
        """Value of a plain scalar: YAML 1.2's JSON types, and everything else is a string."""
        if text in ("", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        first = text[0]
        if first in "-+.0123456789":
            if _INT.fullmatch(text):
                return int(text)
            if _FLOAT.fullmatch(text):
                return float(text)
            if _NUMBERISH.fullmatch(text):
                raise self.refuse(
                    "AG106",
                    f"{printable(text, 40)} is read differently by different YAML readers",
                    at,
                    "write it in plain decimal digits (at most 18), or put it in quotes if it is text",
                )
        elif text in _WORDS:
            plain = "null" if text in ("~", "Null", "NULL") else text.lower()
            raise self.refuse(
                "AG106",
                f"{text} is read differently by different YAML readers",
                at,
                f'write {plain}, or "{text}" in quotes if it is text',
            )
        return text


def load(text: str | bytes, source: str = "<string>") -> Document:
    """Parse strict YAML.

    Args:
        text: At most 256 KiB of UTF-8.
        source: Name for messages, usually the file name.

    Raises:
        PolicyError: The text is not what this module's docstring permits (AG100 to AG107).
    """
    import yaml

    text = _decode(text, source)
    builder = _Builder(source, text)
    # libyaml's parser is a state machine without recursion; only its composer, which is not used here, recurses.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            mark: Any = event.start_mark
            at = (mark.line + 1, mark.column + 1)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise builder.refuse("AG105", "anchors and aliases are not permitted", at, "write the value out")
            if getattr(event, "tag", None) is not None:
                raise builder.refuse("AG105", "tags (!...) are not permitted", at, "quote text that begins with !")
            if isinstance(event, yaml.ScalarEvent):
                builder.scalar(event.value, not event.style, at)
            elif isinstance(event, yaml.MappingStartEvent):
                builder.begin({}, at)
            elif isinstance(event, yaml.SequenceStartEvent):
                builder.begin([], at)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                builder.open.pop()
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise builder.refuse("AG105", "a second document (---) is not permitted", at, "use two files")
                if event.version or event.tags:
                    raise builder.refuse("AG105", "directives (%) are not permitted", at, "remove the line")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise builder.refuse("AG103", f"not valid YAML: {printable(str(error.problem), 120)}", at) from None
    except yaml.YAMLError as error:
        raise builder.refuse("AG103", f"not valid YAML: {printable(str(error), 120)}", (1, 1)) from None
    if builder.root is None:
        raise _refuse("AG100", "the file is empty", source, hint="a policy begins with: version: 1")
    return Document(builder.root, source, text, builder.values, builder.keys)


def load_file(path: str | os.PathLike[str]) -> Document:
    """Read and parse a strict YAML file.

    Raises:
        PolicyError: The file cannot be read (AG100) or parsed (AG101 to AG107).
    """
    source = os.fspath(path)
    try:
        # A FIFO or device could block for ever, so what is not a regular file is not even opened.
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise _refuse("AG100", f"{printable(source, 200)} is not a regular file", source)
        with open(source, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _refuse("AG100", f"{printable(source, 200)} does not exist", source, hint="check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refuse("AG100", f"{printable(source, 200)} cannot be read: {reason}", source) from None
    return load(data, source)
