"""What commands work on: the store, the configuration and the tools, found where the options say.

What must stay true: a command that reads never creates a store by misspelling its address; whatever is wrong with
a path, an import or an address is a configuration error that names it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn
from urllib.parse import quote, unquote

from agentguard import config
from agentguard.budget.budget import Budget
from agentguard.cli.printing import note
from agentguard.documents import did_you_mean
from agentguard.errors import ConfigurationError
from agentguard.gateway import ToolGateway
from agentguard.tools.registry import ToolRegistry
from agentguard.tools.tool import Tool

DEFAULT_CONFIG: Final = Path("agentguard.yaml")
DEMO_STORE: Final = Path("agentguard-demo.db")
"""What ``agentguard demo`` leaves behind; looked at when nothing else is named."""
STORE_VARIABLE: Final = "AGENTGUARD_STORE"
_SQLITE: Final = "sqlite:///"


def wrong(message: str) -> NoReturn:
    """Stop with a configuration error.

    Raises:
        ConfigurationError: Always.
    """
    raise ConfigurationError(message)


def read_config(path: Path) -> config.Settings:
    """Read a configuration file; the sinks it names are not opened.

    Raises:
        PolicyError: It does not load.
    """
    return config.read(path)


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite address, ``None`` for other addresses."""
    return Path(unquote(url[len(_SQLITE) :])) if url.lower().startswith(_SQLITE) else None


def find_store(store: str | None, config_file: Path | None) -> tuple[str, tuple[Budget, ...]]:
    """Address of the store that the options, the environment or the configuration file name.

    Returns:
        The address, and the budgets of the configuration file when it was read.

    Raises:
        ConfigurationError: None of them names one, or it is gone with its process.
        PolicyError: The configuration file does not load.
    """
    budgets: tuple[Budget, ...] = ()
    path = config_file
    url = store
    if url is None and path is None:
        url = os.environ.get(STORE_VARIABLE) or None
        if url is None and DEFAULT_CONFIG.exists():
            path = DEFAULT_CONFIG
    if path is not None:
        settings = read_config(path)
        budgets = settings.budgets
        if url is None:
            if settings.store is None:
                wrong(f"{path} names no store; add store: to it, or pass --store URL.")
            file = sqlite_path(settings.store)
            url = settings.store if file is None else _SQLITE + quote(str(path.parent / file))
    if url is None and DEMO_STORE.is_file():
        note(f"looking at ./{DEMO_STORE}, which 'agentguard demo' left here")
        url = str(DEMO_STORE)
    if url is None:
        wrong(
            f"No store is named: pass --store URL or --config FILE, or set {STORE_VARIABLE}; there is no {DEFAULT_CONFIG}."
        )
    if ":" not in url and Path(url).is_file():
        url = _SQLITE + quote(url)
    if url.lower().partition(":")[0] == "memory":
        wrong("A memory: store lives and ends with the process that opened it; there is nothing to look at from here.")
    return url, budgets


@contextlib.contextmanager
def opened(store: str | None, config_file: Path | None, tools: str | None = None) -> Generator[ToolGateway, None, None]:
    """A gateway on an existing store, without a policy: it shows and decides, and runs nothing.

    Raises:
        ConfigurationError: There is no such store.
        StoreUnavailable: It cannot be opened.
    """
    url, budgets = find_store(store, config_file)
    file = sqlite_path(url)
    if file is not None and not file.is_file():
        wrong(f"There is no store at {file}: no such file. (Services create it; commands that only look do not.)")
    registry: Iterable[Any] = load_tools(tools) if tools is not None else ()
    gateway = ToolGateway(registry, store=url, budgets=budgets)
    try:
        yield gateway
    finally:
        gateway.close()


# --- tools -------------------------------------------------------------------------------------------


def load_tools(where: str) -> ToolRegistry:
    """The tools at ``module:attr``, ``file.py:attr`` or of a whole module.

    Raises:
        ConfigurationError: The module cannot be imported, or there are no tools in it.
        ToolDefinitionError: A tool cannot be registered.
    """
    name, colon, attribute = where.partition(":")
    if not name or (colon and not attribute):
        wrong(f"--tools {where!r}: write module:attribute, for example service.tools:TOOLS")
    module = _import(name)
    if not attribute:
        found = _unique(vars(module).values())
        if not found:
            wrong(f"--tools {where}: no decorated function in {name}; name a list or registry as {name}:ATTR")
        return ToolRegistry.of(*found)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            close = _close(part, dir(value))
            wrong(f"--tools {where}: {name} has no {part!r}{close}")
        value = getattr(value, part)
    return _registry(where, value)


def _close(word: str, names: Iterable[str]) -> str:
    hint = did_you_mean(word, [n for n in names if not n.startswith("_")])
    return f" ({hint})" if hint else ""


def _is_tool(value: Any) -> bool:
    return isinstance(value, Tool) or isinstance(getattr(value, "tool", None), Tool)


def _unique(values: Iterable[Any]) -> list[Any]:
    found: dict[int, Any] = {}
    for value in values:
        if _is_tool(value):
            found.setdefault(id(value if isinstance(value, Tool) else value.tool), value)
    return list(found.values())


def _registry(where: str, value: Any) -> ToolRegistry:
    if isinstance(value, ToolRegistry):
        return value
    if isinstance(value, ToolGateway):
        return value.registry
    if _is_tool(value):
        return ToolRegistry.of(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return ToolRegistry.of(*value)
    hint = "; it is a function: name what it returns" if inspect.isfunction(value) else ""
    wrong(f"--tools {where}: a {type(value).__name__} is no registry, gateway, tool or list of tools{hint}")


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        # What a module prints while it is imported is no data of ours.
        with contextlib.redirect_stdout(sys.stderr):
            return _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except ConfigurationError:
        raise
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in (name, name.partition(".")[0])
        place = f" (looked in {here} and the installed packages)" if missing else ""
        raise ConfigurationError(
            f"--tools: {name} cannot be imported: {type(error).__name__}: {error}{place}"
        ) from error
    except SystemExit as error:
        raise ConfigurationError(
            f"--tools: importing {name} ended the process ({error.code}); put what it runs under "
            'if __name__ == "__main__":'
        ) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        wrong(f"--tools: there is no file {path}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        wrong(f"--tools: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Its neighbours can be imported, as if it had been started; annotations are resolved through sys.modules.
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
