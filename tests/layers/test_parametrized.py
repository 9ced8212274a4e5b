"""Parameters made of others, by pruning, parametrizations and norms, take effect in training and in every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from s4_fast import DPLRSSM
from tests.modules import KINDS, STEPPING, close, in_parts, kernels, made, over, plain, stepped, value

L, CUT = 12, 5


class Halved(nn.Module):
    def forward(self, t: Tensor) -> Tensor:
        return t / 2


WAYS: dict[str, Callable[[nn.Module, str], Any]] = {
    "prune": lambda owner, name: prune.l1_unstructured(owner, name, amount=0.5),
    "parametrization": lambda owner, name: parametrize.register_parametrization(owner, name, Halved()),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": old_weight_norm,
    "old spectral_norm": old_spectral_norm,
}


def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(2, L, 4, dtype=torch.float64, generator=generator)


def owner_of(module: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    """The last module inside ``module`` with a parameter that is so called, or whose map of features is meant."""
    wanted = ("weight", (nn.Linear, nn.Conv1d)) if parameter == "map" else (parameter, nn.Module)
    found = [
        m for m in module.modules() if isinstance(m, wanted[1]) and wanted[0] in dict(m.named_parameters("", False))
    ]
    if not found and parameter == "A_real":
        return owner_of(module, "log_A_real")
    return found[-1], wanted[0]


LINEAR = ("S4DLayer", "S4Layer", "FFTConv")
CASES = [
    (kind, parameter, way)
    for kind in KINDS
    for parameter, ways in (
        ("C", WAYS),
        ("A_real", ("prune", "parametrization", "old spectral_norm")),
        ("D", ("prune", "parametrization", "old weight_norm")),
        ("map", WAYS),
    )
    for way in ways
    if (parameter == "map" and not kind.startswith(LINEAR))
    or (parameter != "map" and not kind.startswith("SSMBlock"))  # which are in the models
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize(("kind", "parameter", "way"), CASES)
@pytest.mark.sample(15)
def test_parameters_made_of_others_take_effect(kind: str, parameter: str, way: str, generator: torch.Generator) -> None:
    u, dy = inputs(generator), inputs(generator)
    module = made(kind)
    owner, name = owner_of(module, parameter)
    place = next(prefix for prefix, m in module.named_modules() if m is owner)
    full_name = f"{place}.{name}".lstrip(".")
    before = getattr(owner, name).detach().clone()
    WAYS[way](owner, name)
    if way == "spectral_norm":
        module.eval()  # in training each look at the parameter is a step of the power iteration, and gives another
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    for step in range(2):
        y = over(module, u)
        other = plain(kind, module)
        assert close(y, over(other, u))
        assert step or not torch.equal(value(other, full_name), before) or "weight_norm" in way
        own = dict(module.named_parameters())
        own_grads = dict(zip(own, torch.autograd.grad(y, list(own.values()), dy, retain_graph=True), strict=True))
        theirs = dict(other.named_parameters())
        grads = dict(zip(theirs, torch.autograd.grad(over(other, u), list(theirs.values()), dy), strict=True))
        sources = {key: p for key, p in own.items() if key not in theirs}
        assert sources
        expected = torch.autograd.grad(value(module, full_name), list(sources.values()), grads.pop(full_name))
        for key, grad in (*grads.items(), *zip(sources, expected, strict=True)):
            assert close(own_grads[key], grad, 1e-10), key
        for key, p in own.items():
            p.grad = own_grads[key]
        optimizer.step()
        module.eval()  # no power iteration
        for context in (torch.no_grad, torch.enable_grad, torch.no_grad, torch.no_grad):
            with context():
                # Steps first: a pass over the sequence would set what hooks set.
                first = stepped(module, u[:, :CUT])[0] if kind in STEPPING else None
                y = over(module, u)
                want = over(plain(kind, module), u)
                assert close(y, want)
                if first is not None:
                    assert close(torch.cat((first, in_parts(module, u, CUT)[:, CUT:]), 1), want)
            with torch.no_grad():
                for p in sources.values():  # between two passes without gradients nothing else tells of it
                    p.add_(0.1 * p.cos())
        module.train(way != "spectral_norm")


@pytest.mark.parametrize("kind", KINDS)
def test_spectral_norm_trains(kind: str, generator: torch.Generator) -> None:
    module, u = made(kind), inputs(generator)
    parametrizations.spectral_norm(kernels(module)[0], "C")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        over(module, u).square().sum().backward()
        optimizer.step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_orthogonal_weights(kind: str, generator: torch.Generator) -> None:
    if kind.startswith(LINEAR):
        kernel = kernels(made(kind))[0]
        assert not any(isinstance(m, (nn.Linear, nn.Conv1d)) for m in kernel.modules())
        return
    module, u = made(kind), inputs(generator)
    owner, _ = owner_of(module, "map")
    if isinstance(owner, nn.Linear):
        parametrizations.orthogonal(owner)
        W = owner.weight
        W = W if W.shape[0] <= W.shape[1] else W.mT
        assert close(W @ W.mT, torch.eye(len(W), dtype=W.dtype))
    else:
        parametrize.register_parametrization(owner, "weight", Halved())
    assert close(over(module, u), over(plain(kind, module), u))


def test_a_pruned_kernel_grows_with_its_inputs(generator: torch.Generator) -> None:
    kernel = DPLRSSM(4, 8, generator=generator).double()
    prune.identity(kernel, "C")
    plain = DPLRSSM(4, 8).double()
    plain.load_state_dict({name: getattr(kernel, name).detach() for name in plain.state_dict()})
    for length in (1, 7, 30, 3):
        assert close(kernel(length), plain(length))
