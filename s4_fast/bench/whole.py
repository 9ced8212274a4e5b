"""A whole layer by one evaluation, and its definition in float64."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s4_fast import dispatch, use_backend
from s4_fast.bench import peers
from s4_fast.bench.cases import Case
from s4_fast.bench.checkouts import Checkout
from s4_fast.bench.evaluate import (
    COMPILED,
    DIRECT,
    OURS,
    Evaluation,
    Outcome,
    Output,
    Refused,
    cotangent,
    differentiated,
    own_version,
    parts,
    torch_version,
)
from s4_fast.bench.layers import LAYERS
from s4_fast.bench.peers import Whole, parameters
from s4_fast.state_spaces.replacing import replacement


class _Made(NamedTuple):
    module: nn.Module
    official: nn.Module | None
    u: Tensor


def evaluation(case: Case, name: str, device: str, checkout: Checkout | None) -> Evaluation:
    """The layer of ``case`` itself, or what it stands beside, with the same weights where it computes the same.

    Raises:
        Refused: it does not run.
    """
    layer, made = LAYERS[case.op], _made(case, device, checkout)
    torch.manual_seed(1)
    with torch.device(device):
        whole, version = _whole(case, name, made, checkout)
    leaf = made.u.detach().requires_grad_()

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return parts(whole.run(made.u))

    both = differentiated(lambda: whole.run(leaf), {"u": leaf, **whole.parameters}) if layer.differentiable else None
    return Evaluation(forward, both, version, name == OURS, whole.compared, whole.same)


def _whole(case: Case, name: str, made: _Made, checkout: Checkout | None) -> tuple[Whole, str]:
    layer = LAYERS[case.op]
    ours = Whole(layer.call(made.module, case), parameters(made.module), same=None)
    if name == OURS:
        return ours, own_version()
    if name in dispatch.BACKENDS:
        return ours._replace(run=_on_backend(name, ours)), own_version()
    if name in (DIRECT, COMPILED):
        assert layer.direct is not None
        whole = layer.direct(made.module, case)
        if name == COMPILED:
            torch.compiler.reset()
            whole = whole._replace(run=torch.compile(whole.run, dynamic=False))
        return whole, torch_version()
    if checkout is not None and name == checkout.name:
        official = made.official
        if official is None:
            raise Refused(checkout.broken[case.op])
        own = parameters(made.module)
        shared = (name for name, p in parameters(official).items() if name in own and own[name].shape == p.shape)
        return Whole(lambda u: official(u)[0], parameters(official), same=frozenset(("u", *shared))), checkout.version
    return peers.PEERS[name](made.module, case), peers.version(name)


def _on_backend(name: str, ours: Whole) -> peers.Run:
    def run(u: Tensor) -> Output:
        try:
            with use_backend(name, strict=True):
                return ours.run(u)
        except dispatch.BackendUnavailableError as error:
            raise Refused(error.cause) from None

    return run


def definition(case: Case, device: str, checkout: Checkout | None) -> Outcome:
    """What the layer's parameters mean in float64: outputs, and gradients for the cotangents of every evaluation."""
    layer, made = LAYERS[case.op], _made(case, device, checkout)
    module = copy.deepcopy(made.module).double()
    u = made.u.detach().double()
    if not layer.differentiable:
        with torch.no_grad():
            return Outcome(parts(layer.definition(module, case)(u)), {})
    leaves = {"u": u.requires_grad_(), **parameters(module)}
    outputs = parts(layer.definition(module, case)(u))
    cotangents = [cotangent(t.detach().to(getattr(torch, case.dtype))).to(t) for t in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    return Outcome(tuple(t.detach() for t in outputs), dict(zip(leaves, grads, strict=True)))


# The evaluations of one case follow each other.
@lru_cache(maxsize=1)
def _made(case: Case, device: str, checkout: Checkout | None) -> _Made:
    """The layer and its input, the same on every machine; of an official one, with its weights, where there is one."""
    torch.manual_seed(0)
    layer = LAYERS[case.op]
    u = torch.randn(layer.shape(case)).to(device, getattr(torch, case.dtype))
    if checkout is None or case.op not in checkout.ops or case.op in checkout.broken:
        return _Made(layer.build(case).to(device), None, u)
    official = checkout.build(case).to(device)
    official(u)  # S4 truncates its C in its first pass
    return _Made(replacement(official, check=False), official, u)
