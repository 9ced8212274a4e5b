from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests.ranks import Ranks

# Processes of pytest-xdist share the cores.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))

SEED_VARIABLE = "S4_FAST_TEST_SEED"
SEED = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**32))
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


# Without a database of failures: what a run draws depends on the seed alone.
_PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink)
hypothesis.settings.register_profile(
    "quick", max_examples=10, deadline=None, database=None, print_blob=True, phases=_PHASES
)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("quick"), max_examples=200)
hypothesis.settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws from the session's seed, unless --hypothesis-seed gives it another one."""
    if config.getoption("--hypothesis-seed", None) is None:
        config.option.hypothesis_seed = str(SEED)


@pytest.fixture(scope="session")
def session_seed() -> int:
    return SEED


@pytest.fixture
def generator(session_seed: int, request: pytest.FixtureRequest) -> torch.Generator:
    """Fresh numbers in every session; a test's own do not depend on which tests run before it."""
    print(f"replay with {SEED_VARIABLE}={session_seed}")  # shown by pytest where the test fails
    return torch.Generator().manual_seed(session_seed ^ zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


@pytest.fixture(scope="session")
def groups() -> Iterator[dict[int, Ranks]]:
    """Two, three and four processes in a group; none starts before it has something to run."""
    found = {world: Ranks(world) for world in (2, 3, 4)}
    yield found
    for ranks in found.values():
        ranks.stop()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` and its relatives return with NaN, so that an entry never written is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
