"""The whole layers that are measured: how each is made, called, evaluated directly, and defined in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import s4_fast
from s4_fast import S4DLayer, S4Layer, S4SequenceModel, state_spaces, use_backend
from s4_fast.bench import direct, direct_layers, peers
from s4_fast.bench.cases import Case
from s4_fast.bench.peers import Run, Whole, parameters

# Terms (features, states, L) up to which the definition of S4DLayer materialises them.
_TERMS = 2**22


@dataclass(frozen=True)
class Layer:
    """One layer, or one way of calling it.

    Attributes:
        build: the module of a case.
        call: the function of its input that is measured.
        definition: what it is compared with, of the module in float64.
        shape: that of the input.
        direct: the direct evaluation, if there is one.
        beside: what it stands beside, by the names in :data:`.peers.PEERS`.
        differentiable: whether gradients are measured too.
    """

    build: Callable[[Case], nn.Module]
    call: Callable[[Any, Case], Run]
    definition: Callable[[Any, Case], Run]
    shape: Callable[[Case], tuple[int, ...]]
    direct: Callable[[Any, Case], Whole] | None = None
    beside: tuple[str, ...] = ()
    differentiable: bool = True


def _time_major(case: Case) -> tuple[int, ...]:
    return case.batch, case.L, case.H


def _features_first(case: Case) -> tuple[int, ...]:
    return case.batch, case.H, case.L


def _one_sample(case: Case) -> tuple[int, ...]:
    return case.batch, case.H


def _s4d_layer(case: Case) -> S4DLayer:
    layer = S4DLayer(case.H, 2 * case.n)
    if case.decay is not None:
        with torch.no_grad():
            layer.kernel.A_real.copy_((case.decay / layer.kernel.dt()).log().expand_as(layer.kernel.A_real))
    return layer


def _define_s4d(layer: S4DLayer, case: Case) -> Run:
    few = case.H * case.n * case.L <= _TERMS
    kernel = direct.log_vandermonde if few else partial(s4_fast.log_vandermonde, backend="pytorch")

    def run(u: Tensor) -> Tensor:
        ssm = layer.kernel
        A = ssm.A()
        x = ssm.dt() * A
        C = torch.view_as_complex(ssm.C)[0] * ssm.B_vector() * torch.expm1(x) / A
        return direct.fft_conv(u.mT, kernel(C, x, u.shape[1]), layer.D).mT

    return run


def _define_s4(layer: S4Layer, case: Case) -> Run:
    def run(u: Tensor) -> Tensor:
        ssm, L = layer.kernel, u.shape[1]
        A, B, dt = ssm.A(), ssm.B_vector(), ssm.dt()
        P, C = (torch.view_as_complex(t) for t in (ssm.P, ssm.C))
        A_bar, _ = direct.dense_bilinear(A, P, B, dt)
        row = direct.truncated(C[0], A_bar, L)[None]
        return direct.fft_conv(
            u.mT, s4_fast.dplr_kernel(dt * A, P, P, B[None], row, dt, L, backend="pytorch")[0, 0], layer.D
        ).mT

    return run


def _direct_s4d(layer: S4DLayer, case: Case) -> Whole:
    minimal = direct_layers.MinimalS4D(layer)
    return Whole(minimal, parameters(minimal))


def _direct_s4(layer: S4Layer, case: Case) -> Whole:
    return Whole(direct_layers.s4_layer(layer, case.L), parameters(layer))


def state(case: Case) -> Tensor:
    """The state that steps start from, complex128."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(case.batch, case.H, case.n, dtype=torch.complex128, generator=generator, device="cpu")


def _step(layer: Any, case: Case) -> Run:
    before = state(case).to(layer.kernel.C.device, layer.kernel.state_dtype())
    return lambda u: layer.step(u, before)


def _direct_step(of: Callable[[Any], direct_layers.Step], real: bool) -> Callable[[Any, Case], Whole]:
    def make(layer: Any, case: Case) -> Whole:
        before = state(case).to(layer.kernel.C.device, torch.complex64)
        before = direct_layers.real_state(before) if real else before
        with torch.no_grad():
            step = of(layer)
        return Whole(lambda u: step(u, before)[:1], {})

    return make


