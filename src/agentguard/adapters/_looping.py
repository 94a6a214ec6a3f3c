"""The loop around a model for those who have none: ask, run the calls, ask again, until there is an answer.

One generator says what happens in which order; a sync and an async driver carry it out, and each provider brings
its wire format. What must stay true: while a call waits for a person nothing is sent to the model; a refused
request ends the loop with its reason; what is kept for resuming is plain JSON.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from agentguard.adapters._executing import aexecute, execute
from agentguard.adapters._provenance import provenance_of
from agentguard.adapters._wire import FINAL, Answer, Proposal, collected, plain
from agentguard.domain.calls import Outcome
from agentguard.domain.decisions import StopReason
from agentguard.errors import CallRefused, ConfigurationError

if TYPE_CHECKING:
    from agentguard.gateway import Run

LoopStatus: TypeAlias = Literal["completed", "waiting", "stopped"]
FORMAT = 1
"""Version of the JSON form of a loop result."""


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A call that waits for a person: ``id`` of the approval request, ``call_id`` and ``tool`` of the call."""

    id: str
    call_id: str
    tool: str


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How a loop ended, and everything needed to go on with it in another process.

    Attributes:
        status: ``completed`` (the model answered), ``waiting`` (for a person) or ``stopped``.
        text: The model's last words, ``""`` while there are none.
        messages: The conversation so far, in the provider's own form.
        pending: Calls that wait for a person.
        stop_reason: Why it did not complete, or ``completed``.
        detail: The same in words, for people.
        api: Wire format of ``messages``: ``chat``, ``responses`` or ``messages``.
        settings: Model and further settings of the requests.
        turns: Model calls made so far.
        refused: Whether the gateway refused to go on (the run is then ended with ``stop_reason``).
    """

    status: LoopStatus
    text: str
    messages: list[dict[str, Any]]
    pending: tuple[PendingCall, ...] = ()
    stop_reason: StopReason = StopReason.COMPLETED
    detail: str = ""
    api: str = "chat"
    settings: dict[str, Any] = field(default_factory=dict)
    turns: int = 0
    refused: bool = False

    def to_json(self) -> str:
        """The result as JSON text; keep it where the conversation is kept."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> LoopResult:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigurationError: It is something else.
        """
        try:
            given = json.loads(text)
            if given.pop("format") != FORMAT or not isinstance(given["messages"], list):
                raise ValueError("the format is not known")
            given["pending"] = tuple(PendingCall(**entry) for entry in given["pending"])
            given["stop_reason"] = StopReason(given["stop_reason"])
            return cls(**given)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(f"AG655 this is no saved loop: {error}", code="AG655") from error


class Dialect(Protocol):
    """The wire format of one provider interface, as the loop needs it. All methods are pure."""

    api: str

    def request(self, run: Run, messages: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the next model call."""
        ...

    def taken(self, messages: list[dict[str, Any]], answer: Mapping[str, Any]) -> list[Proposal]:
        """Append the model's answer to the conversation; the calls it proposes."""
        ...

    def unanswered(self, messages: Sequence[Mapping[str, Any]]) -> list[Proposal]:
        """Calls at the end of a conversation that have no answer yet."""
        ...

    def answered(self, messages: list[dict[str, Any]], answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Append answers of calls to the conversation; what was appended."""
        ...

    def paused(self, answer: Mapping[str, Any], /) -> bool:
        """Whether the provider wants to be asked again although no call is open."""
        ...

    def text(self, answer: Mapping[str, Any]) -> str:
        """The words of an answer."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """Call the model with these keyword arguments; the answer comes back as plain data."""

    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Carry:
    """Carry out these proposals; their outcomes come back, in the same order."""

    proposals: list[Proposal]


def conversing(
    dialect: Dialect, run: Run, start: LoopResult, max_turns: int
) -> Generator[Ask | Carry, Any, LoopResult]:
    """What happens in a loop, in order; see the module's docstring."""
    messages = list(start.messages)
    turns = start.turns
    text = start.text
    remember = provenance_of(run).remember

    def ended(status: LoopStatus, reason: StopReason, detail: str = "", *, refused: bool = False) -> LoopResult:
        return LoopResult(status, text, messages, (), reason, detail, start.api, start.settings, turns, refused)

    proposals = dialect.unanswered(messages)
    while True:
        if proposals:
            outcomes: Sequence[Outcome] = yield Carry(proposals)
            results = collected(proposals, outcomes, lambda answers: dialect.answered(messages, answers), remember)
            if results.stop in FINAL:
                return ended("stopped", results.stop or StopReason.KILLED, "the run has ended", refused=True)
            if results.pending:
                waiting = tuple(PendingCall(r.id, r.call_id, r.tool) for r in results.pending)
                return replace(ended("waiting", StopReason.APPROVAL_PENDING, "a person has to decide"), pending=waiting)
        if turns >= max_turns:
            return ended("stopped", StopReason.BUDGET_STEPS, f"max_turns={max_turns} model calls were made")
        try:
            answer: Mapping[str, Any] = yield Ask(dialect.request(run, messages, start.settings))
        except CallRefused as refusal:
            return ended("stopped", refusal.reason, refusal.for_people, refused=True)
        turns += 1
        proposals = dialect.taken(messages, answer)
        text = dialect.text(answer)
        if not proposals and not dialect.paused(answer):
            return ended("completed", StopReason.COMPLETED)


def _ends_run(result: LoopResult) -> bool:
    return result.refused and result.stop_reason not in FINAL


def drive(
    dialect: Dialect,
    run: Run,
    start: LoopResult,
    ask: Callable[[dict[str, Any]], Mapping[str, Any]],
    *,
    max_turns: int,
    parallel: bool,
) -> LoopResult:
    """Carry out a loop in sync code; a run whose next model call is refused ends with that reason."""
    steps = conversing(dialect, run, start, max_turns)
    given: Any = None
    refusal: CallRefused | None = None
    while True:
        try:
            step = steps.send(given) if refusal is None else steps.throw(refusal)
        except StopIteration as end:
            result: LoopResult = end.value
            break
        refusal = None
        if isinstance(step, Carry):
            given = execute(run, step.proposals, parallel=parallel)
            continue
        try:
            given = ask(step.arguments)
        except CallRefused as error:
            refusal = error
    if _ends_run(result):
        run.stop(result.stop_reason, note=result.detail)
    return result


async def adrive(
    dialect: Dialect,
    run: Run,
    start: LoopResult,
    ask: Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]],
    *,
    max_turns: int,
    parallel: bool,
) -> LoopResult:
    """The same in async code."""
    steps = conversing(dialect, run, start, max_turns)
    given: Any = None
    refusal: CallRefused | None = None
    while True:
        try:
            step = steps.send(given) if refusal is None else steps.throw(refusal)
        except StopIteration as end:
            result: LoopResult = end.value
            break
        refusal = None
        if isinstance(step, Carry):
            given = await aexecute(run, step.proposals, parallel=parallel)
            continue
        try:
            given = await ask(step.arguments)
        except CallRefused as error:
            refusal = error
    if _ends_run(result):
        await run.astop(result.stop_reason, note=result.detail)
    return result


def starting(api: str, messages: Any, settings: Mapping[str, Any], turns: int = 0) -> LoopResult:
    """The state before the first model call.

    Raises:
        ConfigurationError: Messages or settings are not plain JSON, so they could not be kept for resuming.
    """
    given = [{"role": "user", "content": messages}] if isinstance(messages, str) else plain(list(messages))
    try:
        given = json.loads(json.dumps(given))
        kept = json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"AG656 messages and settings of a loop must be plain JSON, so that it can be resumed: {error}. Set timeouts "
            "and the like on the client with with_options().",
            code="AG656",
        ) from error
    return LoopResult("stopped", "", given, api=api, settings=kept, turns=turns)


def going_on(saved: LoopResult | str | bytes, apis: Sequence[str], settings: Mapping[str, Any]) -> LoopResult:
    """A saved loop, with settings replaced.

    Raises:
        ConfigurationError: It is no saved loop, or one of another provider.
    """
    found = saved if isinstance(saved, LoopResult) else LoopResult.from_json(saved)
    if found.api not in apis:
        raise ConfigurationError(f"AG655 this loop was saved for the {found.api} interface.", code="AG655")
    return replace(found, settings={**found.settings, **starting(found.api, [], settings).settings})
