"""Secrets, leased for one call after it was allowed and injected into the tool.

What must stay true: no form of writing a :class:`Credentials` or a provider down (repr, str, format, pickle, JSON,
copy) shows a value; after the call the object is empty; a secret restricted to a tenant, environment or tool goes
nowhere else; no error names a secret other than the one that was asked for, and none shows a value.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

from agentguard.errors import ConfigurationError
from agentguard.globbing import any_matches
from agentguard.protocols import AsyncCredentialProvider, CredentialProvider, CredentialRequest

UNKNOWN = "AG640"
ENDED = "AG641"
NOT_A_PROVIDER = "AG642"
UNUSABLE = "AG643"

D = TypeVar("D")


class Credentials:
    """The secrets of one call: ``credentials["stripe"]`` inside a tool body.

    A tool gets one by annotating a parameter with this type; the parameter is no part of the schema that the
    model sees. Values never appear in any rendering of the object.
    """

    __slots__ = ("_closed", "_values")

    __agentguard_inject__ = "credentials"

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._closed = False

    def _open(self) -> dict[str, str]:
        if self._closed:
            raise ConfigurationError(
                "these credentials were leased for a call that has ended; use them inside the tool body only",
                code=ENDED,
            )
        return self._values

    def __getitem__(self, name: str) -> str:
        """The secret ``name``.

        Raises:
            ConfigurationError: ``AG640`` when the tool did not declare it, ``AG641`` after the call has ended.
        """
        try:
            return self._open()[name]
        except KeyError:
            raise ConfigurationError(
                f"no credential {name!r} was leased for this call; declare it with @tool(credentials=[...])",
                code=UNKNOWN,
            ) from None

    def get(self, name: str, default: D | None = None) -> str | D | None:
        """The secret ``name``, or ``default``."""
        return self._open().get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._open()

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._open()))

    def __len__(self) -> int:
        return len(self._open())

    def close(self) -> None:
        """Forget the secrets; every later use raises. Safe to call twice."""
        self._closed = True
        self._values = {}

    def __repr__(self) -> str:
        return "Credentials(closed)" if self._closed else f"Credentials({', '.join(sorted(self._values))})"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("credentials cannot be copied, pickled or stored")


# --- providers -----------------------------------------------------------------------------------


def _missing(request: CredentialRequest, hint: str) -> ConfigurationError:
    return ConfigurationError(
        f"no credential {request.name!r} for {request.tool} in tenant {request.tenant}, environment "
        f"{request.environment}: {hint}",
        code=UNKNOWN,
    )


def checked(request: CredentialRequest, secret: object) -> str:
    """Return ``secret`` if a tool can use it.

    Raises:
        ConfigurationError: ``AG643``; it is no string or empty. The message does not show it.
    """
    if isinstance(secret, str) and secret:
        return secret
    raise ConfigurationError(
        f"the credential provider answered {request.name!r} with "
        f"{'an empty string' if isinstance(secret, str) else 'a ' + type(secret).__name__}; it must be a string",
        code=UNUSABLE,
    )


Patterns: TypeAlias = str | Sequence[str] | None


def _patterns(value: Any, what: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    patterns = (value,) if isinstance(value, str) else value
    if not isinstance(patterns, (list, tuple, set, frozenset)) or not all(isinstance(p, str) and p for p in patterns):
        raise ConfigurationError(f"{what} of a credential must be a name, a glob or a list of them", code=UNUSABLE)
    return tuple(patterns)


def _within(patterns: tuple[str, ...] | None, value: str) -> bool:
    return patterns is None or any_matches(patterns, value)


@dataclass(frozen=True, slots=True)
class _Reach:
    tenant: tuple[str, ...] | None
    environment: tuple[str, ...] | None
    tool: tuple[str, ...] | None

    def covers(self, request: CredentialRequest) -> bool:
        return (
            _within(self.tenant, request.tenant)
            and _within(self.environment, request.environment)
            and _within(self.tool, request.tool)
        )


class EnvCredentials:
    """Secrets from environment variables: ``stripe-key`` is ``AGENTGUARD_SECRET_STRIPE_KEY``.

    Args:
        prefix: Start of the variable's name. The rest is the secret's name in capitals, with ``-``, ``.``,
            ``:`` and ``/`` as ``_``.
        tenant: Names or globs of the tenants that may use them; everybody when left out.
        environment: The same for environments.
        tool: The same for tools.
        environ: Variables to read instead of the process's own.
    """

    __slots__ = ("_environ", "_prefix", "_reach")

    def __init__(
        self,
        prefix: str = "AGENTGUARD_SECRET_",
        *,
        tenant: Patterns = None,
        environment: Patterns = None,
        tool: Patterns = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        if not prefix:
            raise ConfigurationError(
                "without a prefix every variable of the process would be a secret", code=NOT_A_PROVIDER
            )
        self._prefix = prefix
        self._reach = _Reach(
            _patterns(tenant, "tenant"), _patterns(environment, "environment"), _patterns(tool, "tool")
        )
        self._environ = environ

    def __repr__(self) -> str:
        return f"EnvCredentials({self._prefix}*)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("credentials cannot be copied, pickled or stored")

    def lease(self, request: CredentialRequest) -> str:
        """Read the variable.

        Raises:
            ConfigurationError: ``AG640``; it is not set, empty, or not for this call.
        """
        variable = self._prefix + request.name.upper().translate(str.maketrans("-.:/", "____"))
        if not self._reach.covers(request):
            raise _missing(request, "these credentials are for other tenants, environments or tools")
        secret = (os.environ if self._environ is None else self._environ).get(variable)
        if not secret:
            raise _missing(request, f"set {variable}")
        return secret

    def release(self, request: CredentialRequest, secret: str) -> None:
        """Nothing is taken back."""


@dataclass(frozen=True, slots=True)
class _Entry:
    value: str = field(repr=False)
    reach: _Reach


_ENTRY_KEYS = frozenset({"value", "tenant", "environment", "tool"})


class StaticCredentials:
    """Secrets given in code.

    Args:
        secrets: Per name a string, or a mapping with ``value`` and any of ``tenant``, ``environment`` and ``tool``
            (names, globs or lists of them) that says where it may go, or a list of such mappings: the first that
            fits is used. A secret goes nowhere that its entry does not name.

    Raises:
        ConfigurationError: ``AG643``; an entry is none of these.
    """

    __slots__ = ("_entries",)

    def __init__(self, secrets: Mapping[str, str | Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> None:
        self._entries: dict[str, tuple[_Entry, ...]] = {
            name: tuple(self._entry(name, item) for item in (given if isinstance(given, (list, tuple)) else (given,)))
            for name, given in secrets.items()
        }

    @staticmethod
    def _entry(name: str, given: object) -> _Entry:
        if isinstance(given, str):
            given = {"value": given}
        # A misspelt restriction would hand the secret to everybody.
        if not isinstance(given, Mapping) or not given.keys() <= _ENTRY_KEYS:
            raise ConfigurationError(
                f"credential {name!r} must be a string or a mapping of value, tenant, environment and tool",
                code=UNUSABLE,
            )
        value = given.get("value")
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"credential {name!r} has no value", code=UNUSABLE)
        for key in ("tenant", "environment", "tool"):
            if key in given and given[key] is None:
                raise ConfigurationError(
                    f"{key} of credential {name!r} is empty; leave it out to allow every {key}", code=UNUSABLE
                )
        return _Entry(
            value,
            _Reach(
                _patterns(given.get("tenant"), "tenant"),
                _patterns(given.get("environment"), "environment"),
                _patterns(given.get("tool"), "tool"),
            ),
        )

    def __repr__(self) -> str:
        return f"StaticCredentials({', '.join(sorted(self._entries))})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("credentials cannot be copied, pickled or stored")

    def lease(self, request: CredentialRequest) -> str:
        """Find the secret.

        Raises:
            ConfigurationError: ``AG640``; there is none of that name for this call.
        """
        for entry in self._entries.get(request.name, ()):
            if entry.reach.covers(request):
                return entry.value
        known = request.name in self._entries
        raise _missing(request, "it is restricted to others" if known else "the provider does not know it")

    def release(self, request: CredentialRequest, secret: str) -> None:
        """Nothing is taken back."""


Released: TypeAlias = Callable[[CredentialRequest, str], object]


class CallableCredentials:
    """Secrets from a function, for example a client of a vault.

    Args:
        fn: Called with the :class:`~agentguard.protocols.CredentialRequest`, answers the secret.
        release: Called with the request and the secret when the call has ended, if given.
    """

    __slots__ = ("_fn", "_release")

    def __init__(self, fn: Callable[[CredentialRequest], str], release: Released | None = None) -> None:
        if _is_async(fn) or _is_async(release):
            raise ConfigurationError("an async function needs AsyncCallableCredentials", code=NOT_A_PROVIDER)
        self._fn = fn
        self._release = release

    def lease(self, request: CredentialRequest) -> str:
        """Ask the function; what it raises refuses the call.

        Raises:
            ConfigurationError: ``AG643``; its answer is no string or empty.
        """
        secret: object = self._fn(request)
        if inspect.iscoroutine(secret):
            secret.close()  # it would be reported as never awaited
        return checked(request, secret)

    def release(self, request: CredentialRequest, secret: str) -> None:
        """Hand the secret back."""
        if self._release is not None:
            self._release(request, secret)


class AsyncCallableCredentials:
    """The twin of :class:`CallableCredentials` for async functions."""

    __slots__ = ("_fn", "_release")

    def __init__(self, fn: Callable[[CredentialRequest], Awaitable[str]], release: Released | None = None) -> None:
        self._fn = fn
        self._release = release

    async def lease(self, request: CredentialRequest) -> str:
        """Ask the function; what it raises refuses the call.

        Raises:
            ConfigurationError: ``AG643``; its answer is no string or empty.
        """
        return checked(request, await self._fn(request))

    async def release(self, request: CredentialRequest, secret: str) -> None:
        """Hand the secret back."""
        if self._release is not None:
            answer = self._release(request, secret)
            if inspect.isawaitable(answer):
                await answer


class NoCredentials:
    """The provider of a gateway that was given none: every lease is refused."""

    __slots__ = ()

    def lease(self, request: CredentialRequest) -> str:
        """Refuse.

        Raises:
            ConfigurationError: ``AG640``, always.
        """
        raise _missing(request, "the gateway has no credential provider; pass credentials=... to ToolGateway")

    def release(self, request: CredentialRequest, secret: str) -> None:
        """Nothing was handed out."""


def _is_async(fn: object) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def as_provider(source: object) -> CredentialProvider | AsyncCredentialProvider:
    """Make a provider out of what a user passes as ``credentials=``.

    Args:
        source: A provider, a mapping (see :class:`StaticCredentials`), a sync or async function of a
            :class:`~agentguard.protocols.CredentialRequest`, or ``None`` for no credentials at all.

    Raises:
        ConfigurationError: ``AG642``; it is none of these.
    """
    if source is None:
        return NoCredentials()
    if isinstance(source, Mapping):
        return StaticCredentials(source)
    if isinstance(source, type):
        raise ConfigurationError(f"pass an instance of {source.__name__}, not the class", code=NOT_A_PROVIDER)
    if callable(getattr(source, "lease", None)) and callable(getattr(source, "release", None)):
        return cast("CredentialProvider | AsyncCredentialProvider", source)
    if callable(source):
        function: Any = source
        return AsyncCallableCredentials(function) if _is_async(function) else CallableCredentials(function)
    raise ConfigurationError(
        f"a {type(source).__name__} cannot hand out credentials; pass a mapping, a function or an object with "
        "lease(request) and release(request, secret)",
        code=NOT_A_PROVIDER,
    )
