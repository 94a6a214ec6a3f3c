"""A sink has the whole batch or says that it has not."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit import sinks
from agentguard.audit.exporting import read_line
from agentguard.audit.records import parse, seal
from agentguard.audit.sinks import CallbackSink, Gaps, JsonlSink, MemorySink
from agentguard.domain.events import AuditRecord, Event
from agentguard.errors import SinkError
from agentguard.protocols import Sink


def record(seq: int = 1, run: str = "run_1", kind: Any = "step", size: int = 10) -> AuditRecord:
    prev = "ab" * 32 if seq > 1 else ""
    return seal("acme", run, seq, prev, 1, Event(kind, {"n": seq}, b"x" * size), "cd" * 16)


def lines(path: Path) -> list[AuditRecord]:
    out = [read_line(line) for line in path.read_bytes().splitlines()]
    assert all(isinstance(item, AuditRecord) for item in out)
    return out  # type: ignore[return-value]


def test_all_sinks_satisfy_the_protocol(tmp_path: Path) -> None:
    for sink in (MemorySink(), CallbackSink(print), JsonlSink(tmp_path / "a.jsonl")):
        assert isinstance(sink, Sink)
        assert sink.required is False
        sink.close()


def test_a_memory_sink_keeps_what_it_is_given() -> None:
    sink = MemorySink(required=True)
    sink.write((record(1), record(2)))
    sink.close()
    assert (sink.records, sink.required) == ([record(1), record(2)], True)


def test_a_callback_sink_hands_the_records_on() -> None:
    seen: list[AuditRecord] = []
    CallbackSink(seen.extend, required=True).write((record(),))
    assert seen == [record()]


def test_a_callback_that_raises_is_a_sink_error_without_its_words() -> None:
    def fail(records: object) -> None:
        raise RuntimeError("secret")

    with pytest.raises(SinkError, match="RuntimeError") as caught:
        CallbackSink(fail).write((record(),))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("fsync", [True, False])
def test_records_are_appended_and_read_back_exactly(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "audit.jsonl"
    sink = JsonlSink(path, fsync=fsync)
    sink.write((record(1), record(2)))
    sink.write((record(3),))
    sink.close()
    again = JsonlSink(str(path), required=True)
    again.write((record(4),))
    assert lines(path) == [record(n) for n in (1, 2, 3, 4)]
    assert path.stat().st_mode & 0o777 == 0o600
    assert again.required


def test_a_closed_sink_says_so(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "a")
    sink.close()
    sink.close()
    with pytest.raises(SinkError, match="closed"):
        sink.write((record(),))


def test_a_file_that_cannot_be_opened_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="No such file or directory"):
        JsonlSink(tmp_path / "missing" / "a")
    with pytest.raises(SinkError, match="directory"):
        JsonlSink(tmp_path)


def test_a_new_file_is_begun_after_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a"
    sink = JsonlSink(path)
    sink.write((record(1),))
    path.rename(tmp_path / "a.1")
    sink.write((record(2),))
    path.rename(tmp_path / "a.2")
    path.touch()
    sink.write((record(3),))
    assert [lines(tmp_path / name) for name in ("a.1", "a.2", "a")] == [[record(1)], [record(2)], [record(3)]]


def test_a_line_that_another_writer_left_unfinished_spoils_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b'{"half')
    JsonlSink(path).write((record(1),))
    half, whole = path.read_bytes().splitlines()
    assert half == b'{"half'
    assert read_line(whole) == record(1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_batch_that_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "a"
    sink = JsonlSink(path)
    sink.write((record(1),))
    before = path.read_bytes()
    real = os.write
    calls: list[int] = []

    def short_then_full(fd: int, data: memoryview) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(code, os.strerror(code))
        return real(fd, data[:20])

    monkeypatch.setattr(os, "write", short_then_full)
    with pytest.raises(SinkError, match="cannot be written"):
        sink.write((record(2), record(3)))
    monkeypatch.undo()
    assert path.read_bytes() == before
    sink.write((record(2),))
    assert lines(path) == [record(1), record(2)]


def test_a_full_disk_is_a_sink_error() -> None:
    if not os.access("/dev/full", os.W_OK):  # /dev/full is on every Linux; elsewhere the fake above speaks for it
        return
    with pytest.raises(SinkError, match="cannot be written"):
        JsonlSink("/dev/full", fsync=False).write((record(),))


def test_a_failing_fsync_is_a_sink_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JsonlSink(tmp_path / "a")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SinkError, match="Input/output error"):
        sink.write((record(),))
    assert (tmp_path / "a").read_bytes() == b""


def test_a_record_that_cannot_be_exported_is_a_sink_error(tmp_path: Path) -> None:
    bad = AuditRecord("t", "r", 1, b"\xff", "", "", None)
    with pytest.raises(SinkError, match="cannot be exported"):
        JsonlSink(tmp_path / "a").write((bad,))


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a"
    sink = JsonlSink(path, fsync=False)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: sink.write((record(n, size=5000), record(n, size=5000))), range(1, 101)))
    seqs = [item.seq for item in lines(path)]
    assert sorted(seqs) == sorted([*range(1, 101)] * 2)
    assert seqs[::2] == seqs[1::2]


def _write_many(path: str, start: int) -> None:
    sink = JsonlSink(path, fsync=False)
    for n in range(start, start + 50):
        sink.write((record(n, size=20_000),))


def test_processes_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_many, args=(str(path), 1 + 50 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(item.seq for item in lines(path)) == list(range(1, 151))


def test_a_forked_child_writes_through_its_own_file_even_if_the_lock_was_held(tmp_path: Path) -> None:
    path = tmp_path / "a"
    sink = JsonlSink(path)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with sink._lock:
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sink.write((record(2),))
            code = 0
        finally:
            os._exit(code)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        release.set()
        holder.join(30)
    sink.write((record(1),))
    assert [item.seq for item in lines(path)] == [2, 1]


def test_forgetting_opens_a_file_of_its_own(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "a")
    before = sink._lock
    sinks._after_fork()  # what a child does first
    sink.forget()
    sink.write((record(1),))
    assert sink._lock is not before
    assert lines(tmp_path / "a") == [record(1)]


def test_lost_records_are_counted_per_run_and_sink() -> None:
    gaps = Gaps()
    assert not gaps
    gaps.lose("jsonl", (record(2), record(3)))
    gaps.lose("jsonl", (record(7), record(1, run="run_2")))
    assert gaps
    taken = gaps.take()
    assert [(tenant, run, dict(event.facts)) for tenant, run, event in taken] == [
        ("acme", "run_1", {"first_seq": 2, "last_seq": 7, "lost": 3, "sink": "jsonl"}),
        ("acme", "run_2", {"first_seq": 1, "last_seq": 1, "lost": 1, "sink": "jsonl"}),
    ]
    assert gaps.take() == ()
    sealed = seal("acme", "run_1", 1, "", 1, taken[0][2], "")
    assert parse(sealed.line)["kind"] == "sink.gap"


def test_the_record_of_a_gap_makes_no_new_gap() -> None:
    gaps = Gaps()
    gaps.lose("jsonl", (record(1, kind="sink.gap"),))
    assert not gaps


def test_the_file_is_one_json_object_per_line(tmp_path: Path) -> None:
    JsonlSink(tmp_path / "a").write((record(1),))
    assert json.loads((tmp_path / "a").read_text())["type"] == "record"


def test_nobody_else_can_lock_the_file_while_a_batch_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    sink = JsonlSink(path)
    real = os.write
    held: list[bool] = []

    def watched(fd: int, data: memoryview) -> int:
        with path.open("rb") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(False)
            except BlockingIOError:
                held.append(True)
        return real(fd, data)

    monkeypatch.setattr(os, "write", watched)
    sink.write((record(1),))
    assert held == [True]
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
