"""The tables of a SQLite store, as numbered migrations, and how a connection to them is opened.

What must stay true: a migration that was released is never edited, only followed by another; all pending ones run
in one transaction, so that a crash leaves the old schema or the new one; a file that a newer version wrote, or
another program, is refused and not touched. Settings: write-ahead log with ``synchronous=FULL`` (with ``NORMAL``
a power cut loses acknowledged commits), no memory mapping, schemas are not trusted to call functions.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from typing import Final

from agentguard.errors import StoreUnavailable

APPLICATION_ID: Final = int.from_bytes(b"AGRD")
"""What ``PRAGMA application_id`` says of our files."""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE runs (
            n INTEGER PRIMARY KEY, tenant TEXT NOT NULL, run_id TEXT NOT NULL, agent TEXT NOT NULL, user TEXT,
            session TEXT, started_at INTEGER NOT NULL, opened TEXT NOT NULL, lineage TEXT NOT NULL,
            status TEXT NOT NULL, labels TEXT NOT NULL, version INTEGER NOT NULL, active INTEGER NOT NULL,
            pending INTEGER NOT NULL, paused_ns INTEGER NOT NULL, paused_at INTEGER, audit_seq INTEGER NOT NULL,
            audit_head TEXT NOT NULL, last_call TEXT NOT NULL, repeats INTEGER NOT NULL, ended_at INTEGER,
            stop_reason TEXT, result TEXT, UNIQUE (tenant, run_id)) STRICT""",
        "CREATE INDEX runs_by_start ON runs (started_at)",
        "CREATE INDEX runs_by_id ON runs (run_id)",
        """CREATE TABLE calls (
            n INTEGER PRIMARY KEY, tenant TEXT NOT NULL, key TEXT NOT NULL, run_id TEXT NOT NULL,
            call_id TEXT NOT NULL, tool TEXT NOT NULL, status TEXT NOT NULL, fingerprint TEXT NOT NULL,
            fence INTEGER NOT NULL, effect TEXT NOT NULL, lease_until INTEGER NOT NULL,
            started_at INTEGER NOT NULL, ended_at INTEGER, outcome TEXT, approval_id TEXT,
            UNIQUE (tenant, key)) STRICT""",
        "CREATE INDEX calls_by_run ON calls (tenant, run_id)",
        "CREATE INDEX calls_running ON calls (tenant, tool) WHERE status = 'running'",
        """CREATE TABLE accounts (
            key TEXT PRIMARY KEY, used TEXT NOT NULL, held TEXT NOT NULL, warned TEXT NOT NULL)
            STRICT, WITHOUT ROWID""",
        """CREATE TABLE holds (
            key TEXT PRIMARY KEY, accounts TEXT NOT NULL, amounts TEXT NOT NULL, lease_until INTEGER NOT NULL)
            STRICT, WITHOUT ROWID""",
        "CREATE INDEX holds_by_lease ON holds (lease_until)",
        """CREATE TABLE approvals (
            n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, run_id TEXT NOT NULL,
            tool TEXT NOT NULL, status TEXT NOT NULL, request TEXT NOT NULL) STRICT""",
        "CREATE INDEX approvals_by_run ON approvals (tenant, run_id)",
        "CREATE INDEX approvals_by_status ON approvals (status)",
        """CREATE TABLE grants (
            tenant TEXT NOT NULL, digest TEXT NOT NULL, id TEXT NOT NULL, expires_at INTEGER NOT NULL,
            PRIMARY KEY (tenant, digest)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE switches (
            n INTEGER PRIMARY KEY, scope TEXT NOT NULL, tenant TEXT NOT NULL, value TEXT NOT NULL,
            reason TEXT NOT NULL, by TEXT NOT NULL, at INTEGER NOT NULL, UNIQUE (scope, tenant, value)) STRICT""",
        """CREATE TABLE records (
            n INTEGER PRIMARY KEY, tenant TEXT NOT NULL, run_id TEXT NOT NULL, seq INTEGER NOT NULL,
            line BLOB NOT NULL, hash TEXT NOT NULL, salt TEXT NOT NULL, body BLOB,
            UNIQUE (tenant, run_id, seq)) STRICT""",
        """CREATE TABLE states (
            tenant TEXT NOT NULL, run_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
            version INTEGER NOT NULL, by TEXT NOT NULL, at INTEGER NOT NULL,
            PRIMARY KEY (tenant, run_id, key)) STRICT, WITHOUT ROWID""",
    ),
)
"""The statements of each migration; the schema's version is their number."""

