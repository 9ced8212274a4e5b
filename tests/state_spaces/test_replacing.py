from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from s4_fast import DropoutNd
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.replacing import replace_layers, replacement
from s4_fast.state_spaces.s4d import S4D
from tests.state_spaces import lookalikes
from tests.state_spaces.lookalikes import perturb
from tests.state_spaces.test_block import GOLDEN, golden, off, under

BLOCKS: list[dict[str, Any]] = [
    {},
    {"mode": "diag", "disc": "bilinear", "bidirectional": True, "transposed": False},
    {"mode": "diag", "is_real": True, "d_state": 5, "real_transform": "softplus", "dt_transform": "softplus"},
    {"mode": "diag", "n_ssm": 2, "channels": 2, "swap_channels": True, "dt_fast": True},
    {"mode": "diag", "bandlimit": 0.2, "dt_min": 0.1},
    {"mode": "diag", "activation": "glu", "final_act": "id", "mult_act": "softplus", "dt_tie": False},
    {"rank": 2, "init": "legt", "l_max": 16, "final_act": None, "imag_transform": "exp"},
    {"bottleneck": 1, "final_act": "glu-silu", "activation": "sqrelu", "weight_norm": True},
    {"final_act": "modrelu", "activation": None, "lr": 0.001, "wd": 0.01},
    {"mode": "diag", "lr": {"dt": 0.01, "A": 0.0}, "backend": "naive", "verbose": False},
]


def model(*layers: nn.Module) -> nn.Module:
    """The layers between others, as in a user's model."""
    outer = nn.Module()
    outer.encoder = nn.Linear(3, 6)
    outer.layers = nn.ModuleList(layers)
    outer.named = nn.ModuleDict({"norm": nn.LayerNorm(6)})
    return outer.double()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize("options", BLOCKS, ids=str)
def test_a_block_is_the_one_with_its_options_and_weights(options, package, generator):
    options = {"d_state": 8, **options}
    old = perturb(lookalikes.s4_block(package=package, **options).double(), generator)
    expected = S4Block(6, **options).double()
    expected.load_state_dict(old.state_dict())
    new = replacement(old)
    assert same(new.state_dict(), expected.state_dict())
    assert new.layer.kernel.verbose is options.get("verbose", True)
    x = torch.randn(2, 6, 11, dtype=torch.float64, generator=generator)
    x = x.mT if options.get("transposed") is False else x
    assert torch.equal(new(x)[0], expected(x)[0])
    marks = {name: getattr(p, "_optim", None) for name, p in expected.named_parameters()}
    assert {name: getattr(p, "_optim", None) for name, p in new.named_parameters()} == marks


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_stay_the_official_ones(name):
    config, arrays = golden(name)
    old = lookalikes.s4_block(**config["kwargs"]).double()
    old.load_state_dict(under("sd_after.", arrays) or under("sd.", arrays))
    outer = nn.Sequential(old)
    assert replace_layers(outer) == [("0", type(old), S4Block)]
    assert off(outer(arrays["u"])[0], arrays["y"]) <= 1e-10


@pytest.mark.parametrize("name", ["s4d_default", "s4d_default_pert", "s4d_nodrop_untransposed"])
def test_outputs_of_the_minimal_layer_stay_the_official_ones(name):
    config, arrays = golden(name)
    old = lookalikes.s4d(**config["kwargs"]).double()
    old.load_state_dict(under("sd.", arrays))
    new = replacement(old)
    assert type(new) is S4D
    assert off(new(arrays["u"])[0], arrays["y"]) <= 1e-10


