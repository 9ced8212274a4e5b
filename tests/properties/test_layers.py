"""Layers, models and drop-ins against themselves: what must hold of them whatever their parameters are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from s4_fast import S4DLayer, S4Layer, dispatch, use_backend
from s4_fast.layers.ssm_layer import SSMLayer
from tests import modules
from tests.helpers import normal, relative_error
from tests.modules import KINDS, STEPPING, H
from tests.properties.holding import PROFILES, hold

BACKENDS = [name for name in ("pytorch", "native") if dispatch.backends()[name].usable]
CAUSAL = [kind for kind in KINDS if "bidirectional" not in kind]
DROP_INS = ("S4D", "S4D in rows", "FFTConv diag", "FFTConv dplr", "S4Block diag", "S4Block dplr")
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


EVERY_LAYER = pytest.mark.parametrize("kind", LAYERS)


@PROFILES
@EVERY_LAYER
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_are_linear(bidirectional: bool, kind: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        layer, u, v = drawn.module(), drawn.signal(), drawn.signal(1)
        a, b = layer(u), layer(v)
        close(layer(2.5 * u - 0.75 * v), 2.5 * a - 0.75 * b, torch.cat((a, b)))

    law(check, drawn([kind], bidirectional=bidirectional), profile)


@PROFILES
def test_a_delayed_input_delays_the_output(profile: str) -> None:
    def check(drawn: Drawn) -> None:
        module, u = drawn.module(), drawn.signal()
        nothing = torch.zeros_like(u[:, : drawn.cut])
        y, delayed = modules.over(module, u), modules.over(module, torch.cat((nothing, u), 1))
        close(delayed[:, drawn.cut :], y)
        if drawn.kind in LAYERS:  # without biases
            close(delayed[:, : drawn.cut], nothing, y)

    law(check, drawn([*LAYERS, *DROP_INS]), profile)


@PROFILES
def test_outputs_of_a_prefix_are_those_of_the_whole(profile: str) -> None:
    def check(drawn: Drawn) -> None:
        module, u = drawn.module(), drawn.signal()
        whole = modules.over(module, u)
        close(modules.over(module, u[:, : drawn.cut]), whole[:, : drawn.cut], whole)

    law(check, drawn([*LAYERS, *CAUSAL]), profile)


@PROFILES
def test_a_sequence_may_be_cut_anywhere(profile: str) -> None:
    def check(drawn: Drawn) -> None:
        module, u = drawn.module(), drawn.signal()
        whole, last = modules.prefilled(module, u)
        outputs, state = [], None
        for piece in u.tensor_split((drawn.cut, drawn.cut + 1), 1):
            if piece.shape[1]:
                y, state = modules.prefilled(module, piece, state)
                outputs.append(y)
        close(torch.cat(outputs, 1), whole)
        if isinstance(last, Tensor):
            close(state, last)
        if drawn.cut < drawn.L <= drawn.cut + 20:
            close(modules.in_parts(module, u, drawn.cut), whole)

    law(check, drawn([*LAYERS, *STEPPING]), profile)


@PROFILES
def test_rows_know_nothing_of_each_other(profile: str) -> None:
    def check(drawn: Drawn) -> None:
        module, u = drawn.module(), drawn.signal()
        order = torch.randperm(drawn.batch, generator=Generator().manual_seed(drawn.seed))
        y = modules.over(module, u)
        close(modules.over(module, u[order]), y[order])
        close(modules.over(module, u[:1]), y[:1], y)

    law(check, drawn([*LAYERS, *KINDS]), profile)


FEATURES = {"D": 0, "inv_dt": 0, "A_real": 0, "A_imag": 0, "B": 1, "C": 1, "P": 1}  # the dimension of features


@PROFILES
@EVERY_LAYER
def test_features_in_another_order(kind: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        layer, u = drawn.module(), drawn.signal()
        order = torch.randperm(H, generator=Generator().manual_seed(drawn.seed))
        other = copy.deepcopy(layer)
        for name, parameter in other.named_parameters():
            parameter.copy_(parameter.index_select(FEATURES[name.rpartition(".")[2]], order))
        close(other(u[..., order]), layer(u)[..., order])

    law(check, drawn([kind], n_ssm=None), profile)


@PROFILES
@EVERY_LAYER
def test_only_the_products_of_the_step_matter(kind: str, profile: str) -> None:
    """dt A, dt P P* and dt B make the discrete system: half the step does what half of A and B does."""

    def check(drawn: Drawn) -> None:
        layer, u = drawn.module(), drawn.signal()
        other = copy.deepcopy(layer)
        ssm = other.kernel
        ssm.inv_dt += math.log(2)
        ssm.A_real -= math.log(2)
        for parameter in (ssm.A_imag, ssm.B):
            parameter /= 2
        if kind == "layer s4":
            ssm.P /= math.sqrt(2)
        close(other(u), layer(u))

    law(check, drawn([kind]), profile)


@PROFILES
@EVERY_LAYER
def test_the_sampling_rate_is_a_factor_of_the_step(kind: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        ssm = drawn.module().kernel
        slower = ssm.kernel(drawn.L, rate=2.0)
        ssm.inv_dt += math.log(2)
        close(ssm.kernel(drawn.L), slower)

    law(check, drawn([kind]), profile)


@PROFILES
def test_zero_order_hold_is_exact_for_held_samples(profile: str) -> None:
    """Twice the step on samples is the step on samples that are held for two steps."""

    def check(drawn: Drawn) -> None:
        layer, u = drawn.module(), drawn.signal()
        held = layer(u.repeat_interleave(2, 1))[:, 1::2]
        layer.kernel.inv_dt += math.log(2)
        close(layer(u), held)

    law(check, drawn(["layer s4d"], discretization="zoh"), profile)


@PROFILES
@EVERY_LAYER
def test_two_directions_are_two_layers(kind: str, profile: str) -> None:
    """The second one sees the samples after its own, in reversed time."""

    def check(drawn: Drawn) -> None:
        both, u = drawn.module(bidirectional=True), drawn.signal()
        ways = []
        for way in range(2):
            one = drawn.module()
            found = both.state_dict()
            found["kernel.C"] = found["kernel.C"][way : way + 1]
            one.load_state_dict(found)
            ways.append(one)
        ways[1].D.zero_()
        later = torch.cat((torch.zeros_like(u[:, :1]), u.flip(1)[:, :-1]), 1)
        close(both(u), ways[0](u) + ways[1](later).flip(1))

    law(check, drawn([kind]), profile)


@PROFILES
@EVERY_LAYER
def test_padding_is_not_read(kind: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        layer, u = drawn.module(), drawn.signal()
        lengths = torch.randint(1, drawn.L + 1, (drawn.batch,), generator=Generator().manual_seed(drawn.seed))
        inside = torch.arange(drawn.L) < lengths[:, None]
        y, state = layer(torch.where(inside[..., None], u, float("nan")), lengths=lengths, return_state=True)
        for row, length in enumerate(lengths.tolist()):
            alone, after = layer(u[row : row + 1, :length], return_state=True)
            close(y[row : row + 1, :length], alone, y)
            close(state[row : row + 1], after)
            assert not y[row, length:].any()

    law(check, drawn([kind]), profile)


@PROFILES
def test_gradients_of_pieces_are_those_of_the_whole(profile: str) -> None:
    def gradients(module: nn.Module, y: Tensor, u: Tensor, weights: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((y * weights).sum(), [u, *module.parameters()], allow_unused=True))

    def check(drawn: Drawn) -> None:
        with torch.enable_grad():
            module, u, weights = drawn.module(), drawn.signal().requires_grad_(), drawn.signal(1)
            first, state = modules.prefilled(module, u[:, : drawn.cut])
            pieces = [first]
            if drawn.cut < drawn.L:
                pieces.append(modules.prefilled(module, u[:, drawn.cut :], state)[0])
            got = gradients(module, torch.cat(pieces, 1), u, weights)
            want = gradients(module, modules.over(module, u), u, weights)
        for g, w in zip(got, want, strict=True):
            assert (g is None) == (w is None)
            assert g is None or relative_error(g, w) <= 1e-7

    law(check, drawn(LAYERS), profile)
