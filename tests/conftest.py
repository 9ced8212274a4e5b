from __future__ import annotations

import os
import random
import zlib
from collections import defaultdict
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from tests.ranks import Ranks
from tests.selection import belongs, covering, read_part, sampled

# Threads that wait for small pieces of work spin; what depends on their number sets it.
torch.set_num_threads(1)
# Runs on several processes set it, and commands would fold their output to it.
os.environ.pop("COLUMNS", None)

SEED_VARIABLE = "S4_FAST_TEST_SEED"
# In the environment, other processes that this run starts have it too.
if not os.environ.get(SEED_VARIABLE):
    os.environ[SEED_VARIABLE] = str(random.SystemRandom().randrange(2**32))
SEED = int(os.environ[SEED_VARIABLE])
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


# Without a database of failures: what a run draws depends on the seed alone.
_PHASES = (hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink)
hypothesis.settings.register_profile(
    "quick", max_examples=10, deadline=None, database=None, print_blob=True, phases=_PHASES
)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("quick"), max_examples=200)
hypothesis.settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", type=read_part, metavar="K/N", help="of the tests that are chosen, the K-th of N parts")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws from the session's seed, unless --hypothesis-seed gives it another one."""
    if config.getoption("--hypothesis-seed", None) is None:
        config.option.hypothesis_seed = str(SEED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"the same random numbers again: {SEED_VARIABLE}={SEED}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark as slow the variants of each test that a default run leaves out; then take a part of what is left."""
    tests = defaultdict[str, list[pytest.Function]](list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for test, variants in tests.items():
        if sample := variants[0].get_closest_marker("sample"):
            chosen = sampled(len(variants), *sample.args, f"{SEED} {test}")
        else:
            strength = 1 if variants[0].get_closest_marker("each_value") else 2
            chosen = covering([tuple(map(id, variant.callspec.params.values())) for variant in variants], strength)
        for place in set(range(len(variants))) - chosen:
            variants[place].add_marker("slow")
    yield  # pytest leaves out what -m and -k do
    if part := config.getoption("part"):
        kept = [item for item in items if belongs(item.nodeid, *part)]
        config.hook.pytest_deselected(items=set(items).difference(kept))
        items[:] = kept


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Keep the tests of a file in one process, where they share what is slow to make."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(scope="session")
def session_seed() -> int:
    return SEED


@pytest.fixture
def generator(session_seed: int, request: pytest.FixtureRequest) -> torch.Generator:
    """Fresh numbers in every session; a test's own do not depend on which tests run before it."""
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
