from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded(seed: int) -> None:
    torch.manual_seed(seed)  # the modules draw from the default generator
