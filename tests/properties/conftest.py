from __future__ import annotations

import pytest

from tests.conftest import SEED_VARIABLE


@pytest.fixture(autouse=True)
def replay(session_seed: int) -> None:
    print(f"replay with {SEED_VARIABLE}={session_seed}")  # shown by pytest where the test fails
