"""What the conformance suite cannot reach: states that no store comes to by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentguard.domain.operations import Operation
from agentguard.errors import StoreConflict
from agentguard.stores import transitions
from agentguard.stores.memory import MemoryStore
from agentguard.testing.conformance.scene import LEASE_S, RUN_METER, Scene, blocking


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene(MemoryStore, blocking) as made:
        yield made


def test_an_operation_that_nobody_knows_is_an_error(scene: Scene) -> None:
    class Unheard(Operation[Any]):
        pass

    with pytest.raises(TypeError, match="Unheard"):
        scene.do(Unheard())


def test_a_call_moves_along_its_table_only() -> None:
    with pytest.raises(StoreConflict, match="from None to succeeded"):
        transitions._move(None, "succeeded")


def test_a_request_that_cannot_be_opened_leaves_the_lost_start_as_it_was(scene: Scene) -> None:
    scene.open()
    scene.start(rerun=True)
    scene.clock.advance(LEASE_S)
    odd: Any = {1: "no name"}
    demand = scene.demand()
    object.__setattr__(demand, "arguments", odd)
    with pytest.raises(TypeError, match="keys"):
        scene.begin(rerun=True, approval=demand)
    assert scene.line(RUN_METER).held == 1
