"""Which of two servers is asked, in every state of a switch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from worker.models.applicators.server_state import Colour, Pair, ServerState, WrongState

STEPS: dict[str, Callable[[Pair], Pair]] = {
    "starting": Pair.starting,
    "switched": Pair.switched,
    "releasing": Pair.releasing,
}


@pytest.mark.parametrize("active", ["blue", "green"])
def test_a_switch_goes_through_the_original_states_and_ends_on_the_other_server(active: Colour) -> None:
    """Starting: still the old one is asked; Releasing: already the new one."""
    pair = Pair(ServerState.ACTIVE, active)
    seen = []
    for step in (Pair.starting, Pair.switched, Pair.releasing):
        pair = step(pair)
        seen.append((pair.state.value, pair.active == active))
    assert seen == [("starting", True), ("active", False), ("releasing", False)]
    assert pair.standby == active


def test_a_pair_that_is_down_names_the_server_that_was_active_and_can_be_brought_back() -> None:
    down = Pair(ServerState.DOWN, "blue")
    assert (down.active, down.standby) == ("blue", "green")
    assert down.starting().switched() == Pair(ServerState.ACTIVE, "green")


@pytest.mark.parametrize(
    ("state", "allowed"),
    [
        (ServerState.ACTIVE, {"starting", "releasing"}),
        (ServerState.STARTING, {"switched"}),
        (ServerState.RELEASING, set()),
        (ServerState.DOWN, {"starting"}),
    ],
)
def test_no_other_step_is_taken(state: ServerState, allowed: set[str]) -> None:
    taken = set()
    for name, step in STEPS.items():
        try:
            step(Pair(state, "blue"))
        except WrongState as error:
            assert state.value in str(error)  # noqa: PT017 - which steps raise is what is counted
        else:
            taken.add(name)
    assert taken == allowed
