"""Places that audit records are copied to once the store has them.

What must stay true: a sink either has all records of a batch or raises :class:`~agentguard.errors.SinkError`;
nothing is dropped silently. Deadlines are the drivers' business; records that an optional sink lost are
counted here (:class:`Gaps`) until somebody writes the gap down.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from agentguard.audit.exporting import export_record
from agentguard.domain.events import AuditRecord, Event
from agentguard.errors import AuditError, SinkError

_GAP_MARK: Final = b'"kind":"sink.gap"'


class MemorySink:
    """Keeps the records in a list, for tests and notebooks.

    Attributes:
        required: Whether calls are refused when the sink fails.
        records: What was written, oldest first.
    """

    def __init__(self, *, required: bool = False) -> None:
        self.required = required
        self.records: list[AuditRecord] = []

    def write(self, records: tuple[AuditRecord, ...]) -> None:
        """Keep the records."""
        self.records.extend(records)

    def close(self) -> None:
        """Nothing to release; the records stay readable."""


class CallbackSink:
    """Hands the records to a function of yours, which must have them safe when it returns.

    Attributes:
        required: Whether calls are refused when the function raises.
    """

    def __init__(self, write: Callable[[tuple[AuditRecord, ...]], object], *, required: bool = False) -> None:
        self.required = required
        self._write = write

    def write(self, records: tuple[AuditRecord, ...]) -> None:
        """Call the function.

        Raises:
            SinkError: The function raised.
        """
        try:
            self._write(records)
        except Exception as error:
            raise SinkError(f"the audit callback failed: {type(error).__name__}") from error

    def close(self) -> None:
        """Nothing to release."""


_open_sinks: weakref.WeakSet[JsonlSink] = weakref.WeakSet()


def _after_fork() -> None:
    # The child shares the parent's open file, and with it the parent's lock: it must open its own.
    for sink in list(_open_sinks):
        sink.forget()


os.register_at_fork(after_in_child=_after_fork)


class JsonlSink:
    """Appends records to a file, one line each, in the format of :mod:`agentguard.audit.exporting`.

    Several threads and processes may write to one file: each batch is one write under ``flock``. A batch that
    cannot be written whole is taken back. When the file was moved away (rotation), a new one is begun. Put it
    on a local file system: ``flock`` and appending are not dependable on network ones.

    Args:
        path: The file; it is created (mode 0600), its directory is not.
        required: Whether calls are refused when the file cannot be written.
        fsync: Wait until the records are on disk. Without it a power cut may lose the last ones.

    Raises:
        SinkError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, required: bool = False, fsync: bool = True) -> None:
        self.path = Path(path)
        self.required = required
        self._fsync = fsync
        self._lock = threading.Lock()
        self._fd = -1
        self._closed = False
        _open_sinks.add(self)
        with self._lock:
            try:
                self._locked()
            except OSError as error:
                raise self._failed(error) from error
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write(self, records: tuple[AuditRecord, ...]) -> None:
        """Append the records, all or none.

        Raises:
            SinkError: The disk is full or read-only, the permission is missing, the sink is closed, or the
                like; the file is as it was.
        """
        try:
            data = b"".join(export_record(record) + b"\n" for record in records)
        except AuditError as error:
            raise SinkError(str(error)) from error
        with self._lock:
            if self._closed:
                raise SinkError(f"the audit file {self.path} is closed")
            try:
                fd = self._locked()
                try:
                    self._append(fd, data)
                finally:
                    fcntl.flock(fd, fcntl.LOCK_UN)
            except OSError as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Close the file. Later writes raise ``SinkError``. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._release()

    def forget(self) -> None:
        """Drop what must not be shared with the parent process after a fork; called in the child."""
        self._lock = threading.Lock()
        self._release()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _failed(self, error: OSError) -> SinkError:
        return SinkError(
            f"the audit file {self.path} cannot be written: {error.strerror or error}; "
            "check the free space and the permissions of the file and its directory"
        )

    def _locked(self) -> int:
        # An open descriptor of the file that bears the name now, locked for this process alone.
        while True:
            if self._fd < 0:
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._fd = os.open(self.path, flags, 0o600)
                if self._fsync:
                    self._sync_directory()
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            mine = os.fstat(self._fd)
            try:
                named = os.stat(self.path)
            except FileNotFoundError:
                named = None
            if named is not None and (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino):
                return self._fd
            self._release()

    def _sync_directory(self) -> None:
        # A new name is durable only when its directory is.
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _append(self, fd: int, data: bytes) -> None:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data  # a writer died in the middle of its line
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            if self._fsync:
                os.fsync(fd)
        except BaseException:
            os.ftruncate(fd, size)
            raise


class Gaps:
    """Counts, per run, the records that an optional sink did not take.

    The driver calls ``lose`` when a write failed or came too late, and appends what ``take`` returns to the
    chains as soon as the store permits, so that the loss is itself on record. Safe for several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: dict[tuple[str, str, str], tuple[int, int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._lost)

    def lose(self, sink: str, records: Iterable[AuditRecord]) -> None:
        """Count records that ``sink`` (a name for people) lost; records of gaps are not counted again."""
        with self._lock:
            for record in records:
                if _GAP_MARK in record.line:
                    continue
                key = (record.tenant, record.run_id, sink)
                count, first, last = self._lost.get(key, (0, record.seq, record.seq))
                self._lost[key] = (count + 1, min(first, record.seq), max(last, record.seq))

    def take(self) -> tuple[tuple[str, str, Event], ...]:
        """Tenant, run and ``sink.gap`` event for every gap since the last call; the counts start again."""
        with self._lock:
            lost, self._lost = self._lost, {}
        return tuple(
            (
                tenant,
                run_id,
                Event("sink.gap", {"first_seq": first, "last_seq": last, "lost": count, "sink": sink}),
            )
            for (tenant, run_id, sink), (count, first, last) in lost.items()
        )
