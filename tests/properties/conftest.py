from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import SEED_VARIABLE
from tests.helpers import threads


@pytest.fixture(autouse=True)
def replay(session_seed: int) -> None:
    print(f"replay with {SEED_VARIABLE}={session_seed}")  # shown by pytest where the test fails


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """One thread: to share problems as small as these takes longer than to solve them."""
    with threads(1):
        yield
