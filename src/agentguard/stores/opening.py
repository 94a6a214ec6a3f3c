"""A store from its address. Drivers are imported when an address asks for them, never before."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from agentguard.errors import ConfigurationError
from agentguard.protocols import Clock, Store
from agentguard.stores.memory import MemoryStore

_POSTGRES: Final = frozenset({"postgres", "postgresql"})
_SERVERS: Final = frozenset({"redis", "rediss", "valkey", "mysql", "mariadb"})
_FORMS: Final = (
    "'memory:', 'sqlite:///relative.db', 'sqlite:////absolute.db' or 'postgresql://user:password@host:5432/database'"
)


def open_store(url: str, *, clock: Clock | None = None) -> Store:
    """Open the store at an address.

    Args:
        url: ``memory:`` (gone with the process), ``sqlite:///relative/path.db``,
            ``sqlite:////absolute/path.db`` or ``postgresql://user:password@host:5432/database``, with
            ``?schema=name`` for another schema than ``agentguard`` and the options that libpq knows. Percent signs
            are escapes, as in every URL.
        clock: Tells the store the time; the machine's clock when left out.

    Returns:
        The store; close it when it is no longer needed.

    Raises:
        ConfigurationError: ``AG123``: not an address of a store. ``AG121``: a kind of store that this version
            does not have. ``AG122``: the address names no file.
        MissingExtra: ``AG001``: the driver of that kind of store is not installed.
        StoreUnavailable: The file cannot be opened, or the server cannot be reached.
    """
    if not isinstance(url, str) or not url.strip():
        raise ConfigurationError(f"A store needs an address: {_FORMS}.", code="AG123")
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if not colon:
        raise ConfigurationError(f"{url!r:.200} is no address of a store; use {_FORMS}.", code="AG123")
    if scheme == "memory":
        if rest not in ("", "//"):
            raise ConfigurationError(f"'memory:' takes nothing behind the colon, not {rest!r:.200}.", code="AG123")
        return MemoryStore(clock)
    if scheme == "sqlite":
        return _open_sqlite(url, rest, clock)
    if scheme in _POSTGRES:
        return _open_postgres(url, clock)
    kind = scheme.partition("+")[0]
    if kind in _SERVERS or kind in _POSTGRES:
        raise ConfigurationError(
            f"This version has no store for {scheme:.40}; it has memory, sqlite and postgresql: {_FORMS}.", code="AG121"
        )
    # The rest of the address may hold a password.
    raise ConfigurationError(f"{scheme!r:.80} is no kind of store; use {_FORMS}.", code="AG123")


def _open_postgres(url: str, clock: Clock | None) -> Store:
    from agentguard.stores.postgres import PostgresStore

    address, _, query = url.partition("?")
    options = query.split("&") if query else []
    schemas = [option.partition("=")[2] for option in options if option.partition("=")[0] == "schema"]
    if len(schemas) > 1:
        raise ConfigurationError("The address of the PostgreSQL store names its schema twice.", code="AG123")
    rest = "&".join(option for option in options if option.partition("=")[0] != "schema")
    return PostgresStore(
        f"{address}?{rest}" if rest else address,
        schema=unquote(schemas[0]) if schemas else "agentguard",
        clock=clock,
    )


def _open_sqlite(url: str, rest: str, clock: Clock | None) -> Store:
    if not rest.startswith("///"):
        raise ConfigurationError(
            f"{url!r:.200}: an SQLite address has three slashes before a relative path and four before an absolute "
            f"one: {_FORMS}.",
            code="AG122" if rest.strip("/") == "" else "AG123",
        )
    path = unquote(rest[3:])
    if not path.strip("/") or path.endswith("/") or "\0" in path:
        raise ConfigurationError(f"{url!r:.200} names no file; use {_FORMS}.", code="AG122")
    if "?" in rest or "#" in rest:
        raise ConfigurationError(
            f"{url!r:.200}: an SQLite address takes no options; write %3F or %23 for ? or # in a file name.",
            code="AG123",
        )
    if path == ":memory:":
        raise ConfigurationError("Use 'memory:' for a store that is gone with the process.", code="AG123")
    from agentguard.stores.sqlite import SqliteStore

    return SqliteStore(path, clock=clock)
