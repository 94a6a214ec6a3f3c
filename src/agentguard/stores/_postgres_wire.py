"""Connections to PostgreSQL that answer in time or not at all, and the pools they live in, in both colours.

What must stay true: nothing here waits longer than the deadline it is given, whatever the server or the network does;
a connection on which anything went wrong is closed and never used again; an idle connection that the server has closed is
noticed without asking it; no connection crosses a ``fork``. The driver's own waiting has no deadline (blocking) or
tries to cancel politely first (awaiting), so a connection here waits for its socket itself. A connection for event
loops belongs to the loop that uses it at the moment, so loops that come and go share one pool.
"""

from __future__ import annotations

import asyncio
import re
import select
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, Generic, TypeVar

import psycopg
import psycopg.sql
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8Dumper

from agentguard.stores._postgres_schema import Rows, Statement

__all__ = ["AsyncLine", "AsyncLinePool", "Crowded", "Late", "Line", "LinePool", "adial", "dial", "sound"]

RV = TypeVar("RV")
L = TypeVar("L", "Line", "AsyncLine")

_READ: Final = 1
_WRITE: Final = 2
_AT_REST: Final = TransactionStatus.IDLE
_MIN_CONNECT_S: Final = 2  # libpq knows no shorter time to connect


class Late(Exception):
    """The server did not answer before the deadline; what was asked for may have happened or may still happen."""


class Crowded(Exception):
    """All connections of the pool were in use until the deadline."""


def _wait(generator: Generator[Any, Any, RV], descriptor: int, due: float) -> RV:
    """Drive the driver's generator, which says what the socket must be ready for, until ``due`` (monotonic seconds)."""
    try:
        wanted = next(generator)
        poll = select.poll()
        while True:
            left = due - time.monotonic()
            if left <= 0:
                raise Late
            poll.register(descriptor, (wanted & _READ and select.POLLIN) | (wanted & _WRITE and select.POLLOUT))
            events = poll.poll(left * 1000)
            if events:
                got = events[0][1]
                ready = (_READ if got & ~select.POLLOUT else 0) | (_WRITE if got & ~select.POLLIN else 0)
                wanted = generator.send(ready & wanted or wanted)
    except StopIteration as end:
        value: RV = end.value
        return value


async def _await(generator: Generator[Any, Any, RV], descriptor: int, due: float) -> RV:
    """The twin of :func:`_wait` for the event loop."""
    loop = asyncio.get_running_loop()
    try:
        wanted = next(generator)
        while True:
            left = due - time.monotonic()
            if left <= 0:
                raise Late
            ready: asyncio.Future[int] = loop.create_future()
            if wanted & _READ:
                loop.add_reader(descriptor, _set, ready, _READ)
            if wanted & _WRITE:
                loop.add_writer(descriptor, _set, ready, _WRITE)
            alarm = loop.call_later(left, _set, ready, 0)
            got = 0
            try:
                got = await ready
            except asyncio.CancelledError:
                # Whoever asked has left, or the loop is ending: what is on its way is waited for all the same, or
                # it would be undecided. The task is the store's own, and the deadline ends it.
                pass
            finally:
                alarm.cancel()
                if wanted & _READ:
                    loop.remove_reader(descriptor)
                if wanted & _WRITE:
                    loop.remove_writer(descriptor)
            if got:
                wanted = generator.send(got)
    except StopIteration as end:
        value: RV = end.value
        return value


def _set(ready: asyncio.Future[int], what: int) -> None:
    if not ready.done():
        ready.set_result(what)