def _prefill(layer: Any, case: Case) -> Run:
    return lambda u: layer.prefill(u)[1]


def _in_float64(call: Callable[[Any, Case], Run]) -> Callable[[Any, Case], Run]:
    """The layer itself, in float64 and pure PyTorch."""

    def define(module: Any, case: Case) -> Run:
        run = call(module, case)

        def by_pytorch(u: Tensor) -> Any:
            with use_backend("pytorch"):
                return run(u)

        return by_pytorch

    return define


def _first(module: Any, case: Case) -> Run:
    return lambda u: module(u)[0]


def _itself(module: Any, case: Case) -> Run:
    return module


def _drop_in(build: Callable[[Case], nn.Module], *beside: str, direct: Any = None) -> Layer:
    """A drop-in for a layer of state-spaces/s4, on (batch, H, L), of which the first output counts."""
    return Layer(build, _first, _in_float64(_first), _features_first, direct, beside)


def _direct_drop_in(layer: Any, case: Case) -> Whole:
    return Whole(direct_layers.s4d(layer), parameters(layer), same=None)


def _block(mode: str, init: str) -> Callable[[Case], nn.Module]:
    return lambda case: state_spaces.S4Block(case.H, d_state=2 * case.n, l_max=case.L, mode=mode, init=init)


def _stepping(build: Callable[[Case], nn.Module], step: Callable[[Any, Case], Whole]) -> Layer:
    beside = (peers.LSTM, peers.GRU)
    return Layer(build, _step, _in_float64(_step), _one_sample, step, beside, differentiable=False)


def _prefilling(build: Callable[[Case], nn.Module]) -> Layer:
    by_steps = _in_float64(lambda layer, case: peers.PEERS[peers.STEPS](layer, case).run)
    return Layer(build, _prefill, by_steps, _time_major, beside=(peers.STEPS,), differentiable=False)


def _s4_layer(case: Case) -> S4Layer:
    return S4Layer(case.H, 2 * case.n)


_SEQUENCES = (peers.TORCH_FFT, peers.LSTM, peers.GRU, peers.TRANSFORMER)

LAYERS = {
    "S4DLayer": Layer(_s4d_layer, _itself, _define_s4d, _time_major, _direct_s4d, (peers.SCAN, *_SEQUENCES)),
    "S4Layer": Layer(_s4_layer, _itself, _define_s4, _time_major, _direct_s4, _SEQUENCES),
    "S4DLayer.step": _stepping(_s4d_layer, _direct_step(direct_layers.s4d_step, real=False)),
    "S4Layer.step": _stepping(_s4_layer, _direct_step(direct_layers.s4_step, real=True)),
    "S4DLayer.prefill": _prefilling(_s4d_layer),
    "S4Layer.prefill": _prefilling(_s4_layer),
    "S4SequenceModel": Layer(
        lambda case: S4SequenceModel(1, case.H, 2, 4, 2 * case.n),
        _itself,
        _in_float64(_itself),
        lambda case: (case.batch, case.L, 1),
    ),
    "S4D": _drop_in(lambda case: state_spaces.S4D(case.H, 2 * case.n), direct=_direct_drop_in),
    "S4Block-diag": _drop_in(_block("diag", "diag-lin"), peers.S4D_LAYER),
    "S4Block-dplr": _drop_in(_block("dplr", "legs")),
    "S4": _drop_in(lambda case: state_spaces.S4(case.H, d_state=2 * case.n, l_max=case.L)),
}


def beside(case: Case) -> tuple[str, ...]:
    """What stands beside the layer of a case.

    A half type is compared with float32 alone, and a case of slow decay, which is about errors, with the formula alone.
    """
    if case.decay is not None:
        return ()
    names = LAYERS[case.op].beside if case.dtype == "float32" else (peers.FLOAT32,)
    return tuple(name for name in names if not (case.sweep and name == peers.GRU))
