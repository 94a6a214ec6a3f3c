"""What the flow may ask of the world besides the store: data only.

Store operations (``agentguard.domain.operations``) are effects too. The drivers answer each effect with a
value, or throw what happened into the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import TypeVar

from agentguard.domain.approvals import ApprovalRequest, Verdict
from agentguard.domain.constructing import quick
from agentguard.domain.context import CallContext
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import Effect
from agentguard.domain.plans import ProbeResult
from agentguard.protocols import CredentialRequest

if TYPE_CHECKING:
    from agentguard.resilience.credentials import Credentials
    from agentguard.tools.tool import Tool

R = TypeVar("R")
Flow: TypeAlias = Generator[Effect[Any], Any, R]


class TimedOut(Exception):
    """The body did not return in time. ``abandoned``: it may still be running (a thread cannot be stopped)."""

    def __init__(self, seconds: float, *, abandoned: bool) -> None:
        super().__init__(f"no answer within {seconds:g} s")
        self.seconds = seconds
        self.abandoned = abandoned


class NotStarted(Exception):
    """The body was never started: no worker was free in time."""


class Interrupted(BaseException):
    """The caller was cancelled while the store was answering; ``answer`` is what the store said.

    At ``Invoke``, ``answer`` is a :class:`NotStarted` when the body had not begun and never will.
    """

    def __init__(self, answer: Any) -> None:
        super().__init__("the caller was interrupted")
        self.answer = answer


@quick
@dataclass(frozen=True, slots=True)
class Invoke(Effect[Any]):
    """Run the tool's body once and answer its result.

    Raises what the body raises, :class:`TimedOut` or :class:`NotStarted`.

    Attributes:
        tool: The tool.
        arguments: Python values for the body's parameters.
        context: For an injected ``CallContext`` parameter.
        credentials: For an injected ``Credentials`` parameter, or ``None``.
        timeout_s: How long the caller waits, or ``None``.
        late: Makes the flow that records what an abandoned body returned or raised after all.
    """

    tool: Tool
    arguments: Mapping[str, Any]
    context: CallContext
    credentials: Credentials | None
    timeout_s: float | None
    late: Callable[[Any, Exception | None], Generator[Effect[Any], Any, None]] | None = None


@dataclass(frozen=True, slots=True)
class Probe(Effect[ProbeResult | None]):
    """Ask the tool's probe whether an earlier start of the call took effect; ``None`` when it cannot tell."""

    tool: Tool
    arguments: Mapping[str, Any]
    context: CallContext


@dataclass(frozen=True, slots=True)
class Sleep(Effect[None]):
    """Wait ``seconds`` before the next attempt."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Lease(Effect["Leased"]):
    """Lease the secrets of one call. Raises what the provider raises, after giving back what it handed out."""

    requests: tuple[CredentialRequest, ...]


@dataclass(frozen=True, slots=True)
class Leased:
    """The secrets of one call: what the body gets, and what goes back to the provider afterwards."""

    credentials: Credentials
    secrets: tuple[tuple[CredentialRequest, str], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Release(Effect[None]):
    """Give the secrets of one call back; never raises."""

    leased: Leased


@dataclass(frozen=True, slots=True)
class Ask(Effect[Verdict | None]):
    """Ask the inline approver; ``None`` when there is none or it has no answer yet."""

    request: ApprovalRequest


@dataclass(frozen=True, slots=True)
class Publish(Effect[None]):
    """Hand records to the sinks. Raises ``SinkError`` when a required sink did not take them."""

    records: tuple[AuditRecord, ...]


@dataclass(frozen=True, slots=True)
class Draw(Effect[str]):
    """32 random hex digits."""


DRAW = Draw()


@dataclass(frozen=True, slots=True)
class Tick(Effect[float]):
    """Seconds on a clock that never goes back."""


TICK = Tick()
