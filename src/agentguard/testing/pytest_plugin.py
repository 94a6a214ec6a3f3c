"""The pytest plugin: case files are collected as tests, and tests get a gateway and a person who approves.

Installed with agentguard, so pytest finds it by itself; ``-p no:agentguard`` leaves it out. The only module that
imports pytest. What must stay true: until a case file or a fixture asks for it, nothing of a gateway is imported.

* ``*.agentguard_test.yaml``: every case is a test; see ``agentguard test``.
* ``agentguard_tools``, ``agentguard_config`` (settings of pytest): the tools as ``module:attribute`` (a registry, a
  tool, or a list of tools), and the configuration file, ``agentguard.yaml`` by default.
* ``approver``, ``gateway`` (fixtures): a scripted person, and the gateway of those two settings on a store in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from agentguard.domain.approvals import ApprovalRequest, Verdict
    from agentguard.gateway.door import ToolGateway
    from agentguard.policy.cases import Case, Suite
    from agentguard.policy.typing import Registry
    from agentguard.tools.registry import ToolRegistry

SUFFIX = ".agentguard_test.yaml"
"""How the names of case files end."""


class ScriptedApprover:
    """A person who was told beforehand what to answer; who was told nothing does not answer.

    Attributes:
        requests: What the person was asked, in order.
    """

    def __init__(self) -> None:
        self.requests: list[ApprovalRequest] = []
        self._answers: list[Verdict] = []

    def approve(self, by: str = "approver", *, roles: Sequence[str] = (), arguments: Any = None) -> None:
        """Say yes to the next request that is not answered yet.

        Args:
            by: Name of the person.
            roles: Roles of the person.
            arguments: Arguments to run instead of those that were shown.
        """
        self._answer("approve", by, roles, arguments=arguments)

    def reject(self, reason: str, by: str = "approver", *, roles: Sequence[str] = ()) -> None:
        """Say no to the next request that is not answered yet."""
        self._answer("reject", by, roles, reason=reason)

    def _answer(self, kind: Any, by: str, roles: Sequence[str], **more: Any) -> None:
        from agentguard.domain.approvals import ApproverIdentity, Verdict

        self._answers.append(Verdict(kind, ApproverIdentity(by, tuple(roles)), **more))

    def decide(self, request: ApprovalRequest) -> Verdict | None:
        """The next answer, or ``None``: the call is suspended."""
        self.requests.append(request)
        return self._answers.pop(0) if self._answers else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the settings."""
    parser.addini("agentguard_tools", "The tools under test as module:attribute.", default="")
    parser.addini("agentguard_config", "The configuration file under test.", default="agentguard.yaml")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> CaseFile | None:
    """Collect case files."""
    if not file_path.name.endswith(SUFFIX):
        return None
    collected: CaseFile = CaseFile.from_parent(parent, path=file_path)
    return collected


def find_tools(where: str) -> ToolRegistry:
    """The tools at ``module:attribute``.

    Raises:
        UsageError: There are none.
    """
    import pkgutil

    from agentguard.tools.registry import ToolRegistry

    try:
        value = pkgutil.resolve_name(where)
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(f"agentguard: the tools {where!r} cannot be found: {error}") from error
    if isinstance(value, ToolRegistry):
        return value
    return ToolRegistry.of(*value) if isinstance(value, (list, tuple, set, frozenset)) else ToolRegistry.of(value)


def _tools(config: pytest.Config) -> ToolRegistry | None:
    where = str(config.getini("agentguard_tools"))
    return find_tools(where) if where else None


class CaseFile(pytest.File):
    """A case file; its cases are tests, named by their sentences."""

    def collect(self) -> Iterator[CaseItem]:
        """Every case of the file.

        Raises:
            CollectError: The file, a policy or the tools do not load.
        """
        from agentguard.documents import load_file
        from agentguard.errors import AgentGuardError
        from agentguard.gateway.rehearsing import tools_of
        from agentguard.policy.cases import read_cases

        try:
            suites = read_cases(load_file(self.path), self.path.parent)
            known = [(suite, tools_of(suite, _tools(self.config), find_tools)) for suite in suites]
        except AgentGuardError as error:
            raise self.CollectError(str(error)) from error
        for suite, registry in known:
            for case in suite.cases:
                yield CaseItem.from_parent(self, name=case.say, suite=suite, registry=registry, case=case)


class CaseFailed(Exception):
    """A case does not hold; the message has one problem per line."""


class CaseItem(pytest.Item):
    """One case."""

    def __init__(self, *, suite: Suite, registry: Registry, case: Case, **settings: Any) -> None:
        super().__init__(**settings)
        self.suite, self.registry, self.case = suite, registry, case

    def runtest(self) -> None:
        """Try the case.

        Raises:
            CaseFailed: It does not hold.
        """
        from agentguard.gateway.rehearsing import rehearse

        (tried,) = rehearse(self.suite, self.registry, [self.case]).tried
        if not tried.passed:
            raise CaseFailed("\n".join(tried.problems))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The problems alone: the traceback would show this module."""
        if isinstance(excinfo.value, CaseFailed):
            return f"{self.path}:{self.case.line}: {self.case.say}\n{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """File, line (from 0) and sentence."""
        return self.path, self.case.line - 1, self.case.say


@pytest.fixture
def approver() -> ScriptedApprover:
    """A person for calls that need approval; tell it what to answer with ``approve()`` and ``reject(reason)``."""
    return ScriptedApprover()


@pytest.fixture
def gateway(pytestconfig: pytest.Config, approver: ScriptedApprover) -> Iterator[ToolGateway]:
    """The gateway of the settings ``agentguard_config`` and ``agentguard_tools``, on a store in memory.

    Raises:
        UsageError: ``agentguard_tools`` is not set.
    """
    from agentguard.gateway.door import ToolGateway

    tools = _tools(pytestconfig)
    if tools is None:
        raise pytest.UsageError("agentguard: set agentguard_tools = module:attribute in the settings of pytest")
    path = pytestconfig.rootpath / str(pytestconfig.getini("agentguard_config"))
    with ToolGateway.from_yaml(path, tools, store="memory:", sinks=(), approver=approver) as made:
        yield made
