"""Addresses of stores: the right ones open, every other is explained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentguard.errors import ConfigurationError, StoreUnavailable
from agentguard.stores import open_store
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore


@pytest.mark.parametrize("url", ["memory:", "memory://", "MEMORY:"])
def test_memory_opens_a_memory_store(url: str) -> None:
    assert isinstance(open_store(url), MemoryStore)


def test_three_slashes_are_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///deep.db")
    store.close()
    assert isinstance(store, SqliteStore)
    assert (tmp_path / "deep.db").exists()


def test_four_slashes_are_an_absolute_path_and_escapes_are_read(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/a%20b%3F.db").close()
    assert (tmp_path / "a b?.db").exists()


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("", "AG123", "needs an address"),
        ("  ", "AG123", "needs an address"),
        ("store.db", "AG123", "no address of a store"),
        ("file:store.db", "AG123", "no kind of store"),
        ("memory:x", "AG123", "nothing behind the colon"),
        ("sqlite:store.db", "AG123", "three slashes"),
        ("sqlite:", "AG122", "three slashes"),
        ("sqlite://", "AG122", "three slashes"),
        ("sqlite://host/store.db", "AG123", "three slashes"),
        ("sqlite:///", "AG122", "names no file"),
        ("sqlite:////", "AG122", "names no file"),
        ("sqlite:///folder/", "AG122", "names no file"),
        ("sqlite:///a%00b", "AG122", "names no file"),
        ("sqlite:///a.db?mode=ro", "AG123", "takes no options"),
        ("sqlite:///a.db#x", "AG123", "takes no options"),
        ("sqlite:///:memory:", "AG123", "Use 'memory:'"),
        ("postgresql+psycopg://me:secret@host/db", "AG121", "memory, sqlite and postgresql"),
        ("postgresql://me:secret@[host/db", "AG123", "cannot be read"),
        ("postgresql://me:secret@host/db?secret", "AG123", "cannot be read"),
        ("postgresql://me:secret@host/db?schema=a&schema=b", "AG123", "twice"),
        ("postgresql://me:secret@host/db?schema=A%20b", "AG123", "schema of a store"),
        ("redis://host", "AG121", "memory, sqlite and postgresql"),
        ("mongodb://me:secret@host", "AG123", "no kind of store"),
    ],
)
def test_other_addresses_are_explained(url: str, code: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_store(url)
    assert caught.value.code == code
    assert "secret" not in str(caught.value), "an address may hold a password"


def test_no_address_at_all_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="needs an address"):
        open_store(None)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not exist"):
        open_store(f"sqlite:///{tmp_path}/none/s.db")


def test_a_missing_driver_is_explained_with_the_pip_line() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from agentguard.errors import MissingExtra\n"
        "from agentguard.stores import open_store\n"
        "try: open_store('postgresql://me:secret@host/db')\n"
        "except MissingExtra as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=30, capture_output=True, text=True
    ).stdout
    assert said == "psycopg is not installed; run: pip install 'agentguard[postgres]'\n"


def test_sqlite_is_loaded_when_an_address_asks_for_it_and_not_before() -> None:
    program = "import sys, agentguard.stores; assert not {'agentguard.stores.sqlite', 'psycopg'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
