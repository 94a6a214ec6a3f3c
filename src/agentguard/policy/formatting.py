"""The layout of policy files: the same file gets the same white space, quotes and order of settings, with its comments.

What must stay true: formatting never changes what a file says. The value of the whole file, the digest of its policy
and every comment are compared before and after, and formatting again changes nothing; a file for which that does not
hold is left as it is. Only lines that are understood are touched; block texts, for one, stay as they were written.
"""

from __future__ import annotations

import bisect
import re
from typing import Final

from agentguard.canonical import tagged
from agentguard.documents import Document, Path, load
from agentguard.errors import PolicyError
from agentguard.policy.loading import RULE_KEYS
from agentguard.policy.policies import Policy

_COMMENT: Final = re.compile(r"(\s*)#([^\s#!].*)")
_SINGLE: Final = re.compile(r"'([^'\"\\]*)'(?!')")


class NotFormatted(Exception):
    """A file that cannot be formatted without a doubt; the message says why."""


def format_text(text: str, source: str = "<string>") -> str:
    """A policy file in the canonical layout.

    * Line ends are line feeds; no white space at the ends of lines; one line end at the end of the file.
    * At most one empty line in a row, none at the beginning.
    * Comments have a space after their ``#``.
    * ``'text'`` becomes ``"text"`` where that is the same text.
    * The settings of a rule that has one per line stand in the order of the documentation: ``id``, ``description``,
      the verb, ``when``, and so on. Comments above a setting move with it.

    Args:
        text: The file.
        source: Its name, for messages.

    Raises:
        PolicyError: It is no policy file.
        NotFormatted: It would not be the same afterwards.
    """
    text = text.removeprefix("\ufeff")
    Policy.from_document(load(text, source))  # its shape is known from here on
    made = _once(text, source)
    _compare(text, made, source)
    if _once(made, source) != made:
        raise NotFormatted("formatting it twice would change it again")
    return made


def _once(text: str, source: str) -> str:
    lines = text.replace("\r\n", "\n").split("\n")
    document = _loaded(lines, source)
    lines = _ordered(lines, document)
    document = _loaded(lines, source)
    return _spaced(_quoted(lines, document), document)


def _loaded(lines: list[str], source: str) -> Document:
    try:
        return load("\n".join(lines), source)
    except PolicyError as error:
        # The text itself was read before: it is the rearranged one that is not.
        raise NotFormatted(f"its settings cannot be told apart: {error.findings[0].message}") from error


def _compare(before: str, after: str, source: str) -> None:
    old, new = load(before, source), _loaded(after.split("\n"), source)
    if tagged(old.value) != tagged(new.value):
        raise NotFormatted("its values would not be the same")
    if Policy.from_document(old).digest != Policy.from_document(new).digest:
        raise NotFormatted("its policy would not be the same")
    if sorted(map(_bare, _comments(before))) != sorted(map(_bare, _comments(after))):
        raise NotFormatted("a comment would be lost")


def _comments(text: str) -> list[str]:
    """Everything from a ``#`` to the end of its line; a ``#`` in a text counts too, and must survive as well."""
    return [line[line.index("#") :] for line in text.splitlines() if "#" in line]


def _bare(comment: str) -> str:
    return re.sub(r"[\s'\"]", "", comment)


# -- the order of settings ---------------------------------------------------------------------------------------------


def _ordered(lines: list[str], document: Document) -> list[str]:
    rules = document.value.get("rules") or []
    for index in reversed(range(len(rules))):
        lines = _rule(lines, document, ("rules", index), list(rules[index]))
    return lines


def _rule(lines: list[str], document: Document, path: Path, keys: list[str]) -> list[str]:
    """The lines with the settings of one rule in order; the same lines when the rule is not one setting per line."""
    places = [document.key_where((*path, key)) for key in keys]
    starts = [line - 1 for line, _ in places]
    column = places[0][1] - 1
    wanted = sorted(keys, key=RULE_KEYS.index)
    if wanted == keys or len(set(starts)) < len(starts) or any(c - 1 != column for _, c in places):
        return lines
    first = starts[0]
    if lines[first][:column].strip() != "-" or lines[first][column - 2 : column] != "- ":
        return lines
    end = starts[-1] + 1
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) >= column):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    # A comment right above a setting, as far in as the setting, is about the setting.
    for place in range(1, len(starts)):
        while starts[place] - 1 > starts[place - 1] and lines[starts[place] - 1].startswith(" " * column + "#"):
            starts[place] -= 1
    bounds = [*starts, end]
    chunks = {key: lines[bounds[place] : bounds[place + 1]] for place, key in enumerate(keys)}
    chunks[keys[0]] = [" " * column + lines[first][column:], *chunks[keys[0]][1:]]
    dash = lines[first][:column]
    head = chunks[wanted[0]]
    above = [line for line in head if line.startswith(" " * column + "#") and head.index(line) < _key_line(head)]
    rest = head[len(above) :]
    made = [*(dash.replace("-", " ")[:-2] + line.strip() for line in above), dash + rest[0][column:], *rest[1:]]
    for key in wanted[1:]:
        made += chunks[key]
    return [*lines[:first], *made, *lines[end:]]


def _key_line(chunk: list[str]) -> int:
    return next(number for number, line in enumerate(chunk) if not line.lstrip().startswith("#"))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


# -- quotes and white space --------------------------------------------------------------------------------------------


def _quoted(lines: list[str], document: Document) -> list[str]:
    """Texts in single quotes get double ones, where nothing in them would mean something else."""
    made = list(lines)
    for line, column in document.places():
        text = made[line - 1]
        match = _SINGLE.match(text, column - 1)
        if match is not None:
            made[line - 1] = f'{text[: column - 1]}"{match[1]}"{text[match.end() :]}'
    return made


def _spaced(lines: list[str], document: Document) -> str:
    untouched = _blocks(lines, document)
    made: list[str] = []
    for number, line in enumerate(lines):
        if number in untouched:
            made.append(line)
            continue
        bare = line.rstrip(" \t")
        comment = _COMMENT.fullmatch(bare)
        if comment is not None:
            bare = f"{comment[1]}# {comment[2]}"
        if bare or (made and made[-1].strip()):
            made.append(bare)
    while made and not made[-1].strip():
        made.pop()
    return "\n".join(made) + "\n"


def _blocks(lines: list[str], document: Document) -> set[int]:
    """Numbers (from 0) of the lines of block texts (``|`` and ``>``), and of what follows up to the next value."""
    starts = sorted({line - 1 for line, _ in document.places()})
    found: set[int] = set()
    for line, column in document.places():
        if lines[line - 1][column - 1 : column] in ("|", ">"):
            place = bisect.bisect_right(starts, line - 1)
            found.update(range(line, starts[place] if place < len(starts) else len(lines)))
    return found
