"""Half precision in parameters, inputs, autocast and FSDP2. SSMs compute in float32, whatever they store."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from s4_fast import S4SequenceModel, get_ssm_param_groups
from s4_fast.layers import ModelState
from tests.helpers import relative_error
from tests.modules import KINDS, STEPPING, in_parts, initial, kernels, over, prefilled, set_up, stepped
from tests.ranks import Ranks, needs_fsdp

L, CUT = 40, 15
HALF = [torch.bfloat16, torch.float16]
LINEAR = [kind for kind in KINDS if kind.startswith(("S4DLayer", "S4Layer"))]


def within(y: Tensor, want: Tensor, roundings: float) -> bool:
    """Whether no output is off by more than as many roundings of the largest one: half an epsilon of y's dtype each."""
    assert want.dtype == torch.float64
    unit = torch.finfo(y.dtype).eps / 2 * want.abs().max()
    return bool((y.double() - want).abs().max() <= roundings * unit)


def near(y: Tensor, want: Tensor) -> bool:
    """Whether all outputs of a model together are off by a few roundings. A single one may be off by many, where the
    four features that a normalisation scales lie close."""
    return relative_error(y.double(), want.double()) <= 10 * torch.finfo(y.dtype).eps


def states(state: Any) -> tuple[Tensor, ...]:
    return state.blocks if isinstance(state, ModelState) else (state,)


def made(kind: str, dtype: torch.dtype, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(generator.initial_seed())
    module = set_up(KINDS[kind](dt_min=0.01), L).to(dtype)
    return module, torch.randn(2, L, 4, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sample(12)
def test_modules_in_half_train_step_and_generate(kind: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    module, u = made(kind, dtype, generator)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    # Whatever moves less than a rounding would stay where it is.
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    y = over(module, u)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    for name, p in module.named_parameters():
        assert p.dtype == p.grad.dtype == dtype and p.grad.isfinite().all() and p.grad.any(), name
        p.grad *= 0.1 * (1 + p.detach().norm()) / p.grad.norm()
    optimizer.step()
    assert not [name for name, p in module.named_parameters() if torch.equal(p, before[name])]
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            y = over(module, u).double()
            assert y.isfinite().all()
            if kind not in STEPPING:
                continue
            assert {s.dtype for s in states(initial(module, 2))} == {torch.complex64}
            for found, state in (prefilled(module, u), stepped(module, u)):
                assert found.dtype == dtype
                assert {s.dtype for s in states(state)} == {torch.complex64}
            for again in (stepped(module, u)[0], in_parts(module, u, CUT)):
                # What a model rounds between its layers differs, where the layers' outputs do by a rounding.
                assert within(again, y, 2) if kind.startswith(("S4DLayer", "S4Layer")) else near(again, y)
    if isinstance(module, S4SequenceModel):
        following = module.generate(u, 3)
        assert following.dtype == dtype and torch.equal(following[:, 0], over(module, u)[:, -1])


@pytest.mark.parametrize("parameters", [*HALF, torch.float32])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", LINEAR)
def test_a_layer_rounds_its_outputs_once(
    kind: str, dtype: torch.dtype, parameters: torch.dtype, generator: torch.Generator
) -> None:
    """Two roundings are allowed: one of the output, and what float32 and a tie make of it."""
    module, u = made(kind, parameters, generator)
    u = u.to(dtype)
    wide = KINDS[kind]().double()
    wide.load_state_dict(module.state_dict())
    want = wide(u.double()).detach()
    y = module(u)
    assert y.dtype == dtype
    assert within(y, want, 2)
    if kind in STEPPING:
        assert within(stepped(module, u)[0], want, 2) and within(in_parts(module, u, CUT), want, 2)
        with torch.no_grad():
            assert within(stepped(module, u)[0], want, 2) and within(in_parts(module, u, CUT), want, 2)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", LINEAR)
def test_gradients_of_a_layer_in_half(kind: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Computed in float32 from the outputs' gradient, and rounded as what they belong to."""
    module, u = made(kind, dtype, generator)
    wide = KINDS[kind]().double()
    wide.load_state_dict(module.state_dict())
    dy = torch.randn(u.shape, generator=generator).to(dtype)
    grads = torch.autograd.grad(module(u.requires_grad_()), [u, *module.parameters()], dy)
    v = u.detach().double().requires_grad_()
    wants = torch.autograd.grad(wide(v), [v, *wide.parameters()], dy.double())
    for grad, want in zip(grads, wants, strict=True):
        assert within(grad, want, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_the_dtype_of_linear_maps_and_trains(kind: str, generator: torch.Generator) -> None:
    module, u = made(kind, torch.float32, generator)
    exact = copy.deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for step in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = over(module, u)
            linear = nn.Linear(4, 4)(u).dtype
        # A block adds its input, which is in float32, as any residual block does.
        assert y.dtype == (torch.float32 if kind.startswith("SSMBlock") else linear)
        y.float().square().mean().backward()
        if step == 0:
            want = over(exact, u)
            want.square().mean().backward()
            assert near(y.bfloat16(), want)
            assert all(p.grad.dtype == torch.float32 for p in module.parameters())
            grads, wants = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (module, exact))
            # All together: sums that cancel make some parameters' gradients mostly rounding.
            assert relative_error(grads, wants) <= 0.1
        optimizer.step()
        for kernel in kernels(module):
            assert kernel.C.isfinite().all()
    if kind in STEPPING:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            want = over(module, u).double()
            assert near(stepped(module, u)[0].bfloat16(), want)
            assert near(in_parts(module, u, CUT).bfloat16(), want)


# ------------------------------------------------------------------------------------------------------------- FSDP2


def trains_in_bfloat16(layer: str) -> None:
    torch.manual_seed(0)
    alone = set_up(S4SequenceModel(2, 8, 3, 2, 8, layer=layer, lr=3e-3), L)
    model: Any = copy.deepcopy(alone)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    u, target = torch.randn(8, L, 2), torch.randint(3, (8,))
    found = []
    for m in (alone, model):
        optimizer = torch.optim.AdamW(get_ssm_param_groups(m, lr=1e-2), weight_decay=0.0)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            y = m(u)
            loss = nn.functional.cross_entropy(y.float(), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
        assert y.dtype == (torch.bfloat16 if m is model else torch.float32)
        assert all(p.dtype == torch.float32 for p in m.parameters())
    exact, rounded = found
    drop = exact[0] - exact[-1]
    assert drop > 0.05
    assert all(abs(a - b) <= 0.1 * drop for a, b in zip(exact, rounded, strict=True)), found


@needs_fsdp
@pytest.mark.parametrize("layer", ["s4d", "s4"])
def test_fsdp_with_bfloat16_parameters_trains(layer: str, groups: dict[int, Ranks]) -> None:
    groups[2].run(trains_in_bfloat16, layer)
