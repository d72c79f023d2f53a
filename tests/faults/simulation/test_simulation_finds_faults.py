"""The simulation can fail: faults put into the product on purpose are found, each by the invariant that it breaks."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.faults.simulation import mutants
from tests.faults.simulation.pilot import a_flight

# What a killed process had open nobody closes here; in the world the kernel does.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

#: Flights within which each must be found; most are in the first few.
MOST_FLIGHTS = 80


def finding(**parts: Any) -> str:
    """What the first flight that fails with these parts fails with; empty where none does."""
    for seed in range(MOST_FLIGHTS):
        with a_flight(seed, **parts) as flight:
            try:
                flight.fly(60)
            except AssertionError as found:
                return str(found)
    return ""


@pytest.mark.parametrize(
    ("parts", "invariant"),
    [
        ({"sink": mutants.AckBeforeCommit}, "was confirmed and is lost"),  # I1
        ({"store": mutants.BatchesWithoutIdentity}, "is stored twice|facts of"),  # I3
        ({"store": mutants.NoFence}, "under epoch"),  # I3: the zombie's commit
        ({"store": mutants.EventsOutsideTheTransaction}, "no event for"),  # I5
        ({"store": mutants.DeploysQuietly}, "no event for"),  # I5
        ({"store": mutants.SentBeforeItIs}, "marked as sent, and nobody got them"),  # I5
        ({"store": mutants.ProjectsTwice}, "facts of|aggregates of"),
        ({"store": mutants.CountsAndNeverTakesBack}, "aggregates of"),
        ({"store": mutants.ForgetsCommands}, "was answered"),
        ({"store": mutants.KeepsRunsForItself}, "not drained|told nobody|did not come to rest"),  # I6
        ({"store": mutants.RemembersForBothKinds}, "memory of lora"),
        ({"store": mutants.GoesBackUnderTheOtherName}, "aliases of"),
    ],
    ids=lambda value: next(iter(value.values())).__name__ if isinstance(value, dict) else "",
)
@pytest.mark.timeout(120)
def test_a_fault_put_in_on_purpose_is_found(parts: dict[str, Any], invariant: str) -> None:
    """Found, and by name."""
    found = finding(**parts)
    assert re.search(invariant, found), found or f"not found in {MOST_FLIGHTS} flights"


@pytest.mark.parametrize(
    ("where", "fault", "invariant"),
    [
        ("worker.training.runs.Execution", mutants.GivesUpTheKilled, "failed at start"),
        ("worker.training.runs.HandOver", mutants.ForgetsToHandOver, "was not handed over"),
        ("tests.faults.simulation.node.Registry", mutants.RetiresWhatWasLive, "its files are gone"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
@pytest.mark.timeout(120)
def test_a_fault_of_adapters_put_in_on_purpose_is_found(
    monkeypatch: pytest.MonkeyPatch, where: str, fault: type, invariant: str
) -> None:
    """In what no world takes as a part."""
    monkeypatch.setattr(where, fault)
    found = finding()
    assert re.search(invariant, found), found or f"not found in {MOST_FLIGHTS} flights"
