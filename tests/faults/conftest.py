"""What fault tests share: real workers, and the oracle of one seed."""

from __future__ import annotations

import pytest

from tests.faults.oracle import Oracle, chosen_seed
from tests.integration.conftest import command_line, new_worker, nursery  # noqa: F401 - fixtures


@pytest.fixture
def oracle() -> Oracle:
    """The books of one test."""
    return Oracle(chosen_seed())
