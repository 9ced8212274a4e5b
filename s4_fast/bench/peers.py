"""What whole layers stand beside: other layers of equal width, and parts of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import s4_fast
from s4_fast import state_spaces
from s4_fast.bench import direct
from s4_fast.bench.cases import Case
from s4_fast.bench.evaluate import Output, Refused, own_version, torch_version

Run = Callable[[Tensor], Output]

TORCH_FFT, SCAN, FLOAT32, STEPS = "torch.fft", "ssm_scan", "float32", "steps"
LSTM, GRU, TRANSFORMER = "LSTM", "GRU", "Transformer"
S4D_LAYER = "S4D"
OTHER_LAYERS = (LSTM, GRU, TRANSFORMER)

# Products of samples up to which attention runs: a second or two for two threads.
_ATTENTION = 8 * 4096**2


class Whole(NamedTuple):
    """A layer as a function of its input.

    Attributes:
        run: the function.
        parameters: what has gradients beside the input.
        compared, same: as in :class:`.evaluate.Evaluation`.
    """

    run: Run
    parameters: Mapping[str, Tensor]
    compared: bool = True
    same: frozenset[str] | None = frozenset(("u", "D"))


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Those of a module that have gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _given_kernel(layer: Any, case: Case) -> Whole:
    """The convolution alone, by ``torch.fft``, with a kernel that is given."""
    with torch.no_grad():
        k = layer.kernel.impulse_response(case.L)[0]
    leaves = {"k": k.requires_grad_(), "D": layer.D}
    return Whole(lambda u: direct.fft_conv(u.mT, k, layer.D).mT, leaves)


def _scan(layer: Any, case: Case) -> Whole:
    """``ssm_scan`` alone, with a discretised system that is given."""
    with torch.no_grad():
        x, B, C = layer.kernel.discretize()
    leaves = {"x": x, "B": B, "C": C[0].clone(), "D": layer.D}
    x, B, C = (leaves[name].requires_grad_() for name in "xBC")
    return Whole(lambda u: s4_fast.ssm_scan(u.mT, x, B, C, layer.D).mT, leaves)


def _float32(layer: Any, case: Case) -> Whole:
    """The layer itself, on the signal in float32."""
    return Whole(lambda u: layer(u.float()), parameters(layer), same=None)


def _steps(layer: Any, case: Case) -> Whole:
    """The layer sample by sample, up to the state."""
    if layer.D.is_cuda:
        raise Refused("the CUDA graph that is timed would hold every single step")

    def run(u: Tensor) -> Tensor:
        state = layer.init_state(len(u))
        for sample in u.unbind(1):
            _, state = layer.step(sample, state)
        return state

    return Whole(run, {})


def _recurrent(kind: Callable[..., nn.RNNBase]) -> Callable[[Any, Case], Whole]:
    def make(layer: Any, case: Case) -> Whole:
        net = kind(case.H, case.H, batch_first=True).to(getattr(torch, case.dtype))
        if not case.op.endswith(".step"):
            return Whole(lambda u: net(u)[0], parameters(net), compared=False)
        _, state = net(torch.zeros(case.batch, 1, case.H, dtype=getattr(torch, case.dtype)))
        state = tuple(t.detach() for t in state) if isinstance(state, tuple) else state.detach()
        return Whole(lambda u: net(u[:, None], state)[0], {}, compared=False)

    return make


def _transformer(layer: Any, case: Case) -> Whole:
    """One encoder layer with causal attention of 16 features a head, or of 64 in wide ones, as its kernels like it."""
    on_gpu = next(layer.parameters()).is_cuda
    if case.batch * case.L**2 > _ATTENTION and not on_gpu:
        raise Refused(f"attention takes L^2 products, {case.batch * case.L**2:.1e} here; at most {_ATTENTION:.1e} run")
    heads = max(1, case.H // (16 if case.H < 256 else 64))
    net = nn.TransformerEncoderLayer(case.H, heads, 4 * case.H, dropout=0.0, batch_first=True)
    net = net.to(getattr(torch, case.dtype))
    mask = nn.Transformer.generate_square_subsequent_mask(case.L, dtype=getattr(torch, case.dtype))
    return Whole(lambda u: net(u, src_mask=mask, is_causal=True), parameters(net), compared=False)


def _minimal(layer: Any, case: Case) -> Whole:
    """The drop-in for the minimal S4D, output map included, with weights of its own."""
    other = state_spaces.S4D(case.H, 2 * case.n)
    return Whole(lambda u: other(u)[0], parameters(other), compared=False)


PEERS: dict[str, Callable[[Any, Case], Whole]] = {
    TORCH_FFT: _given_kernel,
    SCAN: _scan,
    FLOAT32: _float32,
    STEPS: _steps,
    LSTM: _recurrent(nn.LSTM),
    GRU: _recurrent(nn.GRU),
    TRANSFORMER: _transformer,
    S4D_LAYER: _minimal,
}


def version(name: str) -> str:
    """Of the library that an entry of :data:`PEERS` is of, with its name."""
    return own_version() if name in (SCAN, FLOAT32, STEPS, S4D_LAYER) else torch_version()
