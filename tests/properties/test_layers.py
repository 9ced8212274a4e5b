"""Layers, models and drop-ins against themselves: what must hold of them whatever their parameters are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Generator, Tensor, nn

from tests import modules
from tests.helpers import relative_error
from tests.modules import KINDS, STEPPING, H
from tests.properties.holding import PROFILES
from tests.properties.layers import LAYERS, Drawn, close, drawn, law

CAUSAL = [kind for kind in KINDS if "bidirectional" not in kind]
DROP_INS = ("S4D", "S4D in rows", "FFTConv diag", "FFTConv dplr", "S4Block diag", "S4Block dplr")

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
        slower = ssm.impulse_response(drawn.L, rate=2.0)
        ssm.inv_dt += math.log(2)
        close(ssm.impulse_response(drawn.L), slower)

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
