"""The writer lock of a SQLite file: who writes, checkpoints or closes holds it, across processes and threads.

What must stay true: the lock is ``flock`` on a file of its own (``<database>.lock``), so that it belongs to one
open file, is dropped by the kernel when its process dies, and never touches the POSIX locks that SQLite itself
holds on the database. It removes two defects of SQLite's own waiting: with eight writing processes its busy
handler leaves single writers waiting for many seconds, and versions before 3.51.3 can corrupt the file when two
connections reset the write-ahead log at the same instant. SQLite still takes its own locks below this one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading


class WriterLock:
    """One process-wide handle on the lock file; used by one thread at a time.

    ``flock`` cannot wait with a deadline, so a contended lock is waited for by a thread of its own. It lives
    for the time of a wait and is told to give the lock back when its caller has lost patience.

    Args:
        path: Path of the lock file; created with mode ``mode`` if it is missing.
        mode: Permission bits of a new lock file.
    """

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self._path = path
        self._mode = mode
        self._fd = -1
        self._changed = threading.Condition(threading.Lock())
        self._waiting = False  # a thread sits in flock()
        self._wanted = False  # somebody still wants what that thread gets
        self._granted = False  # it has got it
        self._failure: OSError | None = None

    def acquire(self, timeout: float) -> bool:
        """Take the lock; ``False`` when ``timeout`` (seconds) passes first.

        Raises:
            OSError: The lock file cannot be opened or locked.
        """
        with self._changed:
            if not self._waiting and self._try():
                return True
            self._wanted = True
            self._failure = None
            if not self._waiting:
                self._waiting = True
                threading.Thread(target=self._wait, name="agentguard-sqlite-lock", daemon=True).start()
            try:
                self._changed.wait_for(lambda: self._granted or self._failure is not None, timeout)
            except BaseException:  # an interrupt while waiting: nobody would ever release what comes
                self._wanted = False
                if self._granted:
                    self._granted = False
                    self.release()
                raise
            self._wanted = False
            granted, self._granted = self._granted, False
            if not granted and self._failure is not None:
                raise self._failure
            return granted

    def release(self) -> None:
        """Give the lock back."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def discard(self) -> None:
        """Close the lock file; the next :meth:`acquire` opens it again."""
        with self._changed:
            if self._fd >= 0 and not self._waiting:
                os.close(self._fd)
                self._fd = -1

    def _open(self) -> None:
        if self._fd >= 0:
            if os.fstat(self._fd).st_nlink:
                return
            # Somebody deleted the file: its successor is what everybody else locks.
            os.close(self._fd)
            self._fd = -1
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)

    def _try(self) -> bool:
        self._open()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _wait(self) -> None:
        failure: OSError | None = None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            failure = error
        with self._changed:
            self._waiting = False
            if failure is not None:
                self._failure = failure
            elif self._wanted:
                self._granted = True
            else:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._changed.notify_all()