class Line(psycopg.Connection[tuple[Any, ...]]):
    """A connection for threads."""

    due = 0.0

    def wait(self, gen: Generator[Any, Any, RV], *_: Any, **__: Any) -> RV:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Consume a generator of the driver before :attr:`due`; whatever else happens closes the connection."""
        try:
            return _wait(gen, self.pgconn.socket, self.due)
        except psycopg.Error:
            raise
        except BaseException:
            self.pgconn.finish()
            raise

    def run(self, statements: list[Statement], due: float, *, open_ended: bool = False) -> list[Rows]:
        """Carry out statements in one round trip; the rows of each. ``open_ended``: they leave a transaction open."""
        self.due = due
        if open_ended:
            cursor = self.execute(_bound(self, statements), prepare=False)
            found = [_rows(cursor)]
            while cursor.nextset():
                found.append(_rows(cursor))
            return found
        if len(statements) == 1:
            sql, values = statements[0]
            return [_rows(self.execute(sql.encode(), values))]
        with self.pipeline():
            cursors = [self.execute(sql.encode(), values) for sql, values in statements]
        return [_rows(cursor) for cursor in cursors]


class AsyncLine(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection for event loops."""

    due = 0.0

    async def wait(self, gen: Generator[Any, Any, RV], *_: Any, **__: Any) -> RV:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Consume a generator of the driver before :attr:`due`; whatever else happens closes the connection."""
        try:
            return await _await(gen, self.pgconn.socket, self.due)
        except psycopg.Error:
            raise
        except BaseException:
            self.pgconn.finish()
            raise

    async def run(self, statements: list[Statement], due: float, *, open_ended: bool = False) -> list[Rows]:
        """Carry out statements in one round trip; the rows of each. ``open_ended``: they leave a transaction open."""
        self.due = due
        if open_ended:
            cursor = await self.execute(_bound(self, statements), prepare=False)
            found = [await _arows(cursor)]
            while cursor.nextset():
                found.append(await _arows(cursor))
            return found
        if len(statements) == 1:
            sql, values = statements[0]
            return [await _arows(await self.execute(sql.encode(), values))]
        async with self.pipeline():
            cursors = [await self.execute(sql.encode(), values) for sql, values in statements]
        return [await _arows(cursor) for cursor in cursors]


_PLACE: Final = re.compile(r"\$([0-9]+)")


def _bound(line: Line | AsyncLine, statements: list[Statement]) -> bytes:
    # A pipeline ends with a message after which the server forgets how long a transaction may be idle (PostgreSQL
    # stops that clock at every message, and starts it anew only after some): a process that stopped there would keep
    # its locks for ever. Several statements in one message of the simple protocol do not, and it knows no parameters.
    parts = []
    for sql, values in statements:
        literals = [psycopg.sql.Literal(value).as_string(line) for value in values]
        parts.append(_PLACE.sub(lambda place, known=literals: known[int(place[1]) - 1], sql))  # type: ignore[misc]
    return "; ".join(parts).encode()


def _rows(cursor: psycopg.Cursor[tuple[Any, ...]]) -> Rows:
    return [] if cursor.description is None else cursor.fetchall()


async def _arows(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> Rows:
    return [] if cursor.description is None else await cursor.fetchall()


def _settings(address: str, due: float) -> dict[str, Any]:
    return {
        "conninfo": address,
        "autocommit": True,
        "client_encoding": "UTF8",
        "application_name": "agentguard",
        "connect_timeout": max(_MIN_CONNECT_S, round(due - time.monotonic())),
        # Prepared when first used, which costs a round trip once per connection and statement.
        "prepare_threshold": 0,
    }


def _tuned(line: L) -> L:
    # Every integer as bigint, so that a statement is prepared once and not once per size of its numbers.
    line.adapters.register_dumper(int, Int8Dumper)
    return line


def dial(address: str, due: float) -> Line:
    """Connect before ``due``. A thread does it, because neither libpq nor a resolver of names keeps short deadlines.

    Raises:
        Late: It took too long.
        psycopg.Error: The server cannot be reached or does not let us in.
    """
    got: list[Line | BaseException] = []
    gate = threading.Lock()
    done = threading.Event()
    left = [False]

    def connect() -> None:
        try:
            line: Line | BaseException = _tuned(
                Line.connect(cursor_factory=psycopg.RawCursor, **_settings(address, due))
            )
        except BaseException as error:
            line = error
        with gate:
            if left[0] and isinstance(line, Line):
                line.pgconn.finish()
            got.append(line)
            done.set()

    threading.Thread(target=connect, name="agentguard-connect", daemon=True).start()
    done.wait(max(due - time.monotonic(), 0))
    with gate:
        left[0] = True
        if not got:
            raise Late
    found = got.pop()
    if isinstance(found, Line):
        return found
    raise found


async def adial(address: str, due: float) -> AsyncLine:
    """The twin of :func:`dial` for the event loop."""
    try:
        async with asyncio.timeout(max(due - time.monotonic(), 0)):
            connecting = AsyncLine.connect(cursor_factory=psycopg.AsyncRawCursor, **_settings(address, due))
            return _tuned(await connecting)
    except TimeoutError:
        raise Late from None


_left_behind: Final[list[Any]] = []
"""Connections that a forked child must neither use nor close. Module-level because they must outlive everything."""


class _Pool(Generic[L]):
    """Idle connections, newest first, and how many exist in all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._gate = threading.Lock()
        self._idle: list[L] = []
        self._count = 0
        self._closed = False

    def _next(self) -> L | bool:
        """Under the gate: an idle connection, ``True`` for the right to open one, ``False``: wait."""
        while self._idle:
            line = self._idle.pop()
            if sound(line):
                return line
            self._count -= 1
            line.pgconn.finish()
        if self._count < self._size:
            self._count += 1
            return True
        return False

    def _put(self, line: L | None) -> None:
        """Under the gate."""
        if line is not None and not self._closed and sound(line) and line.pgconn.transaction_status == _AT_REST:
            self._idle.append(line)
            return
        self._count -= 1
        if line is not None:
            line.pgconn.finish()

    def close(self) -> None:
        """Close what is idle now, and what is in use when it is given back."""
        with self._gate:
            self._closed = True
            for line in self._idle:
                line.pgconn.finish()
            self._count -= len(self._idle)
            self._idle = []

    def forked(self) -> None:
        """Begin anew in a child: the connections, and whatever uses them, belong to the parent."""
        _left_behind.append(self._idle)
        self._gate = threading.Lock()
        self._idle = []
        self._count = 0


