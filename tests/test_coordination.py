"""What may happen to the record of an answer, a run or a shared run: in tables, and in walks of several processes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from walks import NUMBERS, STEPS, WALKS, Walk, turn_of

# ------------------------------------------------------------ walks


def machine_of(kind: type[Walk]) -> type[RuleBasedStateMachine]:
    """One number for each turn: drawing its steps one by one takes three times as long."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.walk = kind()

        @rule(turn=st.integers(0, NUMBERS - 1).map(partial(turn_of, kind)))
        def step(self, turn: Any) -> None:
            self.walk.step(*turn)

        def teardown(self) -> None:
            self.walk.end()

    return Machine


@pytest.mark.parametrize("kind", WALKS)
def test_what_is_promised_holds_on_every_walk(kind):
    """
    Of several processes that die, pause, lose their leases, start again and hear of nothing, at any moment.

    At most one that lives has what it holds, and who has lost it changes nothing (invariant 6); fences and versions
    grow (10); what is left is taken once, and so often at most (14); nothing is lost, and what is over stays as it is
    (17); who asks for the same shares it.
    """
    run_state_machine_as_test(
        machine_of(kind),
        settings=settings(max_examples=1000, stateful_step_count=STEPS, deadline=None, derandomize=True),
    )