def test_everything_else_in_the_model_stays_as_it_is(generator):
    layers = [lookalikes.s4d(), lookalikes.s4_block(d_state=8), S4Block(6, d_state=8), nn.Linear(6, 6)]
    outer = perturb(model(*layers), generator)
    outer.named["again"] = outer.layers[0]
    outer.layers[1].layer.D.requires_grad_(False)
    outer.layers[0].kernel.C._optim = {"lr": 0.5}
    outer.layers[0].D.grad = torch.ones(6, dtype=torch.float64)
    outer.eval()
    outer.layers[1].train()
    before, modules = outer.state_dict(), dict(outer.named_modules())
    values = {key: value.clone() for key, value in before.items()}
    random = torch.get_rng_state()

    replaced = replace_layers(outer)
    assert [(r.name, r.old.__name__, r.new) for r in replaced] == [
        ("layers.0", "S4D", S4D), ("layers.1", "S4Block", S4Block), ("named.again", "S4D", S4D),
    ]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), random)
    assert same(outer.state_dict(), values)
    assert outer.named["again"] is outer.layers[0]
    unchanged = ("encoder", "layers.2", "layers.3", "named.norm")
    assert all(dict(outer.named_modules())[name] is modules[name] for name in unchanged)
    assert not outer.layers[1].layer.D.requires_grad and outer.layers[1].layer.kernel.C.requires_grad
    assert outer.layers[0].kernel.C._optim == {"lr": 0.5}
    assert outer.layers[1].output_linear[0].training and not outer.layers[0].output_linear[0].training
    with torch.no_grad():
        outer.layers[1].layer.D += 1  # the old layer keeps its own
    assert torch.equal(layers[1].layer.D, values["layers.1.layer.D"])
    assert replace_layers(outer) == []


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("package", [False, True])
def test_dropout_is_kept(tie, package):
    new = replacement(lookalikes.s4_block(package=package, dropout=0.3, tie_dropout=tie, drop_kernel=0.2, d_state=8))
    drops = new.drop, new.layer.drop, new.layer.drop_kernel
    assert [d.p for d in drops] == [0.3, 0.3, 0.2]
    assert [type(d) for d in drops] == [
        DropoutNd if tie else nn.Dropout, DropoutNd if tie and not package else nn.Dropout, nn.Dropout,
    ]  # fmt: skip
    assert not tie or not new.drop.transposed
    assert replacement(lookalikes.s4d(dropout=0.4)).dropout.extra_repr() == "p=0.4, tie=True, transposed=True"


@pytest.mark.parametrize("lr", [None, 0.02, 0.0])
def test_the_minimal_layers_learning_rate_is_kept(lr):
    old = lookalikes.s4d(lr=lr)
    new = replacement(old)
    marks = {name: getattr(p, "_optim", None) for name, p in old.named_parameters()}
    assert {name: getattr(p, "_optim", None) for name, p in new.named_parameters()} == marks
    assert ("kernel.log_dt" in dict(new.named_parameters())) is (lr != 0)