def sound(line: Line | AsyncLine) -> bool:
    """Whether the server has not closed the connection; it is not asked."""
    # Nothing comes unasked on an idle connection but its end (or notices of no interest): a look costs 2 us.
    if line.closed:
        return False
    poll = select.poll()
    poll.register(line.pgconn.socket, select.POLLIN)
    return not poll.poll(0)


class LinePool(_Pool[Line]):
    """Connections for threads.

    Args:
        size: How many there may be.
        connect: Opens one before a deadline.
    """

    def __init__(self, size: int, connect: Callable[[float], Line]) -> None:
        super().__init__(size)
        self._connect = connect
        self._changed = threading.Condition(self._gate)

    def take(self, due: float) -> Line:
        """A connection of one's own, to be given back.

        Raises:
            Crowded: All are in use until ``due``.
            Late: It took too long to connect.
            psycopg.Error: The server cannot be reached.
        """
        with self._changed:
            while (line := self._next()) is False:
                if not self._changed.wait(due - time.monotonic()):
                    raise Crowded
        if isinstance(line, Line):
            return line
        try:
            return self._connect(due)
        except BaseException:
            self.give(None)
            raise

    def give(self, line: Line | None) -> None:
        """Take a connection back (``None``: it is gone)."""
        with self._changed:
            self._put(line)
            self._changed.notify()

    def forked(self) -> None:
        """Begin anew in a child process."""
        super().forked()
        self._changed = threading.Condition(self._gate)


class AsyncLinePool(_Pool[AsyncLine]):
    """Connections for event loops; see :class:`LinePool`."""

    def __init__(self, size: int, connect: Callable[[float], Awaitable[AsyncLine]]) -> None:
        super().__init__(size)
        self._connect = connect
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self, due: float) -> AsyncLine:
        """The twin of :meth:`LinePool.take`."""
        while True:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            with self._gate:
                line = self._next()
                if line is False:
                    self._waiting.append(turn)
            if line is not False:
                break
            try:
                async with asyncio.timeout(max(due - time.monotonic(), 0)):
                    await turn
            except BaseException as error:
                self._pass_on(turn)
                if isinstance(error, TimeoutError):
                    raise Crowded from None
                raise
        if isinstance(line, AsyncLine):
            return line
        try:
            return await self._connect(due)
        except BaseException:
            self.give(None)
            raise

    def give(self, line: AsyncLine | None) -> None:
        """Take a connection back (``None``: it is gone)."""
        with self._gate:
            self._put(line)
        self._wake()

    def _pass_on(self, turn: asyncio.Future[None]) -> None:
        with self._gate:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        self._wake()  # it was this one that had been told

    def _wake(self) -> None:
        while True:
            with self._gate:
                if not self._waiting:
                    return
                turn = self._waiting.popleft()
            try:
                turn.get_loop().call_soon_threadsafe(_tell, turn)
            except RuntimeError:
                continue  # its loop was closed while it waited
            return

    def forked(self) -> None:
        """Begin anew in a child process."""
        super().forked()
        self._waiting = deque()


def _tell(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
