from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s4_fast.state_spaces import S4, S4Block, SSKernelDiag, SSKernelNPLR, convert
from s4_fast.state_spaces.releases import older_parts
from tests.helpers import relative_error
from tests.state_spaces import older

# The originals of releases 1 and 2 drop features of three-dimensional signals so, and PyTorch has come to warn of it.
pytestmark = pytest.mark.filterwarnings("ignore:dropout2d:UserWarning")

GOLDEN = sorted((Path(__file__).parents[1] / "data" / "releases").glob("v*.npz"))
# What the older layer is made with, and what ours is.
LAYERS: list[tuple[int, dict[str, Any], dict[str, Any]]] = [
    (1, {}, {}),
    (1, {"l_max": 41, "transposed": False, "postact": "glu"}, {}),
    (1, {"hyper_act": "tanh", "dropout": 0.2}, {}),
    (1, {"hyper_act": "sigmoid", "input_linear": True}, {}),
    (1, {"rank": 2, "input_linear": True, "postact": "glu"}, {}),
    (2, {}, {}),
    (2, {"l_max": 41, "hurwitz": True, "channels": 3, "transposed": False}, {}),
    (2, {"bidirectional": True, "channels": 2, "postact": "glu"}, {}),
    (2, {"hyper_act": "tanh", "n_ssm": 1, "rank": 2}, {"tie_state": True}),
    (2, {"mode": "diag", "disc": "zoh", "n_ssm": 1}, {}),
    (3, {"postact": "glu", "dropout": 0.1}, {}),
    (3, {"channels": 2, "n_ssm": 2, "bidirectional": True}, {}),
    (3, {"gate": 2, "bottleneck": 2, "postact": "glu"}, {}),
    (3, {"gate": 1, "activation": None}, {}),
    (3, {"hyper_act": "sigmoid", "channels": 2, "activation": "tanh"}, {}),
    (3, {"real_type": "softplus", "transposed": False}, {}),
    (3, {"real_type": "none", "rank": 3}, {}),
    (3, {"mode": "diag", "n_ssm": 3, "channels": 2}, {}),
    (3, {"mode": "diag", "disc": "zoh", "postact": "glu"}, {}),
]


def golden(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tensor, Tensor]:
    with np.load(path) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "config"}
        config = json.loads(str(arrays["config"]))
    return config, {name[3:]: t for name, t in found.items() if name.startswith("sd.")}, found["u"], found["y"]


