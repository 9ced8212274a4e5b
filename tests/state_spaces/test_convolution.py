from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import glu, linear

from s4_fast.state_spaces import FFTConv
from tests.helpers import relative_error

DATA = Path(__file__).parents[1] / "data"
GOLDEN = [
    "diag_default", "diag_default_pert", "diag_lin_bilinear", "diag_nssm2_channels2",
    "dplr_bidirectional", "dplr_fout_rank1", "dplr_legs_lmax", "dplr_legs_lmax_pert",
]  # fmt: skip
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}


class Golden:
    """The official block's numbers; its layer works on (batch, length, features)."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, state: str = "sd") -> None:
        self.arrays = np.load(DATA / f"{name}.npz")
        self.dtype = dtype
        self.options = json.loads(str(self.arrays["config"]))["kwargs"]
        self.layer = FFTConv(transposed=False, **self.options).to(dtype)
        prefix = f"{state}.layer."
        loaded = {
            key.removeprefix(prefix): torch.tensor(self.arrays[key]) for key in self.arrays if key.startswith(prefix)
        }
        self.layer.load_state_dict(loaded)

    def tensor(self, key: str) -> Tensor:
        t = torch.tensor(self.arrays[key])
        return t.to(self.dtype) if t.is_floating_point() else t

    def mix(self, y: Tensor) -> Tensor:
        """(batch, ..., features) through the block's last map."""
        return glu(linear(y, self.tensor("sd.output_linear.0.weight"), self.tensor("sd.output_linear.0.bias")), dim=-1)


def states_of(golden: Golden) -> list[str]:
    return ["sd"] + (["sd_after"] if "sd_after.layer.D" in golden.arrays else [])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", GOLDEN)
def test_kernels_and_outputs_are_the_official_ones(name, dtype):
    for state in states_of(Golden(name)):
        golden = Golden(name, dtype, state)
        y, after = golden.layer(golden.tensor("u").mT)
        assert after is None and y.dtype is dtype
        assert relative_error(golden.mix(y).mT.detach(), golden.tensor("y")) <= TOLERANCE[dtype]
        k, _ = golden.layer.kernel(L=golden.arrays["u"].shape[-1])
        assert relative_error(k.detach(), golden.tensor("k")) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", GOLDEN)
def test_gradients_are_the_official_ones(name):
    golden = Golden(name)
    u = golden.tensor("u").requires_grad_()
    y = golden.mix(golden.layer(u.mT)[0]).mT
    leaves = {"grad_u": u, **{f"grad.layer.{key}": p for key, p in golden.layer.named_parameters()}}
    grads = torch.autograd.grad(y, list(leaves.values()), golden.tensor("g"))
    for key, grad in zip(leaves, grads, strict=True):
        assert relative_error(grad, golden.tensor(key)) <= 1e-8, key


@pytest.mark.parametrize("mode", ["dense", "linear", "diagonal"])
@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "dplr_bidirectional"])
def test_steps_are_the_official_ones(name, mode):
    for state in states_of(Golden(name)):
        golden = Golden(name, state=state)
        layer, u = golden.layer, golden.tensor("u")
        layer.setup_step(mode=mode)
        s, outputs = layer.default_state(u.shape[0]), []
        with torch.no_grad():
            for l in range(u.shape[-1]):
                y, s = layer.step(u[..., l], s)
                outputs.append(golden.mix(y))
        assert relative_error(torch.stack(outputs, -1), golden.tensor("y_step")) <= 1e-10
        official = golden.tensor("step_state")
        assert relative_error(s, official[..., : s.shape[-1]]) <= 1e-10
        assert s.shape == official.shape or mode == "linear"


def test_a_seed_gives_the_official_weights():
    """Where no basis is involved, which the original leaves to LAPACK."""
    golden = Golden("diag_lin_bilinear")
    config: dict[str, Any] = json.loads(str(golden.arrays["config"]))
    torch.manual_seed(config["seed"])
    for key, value in FFTConv(transposed=False, **golden.options).state_dict().items():
        assert relative_error(value, golden.tensor(f"sd.layer.{key}")) <= 1e-6, key
