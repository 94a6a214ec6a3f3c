"""The writer lock: one at a time, with a deadline, and never left behind."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard.stores import _sqlite_lock as module
from agentguard.stores._sqlite_lock import WriterLock


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[WriterLock, WriterLock]]:
    path = str(tmp_path / "x.lock")
    locks = WriterLock(path), WriterLock(path)
    yield locks
    for lock in locks:
        lock.discard()


def test_one_at_a_time(two: tuple[WriterLock, WriterLock]) -> None:
    mine, other = two
    assert mine.acquire(1)
    assert not other.acquire(0.01)
    mine.release()
    assert other.acquire(5)
    other.release()


def test_a_lock_that_comes_too_late_is_given_back(two: tuple[WriterLock, WriterLock]) -> None:
    mine, other = two
    assert mine.acquire(1)
    assert not other.acquire(0.01)
    mine.release()
    assert mine.acquire(5), "the impatient one must not keep what it got"
    mine.release()


def test_a_second_try_takes_over_the_wait_of_the_first(two: tuple[WriterLock, WriterLock]) -> None:
    mine, other = two
    assert mine.acquire(1)
    assert not other.acquire(0.01)
    timer = threading.Timer(0.05, mine.release)
    timer.start()
    assert other.acquire(5)
    timer.join()
    other.release()


def test_a_deleted_lock_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    mine, other = WriterLock(str(path)), WriterLock(str(path))
    assert mine.acquire(1)
    mine.release()
    path.unlink()
    assert other.acquire(1)
    assert not mine.acquire(0.01), "both must mean the same file"
    other.release()
    assert mine.acquire(5)
    mine.release()
    mine.discard()
    other.discard()
    mine.discard()


def test_an_interrupt_while_waiting_leaves_no_lock(
    two: tuple[WriterLock, WriterLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    assert mine.acquire(1)
    wait_for = other._changed.wait_for

    def interrupted(condition: Any, timeout: float | None = None) -> bool:
        mine.release()
        assert wait_for(condition, 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(other._changed, "wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.acquire(5)
    assert mine.acquire(5)
    mine.release()


def test_an_interrupt_before_the_lock_comes_leaves_no_lock(
    two: tuple[WriterLock, WriterLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    assert mine.acquire(1)

    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(other._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt):
            other.acquire(5)
    mine.release()
    assert mine.acquire(5)
    mine.release()


@pytest.mark.parametrize("where", ["trying", "waiting"])
def test_a_system_that_cannot_lock_says_so(
    two: tuple[WriterLock, WriterLock], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    mine, other = two
    assert mine.acquire(1)
    real = fcntl.flock

    def refuse(fd: int, how: int) -> None:
        if bool(how & fcntl.LOCK_NB) == (where == "trying"):
            raise OSError(37, os.strerror(37))
        real(fd, how)

    with monkeypatch.context() as patch:
        patch.setattr(module.fcntl, "flock", refuse)
        with pytest.raises(OSError, match="locks"):
            other.acquire(5)
    mine.release()
