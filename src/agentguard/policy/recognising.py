"""What a text is: a path within a root, a URL's host and scheme, an e-mail address, a command line.

What must stay true: each answer is true or false only for texts that every reader takes alike; anything odd is
unknown. Parsers disagree about odd URLs, addresses and paths, and a check that reads a text differently from the tool
protects nothing. The one look at the file system comes in as a function.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from agentguard.policy.truth import Condition, Truth, kind

PathResolver: TypeAlias = Callable[[str], str]
"""Resolves ``..`` and symbolic links, as :func:`os.path.realpath` does."""

_ODD_PATH = re.compile(r"[\x00-\x1f\x7f\\]")


def _inside(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root if root == "/" else root + "/") for root in roots)


def within(roots: Sequence[str], resolve: PathResolver) -> Condition:
    """Whether an absolute POSIX path lies in one of ``roots``.

    Both readings of the path must agree, the textual one (``..`` removed) and the one with symbolic links resolved;
    where they differ the answer is unknown. Relative paths, ``~``, back-slashes, control characters and a leading
    ``//`` are unknown as well.
    """
    plain = [posixpath.normpath(root) for root in roots]
    real = [*plain, *map(resolve, plain)]

    def judge(value: Any) -> Truth:
        if kind(value) != "string" or not 0 < len(value) <= 4096:
            return None
        if value[0] != "/" or value[:2] == "//" or _ODD_PATH.search(value):
            return None
        textual = _inside(posixpath.normpath(value), real)
        return textual if _inside(resolve(str(value)), real) is textual else None

    return judge


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
"""Letters, digits and hyphens (RFC 952, RFC 1123)."""
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>[A-Za-z0-9.-]*)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<rest>(?:[/?#](?:[A-Za-z0-9._~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})*)?)"
)
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!$)|$)){4}")
_LOCAL = re.compile(r"[A-Za-z0-9_+=~'-]+(?:\.[A-Za-z0-9_+=~'-]+)*")


def plain_host(host: str) -> str | None:
    """The host in lower case when it is an ordinary DNS name or a dotted IPv4 address, else ``None``.

    Not ordinary: trailing dots, punycode, underscores, and everything that some resolver reads as a number
    (``2130706433``, ``0x7f.1``, ``127.1``).
    """
    host = host.lower()
    if len(host) > 253 or not HOST.fullmatch(host):
        return None
    labels = host.split(".")
    if any(label.startswith("xn--") or label[2:4] == "--" for label in labels):
        return None
    # The WHATWG rule: a last label of digits, or of 0x and hex digits, makes the host an IPv4 number.
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-f]*", labels[-1]):
        return host if _IPV4.fullmatch(host) else None
    return host


def _host_matches(host: str, wanted: Sequence[str]) -> Truth:
    if host in wanted:
        return True
    if host[-1].isdigit() and _IPV4.fullmatch(host):
        return None  # an address says nothing about which names lead to it
    return any(w.startswith("*.") and host.endswith(w[1:]) for w in wanted)


def _parse_url(value: Any) -> tuple[str, str] | None:
    if kind(value) != "string" or len(value) > 8192:
        return None
    match = _URL.fullmatch(value)
    if match is None or (match["port"] and int(match["port"]) > 65535):
        return None
    scheme = match["scheme"].lower()
    if not match["host"]:
        return (scheme, "") if scheme == "file" and not match["port"] else None
    host = plain_host(match["host"])
    return None if host is None else (scheme, host)


def url_host(wanted: Sequence[str]) -> Condition:
    """Whether a URL's host is one of ``wanted``; ``*.x`` stands for the names below ``x``.

    Strict: user information, odd characters, punycode, unusual forms of addresses and bad ports are unknown.
    """
    wanted = tuple(w.lower() for w in wanted)

    def judge(value: Any) -> Truth:
        url = _parse_url(value)
        return None if url is None or not url[1] else _host_matches(url[1], wanted)

    return judge


def url_scheme(wanted: Sequence[str]) -> Condition:
    """Whether a URL's scheme is one of ``wanted``; what is no plain ``scheme://`` URL is unknown."""
    wanted = tuple(w.lower() for w in wanted)

    def judge(value: Any) -> Truth:
        url = _parse_url(value)
        return None if url is None else url[0] in wanted

    return judge


def email_domain(wanted: Sequence[str]) -> Condition:
    """Whether the value is exactly one e-mail address in one of the domains; ``*.x`` for the names below ``x``.

    Display names, several addresses, quoted or routed local parts (``%``, ``!``), literals and comments are unknown.
    """
    wanted = tuple(w.lower() for w in wanted)

    def judge(value: Any) -> Truth:
        if kind(value) != "string" or len(value) > 254 or value.count("@") != 1:
            return None
        local, domain = value.split("@")
        host = plain_host(domain)
        if host is None or "." not in host or len(local) > 64 or not _LOCAL.fullmatch(local):
            return None
        return _host_matches(host, wanted)

    return judge


_SHELL_ODD = re.compile(r"[^\x20-\x7e]|[;&|<>$`\\(){}\[\]*?!~#^]")


def command(allowed: Sequence[str]) -> Condition:
    """Whether a command line begins with the words of one of ``allowed``.

    The value is a string that is split as a shell would, or a list of words. Anything a shell would interpret beyond
    words and quotes (``;``, ``|``, ``$``, globs, redirections, new lines, ...) makes the answer unknown.
    """
    heads = [tuple(entry.split()) for entry in allowed]

    def judge(value: Any) -> Truth:
        found = kind(value)
        if found == "string":
            if _SHELL_ODD.search(value):
                return None
            words = shlex.split(value)
        elif found == "array":
            if not all(type(word) is str and word and not _SHELL_ODD.search(word) for word in value):
                return None
            words = list(value)
        else:
            return None
        if not words:
            return None
        return any(tuple(words[: len(head)]) == head for head in heads)

    return judge