_STRICT_TABLES: Final = (3, 37, 0)

_NETWORK: Final = frozenset(
    {
        "afs", "ceph", "cifs", "fuse.ceph", "fuse.cephfs", "fuse.curlftpfs", "fuse.davfs", "fuse.gcsfuse",
        "fuse.glusterfs", "fuse.goofys", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre",
        "ncpfs", "nfs", "nfs4", "smb3", "smbfs",
    }
)  # fmt: skip


def create_file(path: str) -> None:
    """Create the file, readable by its owner only, unless it is there.

    Raises:
        StoreUnavailable: The place does not exist, may not be written, is a directory or is on a network.
    """
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise StoreUnavailable(f"The SQLite store {path} cannot be opened: the directory {folder} does not exist.")
    if os.path.isdir(path):
        raise StoreUnavailable(f"The SQLite store {path} cannot be opened: that is a directory.")
    kind = file_system(folder)
    if kind in _NETWORK:
        raise StoreUnavailable(
            f"The SQLite store {path} lies on a network file system ({kind}), where its locks do not hold. "
            "Use a local disk."
        )
    try:
        # Only ever a file that did not exist: closing a descriptor of a database that this process has open
        # would drop SQLite's locks on it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StoreUnavailable(f"The SQLite store {path} cannot be created: {error.strerror}.") from error
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def permissions(path: str) -> int:
    """Permission bits of the database file, which the lock file shares."""
    return stat.S_IMODE(os.stat(path).st_mode)


def file_system(folder: str, table: str = "/proc/self/mountinfo") -> str:
    """Kind of the file system that ``folder`` is on, as the kernel calls it; ``""`` where nobody says.

    Source of the format: ``proc(5)``, mountinfo: field 5 is the mount point with octal escapes, the field after
    ``-`` the kind.
    """
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as lines:
            mounts = lines.read().splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts:
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = fields[4]
        for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(code, char)
        inside = point in ("/", folder) or folder.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind


def connect(path: str, busy_s: float, *, reading: bool = False) -> sqlite3.Connection:
    """Open a connection; the caller holds the writer lock unless it is ``reading``.

    Raises:
        sqlite3.Error: SQLite says no.
        StoreUnavailable: The library or the file cannot give the guarantees that are needed.
    """
    if sqlite3.sqlite_version_info < _STRICT_TABLES:
        raise StoreUnavailable(f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or newer is needed.")
    connection = sqlite3.connect(
        path, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        for pragma in ("trusted_schema=OFF", "foreign_keys=ON", "mmap_size=0", "cell_size_check=ON"):
            connection.execute(f"PRAGMA {pragma}")
        if reading:
            connection.execute("PRAGMA query_only=ON")
            return connection
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StoreUnavailable(f"The SQLite store {path} cannot have a write-ahead log here (journal: {mode}).")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA journal_size_limit=67108864")
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the tables up to date; the caller holds the writer lock.

    Raises:
        StoreUnavailable: The file belongs to another program or to a newer version.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check(connection, path)
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check(connection: sqlite3.Connection, path: str) -> int:
    """The version of the schema.

    Raises:
        StoreUnavailable: The file belongs to another program or to a newer version.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application != APPLICATION_ID:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application or version or tables:
            raise StoreUnavailable(
                f"{path} is a database of another program; nothing was changed. Give the store a file of its own."
            )
    if version > len(MIGRATIONS):
        raise StoreUnavailable(
            f"{path} has schema version {version}, written by a newer agentguard; this one knows versions up to "
            f"{len(MIGRATIONS)}. Nothing was changed. Upgrade agentguard."
        )
    return version