def broken(change: str) -> nn.Module:
    """A model whose second layer cannot be matched."""
    block, layer = lookalikes.s4_block(d_state=8, mode="diag"), lookalikes.s4d()
    outer = model(lookalikes.s4d(), block, layer)
    if change == "kernel":
        block.layer.kernel = lookalikes.made("SSMKernelDense", block.layer.kernel)
    elif change == "activation":
        block.layer.activation = nn.Hardtanh()
    elif change == "two activations":
        block.activation = nn.ReLU()
    elif change == "mix":
        block.output_linear[0] = nn.Bilinear(6, 6, 12).double()
    elif change == "bias":
        block.output_linear[0] = nn.Linear(6, 12, bias=False).double()
    elif change == "hook":
        block.layer.register_forward_hook(lambda module, args, output: None)
    elif change == "tied":
        outer.other = nn.Module()
        outer.other.weight = block.output_linear[0].weight
    elif change == "dtype":
        block.layer.D = nn.Parameter(block.layer.D.float())
    elif change == "shape":
        block.layer.kernel.B = nn.Parameter(torch.zeros(1, 6, 5, 2, dtype=torch.float64))
    elif change == "option":
        block.layer.kernel.disc = "euler"
    elif change == "buffer":
        D = block.layer.D.detach()
        del block.layer.D
        block.layer.register_buffer("D", D)
    elif change == "attribute":
        del block.layer.kernel.rank
    elif change == "dropout":
        block.drop = nn.AlphaDropout(0.1)
    return outer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("kernel", "expected kernel to be SSMKernelDiag or SSMKernelDPLR, got SSMKernelDense"),
        ("activation", "expected an activation of .*tanh.*got Hardtanh"),
        ("two activations", "two activations between .* gelu and relu"),
        ("mix", "expected a linear map to be Linear, got Bilinear"),
        ("bias", r"output_linear\.0\.bias: missing"),
        ("hook", r"layer has hooks \(_forward_hooks\)"),
        ("tied", r"shares output_linear\.0\.weight with another module"),
        ("dtype", "one dtype"),
        ("attribute", "is no layer of state-spaces/s4: .*rank"),
        ("shape", r"layer\.kernel\.B: expected shape"),
        ("option", "'euler'.*expected one of zoh, bilinear"),
        ("buffer", r"layer\.D: a parameter on one side"),
        ("dropout", "expected dropout to be Identity or Dropout or DropoutNd, got AlphaDropout"),
    ],
)
def test_what_cannot_be_matched_is_refused_and_nothing_changes(change, reason):
    outer = broken(change)
    modules = dict(outer.named_modules())
    with pytest.raises(ValueError, match=rf"nothing was replaced:\n  layers\.1 \(S4Block\): [\s\S]*{reason}"):
        replace_layers(outer)
    assert dict(outer.named_modules()) == modules


def test_every_layer_that_cannot_be_matched_is_named():
    outer = broken("kernel")
    outer.layers[2].activation = nn.ReLU()
    with pytest.raises(
        ValueError, match=r"layers\.1 \(S4Block\).*\n  layers\.2 \(S4D\): expected activation to be GELU"
    ):
        replace_layers(outer)


def test_a_layer_by_itself_has_nowhere_to_be_replaced():
    with pytest.raises(ValueError, match="use replacement"):
        replace_layers(lookalikes.s4d())
    with pytest.raises(ValueError, match=r"expected one of S4, S4D, .* of state-spaces/s4, got Linear"):
        replacement(nn.Linear(2, 2))


def test_a_weight_norm_of_torch_is_taken_over(generator):
    old = lookalikes.s4_block(d_state=8, mode="diag").double()
    with pytest.warns(FutureWarning, match="weight_norm"):
        old.output_linear[0] = nn.utils.weight_norm(old.output_linear[0])
    perturb(old, generator)
    new = replacement(old)
    x = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    assert off(new.output_linear(x), old.output_linear(x)) <= 1e-14


def test_kept_results_do_not_hinder_a_replacement(generator):
    """What the original keeps of a preparation of steps has a history, which deepcopy refuses."""
    old = perturb(lookalikes.s4_block(d_state=8).double(), generator)
    kept = old.layer.kernel.B * 2
    old.layer.kernel.dB, old.layer.kernel.step_params = kept, {"B": kept, "others": [kept + 1, (kept,)]}
    assert type(replacement(old)) is S4Block
    assert old.layer.kernel.step_params["B"] is kept and kept.grad_fn is not None


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)


def named(name: str, base: type[nn.Module] = Attention) -> nn.Module:
    """An instance of a class of this name, with which the official one has nothing in common."""
    return type(name, (base,), {})()


def test_a_module_around_layers_in_several_places_is_looked_through_once():
    inner = nn.Sequential(lookalikes.s4d())
    outer = nn.ModuleList([inner, nn.Sequential(inner)])
    assert [(r.name, r.new) for r in replace_layers(outer)] == [("0.0", S4D)]
    assert type(outer[1][0][0]) is S4D


def test_a_class_derived_from_ours_is_passed_over():
    layer = type("S4D", (S4D,), {})(6)
    outer = nn.Sequential(layer)
    assert replace_layers(outer) == [] and outer[0] is layer


