from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from s4_fast import DPLRSSM, S4DLayer, S4Layer, S4SequenceModel, get_ssm_param_groups
from s4_fast.state_spaces import S4D, S4Block

RATES = {"lr": 1e-2, "ssm_lr": 1e-3, "weight_decay": 0.05}


def build(layer: str = "s4", **options) -> S4SequenceModel:
    return S4SequenceModel(2, 4, 3, 2, 8, layer=layer, **options)


def names(model: nn.Module, group: dict) -> set[str]:
    """The last parts of the names of a group's parameters."""
    wanted = {id(p) for p in group["params"]}
    return {name.rsplit(".", 1)[-1] for name, p in model.named_parameters() if id(p) in wanted}


@pytest.mark.parametrize(("layer", "marked"), [("s4d", 4), ("s4", 5)])
def test_state_space_parameters_have_a_group_without_decay(layer, marked):
    model = build(layer)
    ordinary, ssm = get_ssm_param_groups(model, **RATES)
    assert (ordinary["lr"], ordinary["weight_decay"]) == (1e-2, 0.05)
    assert (ssm["lr"], ssm["weight_decay"]) == (1e-3, 0.0)
    assert names(model, ssm) == {"inv_dt", "A_real", "A_imag", "B", *(["P"] if layer == "s4" else [])}
    assert len(ssm["params"]) == 2 * marked
    grouped = [id(p) for group in (ordinary, ssm) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_a_mark_overrides_the_rate_and_the_decay():
    model = nn.ModuleList([S4DLayer(4, 8, lr=1e-4), S4DLayer(4, 8)])
    model[1].kernel.B._optim = {"weight_decay": 0.01}
    model[1].D._optim = {"lr": 0.0}
    groups = get_ssm_param_groups(model, **RATES)
    found = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    assert found == {(1e-2, 0.05): 3, (1e-4, 0.0): 4, (1e-3, 0.0): 3, (1e-3, 0.01): 1, (0.0, 0.0): 1}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: model.double(), lambda model: model.eval()])
def test_groups_of_a_copy_are_the_same(duplicate):
    model = build(lr=1e-4)
    want = [(len(g["params"]), g["lr"], g["weight_decay"]) for g in get_ssm_param_groups(model, **RATES)]
    double = duplicate(model)
    groups = get_ssm_param_groups(double, **RATES)
    assert [(len(g["params"]), g["lr"], g["weight_decay"]) for g in groups] == want
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in double.parameters()}


def test_other_options_in_a_mark_reach_the_optimiser():
    layer = S4DLayer(4, 8)
    layer.kernel.A_imag._optim["betas"] = (0.5, 0.6)
    groups = torch.optim.AdamW(get_ssm_param_groups(layer)).param_groups
    assert [(len(g["params"]), g["betas"]) for g in groups] == [(2, (0.9, 0.999)), (3, (0.9, 0.999)), (1, (0.5, 0.6))]


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = build()
    model.head.requires_grad_(False)
    for block in model.blocks:
        block.layer.kernel.requires_grad_(False)
    (group,) = get_ssm_param_groups(model, **RATES)
    assert names(model, group) == {"weight", "bias", "D"} and len(group["params"]) == 2 + 2 * 5 + 2
    assert get_ssm_param_groups(nn.Identity()) == []
    (only,) = get_ssm_param_groups(nn.Linear(2, 2), **RATES)
    assert only["lr"] == 1e-2


def test_a_shared_parameter_is_in_one_group_once():
    layer = S4DLayer(4, 8)
    groups = get_ssm_param_groups(nn.ModuleList([layer, layer]))
    assert sum(len(group["params"]) for group in groups) == len(list(layer.parameters()))


@pytest.mark.parametrize("name", ["lr", "ssm_lr", "weight_decay"])
@pytest.mark.parametrize("value", [-1e-3, math.nan])
def test_bad_values_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be at least 0, got {value}"):
        get_ssm_param_groups(build(), **{name: value})


def test_an_optimiser_moves_each_group_by_its_own_rate():
    torch.manual_seed(0)
    model = build(lr=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(get_ssm_param_groups(model, **RATES))
    model(torch.randn(3, 12, 2)).square().sum().backward()
    after_set_up = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("kernel.C")}
    optimiser.step()
    for name, p in model.named_parameters():
        moved = (p.detach() - after_set_up.get(name, before[name])).abs().max()
        assert moved == 0 if hasattr(p, "_optim") else 0 < moved < 2e-2, name


def test_decay_leaves_state_space_parameters_alone():
    ssm = DPLRSSM(4, 8)
    for p in ssm.parameters():
        p.grad = torch.zeros_like(p)
    before = {name: p.detach().clone() for name, p in ssm.named_parameters()}
    torch.optim.AdamW(get_ssm_param_groups(ssm, lr=0.1, weight_decay=0.5)).step()
    changed = {name for name, p in ssm.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"C"}


class Halved(nn.Module):
    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return t / 2


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def assigned(module: nn.Module) -> nn.Module:
    module.load_state_dict({name: t.clone() for name, t in module.state_dict().items()}, assign=True)
    return module


def swapped(module: nn.Module) -> nn.Module:
    """Moved where moving makes new parameters."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


CHANGES = {
    "nothing": lambda module: module,
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "to": lambda module: module.to(torch.float64),
    "to with new parameters": swapped,
    "to_empty": lambda module: module.to_empty(device="meta"),
    "assign": assigned,
    "two of them": lambda module: assigned(copy.deepcopy(module)),
}
MAKES = {
    "halved": lambda kernel, name: parametrize.register_parametrization(kernel, name, Halved()),
    "weight_norm": parametrizations.weight_norm,  # of two parameters
    "pruned": lambda kernel, name: prune.random_unstructured(kernel, name, amount=0.3),
    "old weight_norm": torch.nn.utils.weight_norm,
}
KERNELS = {
    "S4DLayer": (lambda: S4DLayer(4, 8, lr=1e-4), "A_real"),
    "S4Layer": (lambda: S4Layer(4, 8, lr=1e-4), "P"),
    "S4D": (lambda: S4D(4, 8, lr=1e-4), "log_A_real"),
    "S4Block": (lambda: S4Block(4, d_state=8, lr=1e-4), "B"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize(
    ("make", "change"),
    [
        (make, change)
        for make in MAKES
        for change in CHANGES
        # PyTorch pickles no parametrized module, and copies none with a parameter that a hook makes.
        if (change != "pickle" or make not in ("halved", "weight_norm"))
        and (change not in ("deepcopy", "two of them") or make not in ("pruned", "old weight_norm"))
    ],
)
@pytest.mark.parametrize("kind", KERNELS)
def test_parameters_made_of_others_keep_their_mark(kind, make, change):
    build, name = KERNELS[kind]
    module = build()
    kernel = module.layer.kernel if kind == "S4Block" else module.kernel
    ordinary, *ssm = [len(group["params"]) for group in get_ssm_param_groups(module, **RATES)]
    MAKES[make](kernel, name)
    parts = 2 if "weight_norm" in make else 1
    module = CHANGES[change](module)
    groups = get_ssm_param_groups(module, **RATES)
    assert [len(group["params"]) for group in groups] == [ordinary, ssm[0] + parts - 1]
    assert (groups[1]["lr"], groups[1]["weight_decay"]) == (1e-4, 0.0)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in module.parameters()}
