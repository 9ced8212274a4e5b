"""What the tests of layers, models and drop-ins draw, and how they compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Generator, Tensor

from s4_fast import S4DLayer, S4Layer, dispatch, use_backend
from s4_fast.layers.ssm_layer import SSMLayer
from tests import modules
from tests.helpers import normal
from tests.modules import KINDS, H
from tests.properties.holding import hold

BACKENDS = [name for name in ("pytorch", "native") if dispatch.backends()[name].usable]
LONGEST = 130


class Drawn(NamedTuple):
    """A module and a signal but for their numbers. ``kind`` is that of a module, or the name of a layer."""

    kind: str
    options: dict[str, Any]
    batch: int
    L: int
    part: float  # where the sequence is cut
    contiguous: bool
    backend: str
    seed: int

    @property
    def cut(self) -> int:
        return 1 + int(self.part * (self.L - 1))

    def module(self, **more: Any) -> Any:
        """In float64, its S4 kernels set up for the longest sequence."""
        torch.manual_seed(self.seed)
        if self.kind in LAYERS:
            layer = LAYERS[self.kind](H, **self.options, **more, generator=Generator().manual_seed(self.seed))
            return modules.set_up(layer.double(), 2 * LONGEST)
        return modules.set_up(KINDS[self.kind](dt_min=0.01).double(), 2 * LONGEST).eval()

    def signal(self, salt: int = 0) -> Tensor:
        u = normal(Generator().manual_seed(self.seed + salt), self.batch, self.L, H, dtype=torch.float64)
        return u if self.contiguous else u.mT.contiguous().mT


LAYERS: dict[str, type[SSMLayer]] = {"layer s4d": S4DLayer, "layer s4": S4Layer}
_SHARED: dict[str, st.SearchStrategy[Any]] = {
    "d_state": st.sampled_from([2, 6, 8, 58]),
    "n_ssm": st.sampled_from([None, 1, 2]),
    "path": st.sampled_from(["scan", "convolution", "auto"]),
}
_OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "layer s4d": st.fixed_dictionaries(
        {
            **_SHARED,
            "init": st.sampled_from(["lin", "inv", "legs"]),
            "discretization": st.sampled_from(["zoh", "bilinear"]),
        }
    ),
    "layer s4": st.fixed_dictionaries({**_SHARED, "init": st.sampled_from(["legs", "fout"])}),
}


def drawn(kinds: Iterable[str], **fixed: Any) -> st.SearchStrategy[Drawn]:
    def of(kind: str) -> st.SearchStrategy[Drawn]:
        options = _OPTIONS.get(kind, st.just({})).map(lambda found: {**found, **fixed})
        return st.builds(
            Drawn,
            st.just(kind),
            options,
            st.integers(1, 3),
            st.one_of(st.sampled_from([1, 17, 64, 65]), st.integers(1, LONGEST)),
            st.floats(0, 1),
            st.booleans(),
            st.sampled_from(BACKENDS),
            st.integers(0, 2**31 - 1),
        )

    return st.sampled_from(sorted(kinds)).flatmap(of)


def close(got: Tensor, want: Tensor, scale: Tensor | None = None, allowed: float = 1e-10) -> None:
    """Relative to what ``scale`` holds: a single output may be a small difference of its terms."""
    largest = max(float(torch.linalg.vector_norm(t)) for t in (want, want if scale is None else scale))
    assert got.shape == want.shape
    error = float(torch.linalg.vector_norm(got - want))
    assert error <= allowed * largest, (error, largest)


def law(check: Callable[[Drawn], None], strategy: st.SearchStrategy[Drawn], profile: str) -> None:
    """``check`` holds without gradients on the backend that is drawn."""

    def checked(drawn: Drawn) -> None:
        with torch.no_grad(), use_backend(drawn.backend):
            check(drawn)

    hold(checked, strategy, profile)