@pytest.fixture(params=LAYERS, ids=lambda case: f"{case[0]} {case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, S4]:
    """The older layer and ours, in float64."""
    release, given, more = request.param
    sizes = {"H" if release == 1 else "d_model": 6, "d_state": 8, "l_max": given.get("l_max", 40)}
    options = {name: value for name, value in given.items() if name not in ("l_max", "n_ssm") or not more}
    old = older.S4(release, **given).double().eval()
    return old, S4(**{**sizes, "postact": None, **options, **more}, release=release).double().eval()


def signal(layer: nn.Module, L: int) -> Tensor:
    shape = (2, 6, L) if layer.transposed else (2, L, 6)
    return torch.randn(*shape, dtype=next(layer.parameters()).dtype)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("made", ["S4", "S4Block"])
def test_the_originals_numbers(path, made, caplog):
    config, state_dict, u, y = golden(path)
    release = int(config["release"][1])
    if made == "S4":
        layer: nn.Module = S4(config["d_model"], **config["arguments"], release=release).eval()
    else:
        layer = S4Block(config["d_model"], **config["s4block"]).eval()
    with caplog.at_level(logging.INFO, "s4_fast"):
        layer.load_state_dict(state_dict)
    assert f"release {release}" in caplog.text
    assert relative_error(layer(u)[0], y) < 1e-5
    state, outputs = layer.default_state(2), []
    for l in range(u.shape[-1]):
        out, state = layer.step(u[..., l], state)
        outputs.append(out)
    assert relative_error(torch.stack(outputs, -1), y) < 1e-5


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_originals_checkpoints_are_converted(path, tmp_path):
    config, state_dict, u, y = golden(path)
    torch.save({"state_dict": {f"model.{name}": t for name, t in state_dict.items()}}, tmp_path / "old.ckpt")
    found = convert.convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors")
    assert all(entry.note.startswith(f"release {config['release'][1]}") for entry in found)
    assert {entry.old for entry in found} == {f"model.{name}" for name in state_dict}
    layer = S4Block(config["d_model"], **config["s4block"]).eval()
    layer.load_state_dict(load_file(tmp_path / "new.safetensors"))
    assert relative_error(layer(u)[0], y) < 1e-5


def test_a_layer_computes_what_the_older_one_does(case):
    old, new = case
    new.load_state_dict(old.state_dict())
    for L in (1, 17, 40):
        u = signal(old, L)
        assert relative_error(new(u)[0], old(u)[0]) < 1e-10


def test_a_checkpoint_loads_inside_a_model(case):
    old, new = case
    model, other = nn.Sequential(nn.Identity(), old), nn.Sequential(nn.Identity(), new)
    other.load_state_dict(model.state_dict())
    u = signal(old, 20)
    assert relative_error(new(u)[0], old(u)[0]) < 1e-10


def test_the_entries_of_a_model_with_several_layers(tmp_path):
    model = nn.ModuleDict({"first": older.S4(1), "second": nn.ModuleList([older.S4(3, mode="diag"), nn.Linear(2, 3)])})
    torch.save(model.state_dict(), tmp_path / "old.pt")
    convert.convert(tmp_path / "old.pt", tmp_path / "new.safetensors")
    written = load_file(tmp_path / "new.safetensors")
    ours = nn.ModuleDict(
        {
            "first": S4Block(6, d_state=8, final_act="id"),
            "second": nn.ModuleList([S4Block(6, d_state=8, final_act="id", mode="diag"), nn.Linear(2, 3)]),
        }
    )
    ours.load_state_dict(written)
    assert torch.equal(written["second.1.weight"], model["second"][1].weight)


def test_a_kernel_alone(tmp_path):
    old = older.SSKernelDiag(3, 4, 3, 1, 4, "bilinear")
    torch.save({f"mixer.ssm.{name}": t for name, t in old.state_dict().items()}, tmp_path / "old.pt")
    convert.convert(tmp_path / "old.pt", tmp_path / "new.safetensors", "mixer.ssm")
    A = torch.complex(torch.full((4, 3), -1.0), torch.zeros(4, 3))
    new = SSKernelDiag(A, torch.ones_like(A), torch.zeros(1, 4, 3, dtype=A.dtype), torch.zeros(4))
    for state_dict in (load_file(tmp_path / "new.safetensors"), old.state_dict()):
        new.load_state_dict(state_dict)
        assert relative_error(new(L=30)[0], old(L=30)) < 1e-5


def test_a_module_with_a_kernel_among_other_things_is_no_layer():
    state_dict = {
        f"kernel.kernel.{name}": t for name, t in older.SSKernelDiag(3, 4, 3, 1, 4, "zoh").state_dict().items()
    }
    found = older_parts({**state_dict, "D": torch.ones(4), "q_proj.weight": torch.ones(4, 4)})
    assert list(found) == ["kernel.kernel."]
    assert "kernel.kernel.inv_dt" in {change.new for change in found["kernel.kernel."].changes}


def test_foreign_entries_stay():
    recurrent = {"rnn.w": torch.ones(3), "rnn.C": torch.ones(2), "rnn.P": torch.ones(2)}
    assert older_parts(recurrent) == {}


def damaged(release: int, change: Any, **options: Any) -> dict[str, Any]:
    state_dict = older.S4(release, **options).state_dict()
    change(state_dict)
    return state_dict


PLAIN: dict[str, Any] = {}
S4D = {"mode": "diag", "disc": "bilinear"}


@pytest.mark.parametrize(
    ("state_dict", "options", "message"),
    [
        (lambda: damaged(3, lambda sd: sd.pop("kernel.kernel.L")), PLAIN, "kernel.kernel.L, or omega: missing beside"),
        (lambda: damaged(3, lambda sd: sd.pop("D")), PLAIN, "D: missing beside kernel.kernel"),
        (lambda: damaged(3, lambda sd: sd.pop("kernel.kernel.C")), PLAIN, "kernel.kernel.C: missing beside"),
        (lambda: damaged(3, lambda sd: sd.pop("kernel.kernel.inv_w_real")), PLAIN, "its poles are missing"),
        (lambda: damaged(3, lambda sd: sd.update({"layer.D": sd["D"]})), PLAIN, "layer.D: of release 4, beside"),
        (
            lambda: damaged(3, lambda sd: sd.update({"kernel.kernel.w": sd["kernel.kernel.P"][0]})),
            PLAIN,
            "kernel.kernel.w, kernel.kernel.inv_w_real: of two releases at once",
        ),
        (
            lambda: damaged(3, lambda sd: sd.update({"kernel.kernel.inv_dt": sd["kernel.kernel.log_dt"]})),
            PLAIN,
            "of two releases at once",
        ),
        (lambda: damaged(2, lambda sd: sd["kernel.kernel.Q"].mul_(2)), PLAIN, "Q was trained apart from P"),
        (lambda: damaged(1, lambda sd: sd["kernel.krylov.C"][:, 1].mul_(2)), PLAIN, "Q was trained apart from P"),
        (lambda: damaged(2, lambda sd: sd["kernel.kernel.w"].neg_()), PLAIN, "real_transform='none' holds it"),
        (lambda: damaged(2, lambda sd: sd["kernel.kernel.omega"].fill_(1)), PLAIN, "not the roots of unity"),
        (lambda: damaged(1, lambda sd: sd["kernel.krylov.nodes"].t_()), PLAIN, "expected roots of unity"),
        (lambda: damaged(3, lambda sd: sd.update({"kernel.kernel.R": sd["D"]})), PLAIN, "kernel.kernel.R: unknown"),
        (lambda: damaged(3, lambda sd: sd.update({"kernel.kernel.C": 3})), PLAIN, "expected a tensor"),
        (
            lambda: damaged(3, lambda sd: None),
            {"mode": "diag", "disc": "bilinear"},
            r"layer.kernel.P \(kernel.kernel.P in the checkpoint\)",
        ),
        (lambda: damaged(3, lambda sd: None, postact="glu"), PLAIN, r"output_linear.0.weight \(output_linear.0.weight"),
        (lambda: damaged(3, lambda sd: None), {"dt_tie": False}, "dt_tie=True"),
        (lambda: {3: torch.ones(2)}, PLAIN, "the keys of a state_dict are names"),
    ],
)
def test_what_cannot_be_read_is_named_and_changes_nothing(state_dict, options, message):
    layer = S4Block(6, d_state=8, final_act="id", **options)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state_dict())
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize("change", [lambda sd: sd.pop("kernel.kernel.L"), lambda sd: sd.update({"layer.D": sd["D"]})])
def test_convert_names_what_it_cannot_read(change, tmp_path):
    torch.save(damaged(3, change), tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"kernel\.kernel"):
        convert.convert(tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_another_discretisation_than_release_3s_is_a_warning():
    state_dict = older.S4(3, mode="diag").state_dict()
    with pytest.warns(UserWarning, match="disc='bilinear'"):
        S4Block(6, d_state=8, mode="diag", final_act="id").load_state_dict(state_dict)


def test_a_kernel_of_tensors_has_their_values():
    H, n = 4, 3
    w = torch.complex(-0.5 - torch.rand(2, n), torch.randn(2, n))
    P, B, C = (torch.complex(torch.randn(s, n), torch.randn(s, n)) for s in (2, 2, H))
    log_dt = -3 + torch.randn(H)
    new = SSKernelNPLR(w, P[None], B, C[None], log_dt)
    # A length at which A_bar^length is 0.
    expected = older.dense_kernel(w, P[None], B[None], C[None], log_dt, 10**6, 25)
    with torch.no_grad():
        assert relative_error(new(L=25)[0], expected) < 1e-5
    diagonal = SSKernelDiag(w, B, C[None], log_dt)
    old = older.SSKernelDiag(3, H, n, 1, 2, "bilinear")
    old.load_state_dict(
        {
            "log_dt": log_dt, "C": older.pairs(C[None]), "A": older.pairs(w), "B": older.pairs(B),
            "inv_A_real": (-w.real).log(), "A_imag": w.imag,
        }
    )  # fmt: skip
    assert relative_error(diagonal(L=25)[0], old(L=25)) < 1e-5