def test_a_class_that_only_has_the_name_is_passed_over():
    ours, theirs = named("S4D"), named("S4Block")
    assert replace_layers(nn.Sequential(ours, theirs, named("S4"), named("FFTConv"))) == []
    theirs.inner = lookalikes.s4d()
    outer = nn.Sequential(ours, theirs)
    assert [r.name for r in replace_layers(outer)] == ["1.inner"]
    assert outer[0] is ours and outer[1] is theirs


@pytest.mark.parametrize(
    ("name", "attributes", "reason"),
    [
        ("S4D", {"D": nn.Parameter(torch.ones(3))}, "is no S4D of state-spaces/s4: it has no transposed or h"),
        ("SSMKernelDense", {}, "there is no layer here for a SSMKernelDense"),
        ("SSMKernelDiag", {}, "is no SSMKernelDiag of state-spaces/s4: it has no H"),
        ("HippoSSKernel", {}, "there is no layer here for a HippoSSKernel"),
        ("S4ND", {"kernel": nn.Linear(2, 2)}, "there is no layer here for a S4ND"),
    ],
)
def test_official_layers_of_which_none_can_be_replaced_are_listed(name, attributes, reason):
    outer = nn.Module()
    outer.encoder = nn.Linear(2, 2)
    outer.layers = nn.ModuleList([lookalikes.made(name, **attributes)])
    with pytest.raises(ValueError, match=rf"some that look official:\n  layers\.0 \({name}\): {reason}$"):
        replace_layers(outer)
    with pytest.raises(ValueError, match=reason):
        replacement(outer.layers[0])
    outer.layers.append(lookalikes.s4d())
    assert [r.name for r in replace_layers(outer)] == ["layers.1"]


def test_a_lookalike_inside_another_is_not_listed_twice():
    outer = lookalikes.made("SSMKernelDense", inner=lookalikes.made("SSKernel"))
    with pytest.raises(ValueError, match=r"look official:\n  the model \(SSMKernelDense\): [^\n]*$"):
        replace_layers(outer)


def wrapped(kind: str, model: nn.Module) -> nn.Module:
    if kind == "compile":
        return torch.compile(model)
    if kind == "in place":
        model.compile()
        return model
    if kind == "DistributedDataParallel":
        return nn.parallel.DistributedDataParallel(model)
    return fully_shard(model)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("compile", r"is compiled \(torch\.compile\)"),
        ("in place", r"is compiled \(torch\.compile\)"),
        ("DistributedDataParallel", "is a DistributedDataParallel, which has the old parameters"),
        ("FSDP", "is sharded by FSDP"),
    ],
)
def test_wrapped_layers_are_refused_by_the_wrappers_name(kind, reason, check):
    outer = nn.Sequential(nn.Linear(6, 6), nn.Sequential(lookalikes.s4d(), nn.Identity()))
    outer[1] = wrapped(kind, outer[1])
    modules = dict(outer.named_modules())
    with pytest.raises(ValueError, match=rf"nothing was replaced:\n  1\.[\w.]+ \(S4D\): 1 {reason}.*before wrapping$"):
        replace_layers(outer, check=check)
    assert dict(outer.named_modules()) == modules
    with pytest.raises(ValueError, match=rf"\(S4D\): the model {reason}"):
        replace_layers(outer[1])


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("kind", ["in place", "FSDP"])
def test_a_layer_that_is_wrapped_itself_is_refused(kind):
    layer = wrapped(kind, lookalikes.s4d())
    with pytest.raises(ValueError, match=r"0 \(S4D\): 0 is (compiled|sharded)"):
        replace_layers(nn.Sequential(layer))
    with pytest.raises(ValueError, match=r"it is (compiled|sharded).*replace layers before wrapping"):
        replacement(layer)


def test_a_parametrized_layer_is_refused():
    layer = lookalikes.kernel(d_state=8, mode="diag")
    nn.utils.parametrize.register_parametrization(layer, "C", nn.Identity())
    with pytest.raises(ValueError, match=r"parametrizations\.C\.original"):
        replace_layers(nn.Sequential(layer))
