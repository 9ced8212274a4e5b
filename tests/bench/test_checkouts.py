"""Checkouts of state-spaces/s4 beside the drop-ins, with a minimal layer in the place of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from s4_fast.bench import checkouts, runner, worker
from s4_fast.bench.cases import Case

MINIMAL = """
import math
import torch
from torch import nn
from src.names import WITHOUT_KEOPS

assert WITHOUT_KEOPS


class S4DKernel(nn.Module):
    def __init__(self, d_model, N):
        super().__init__()
        self.C = nn.Parameter(torch.randn(d_model, N // 2, 2))
        self.log_dt = nn.Parameter(torch.rand(d_model) * math.log(100) + math.log(0.001))
        self.log_A_real = nn.Parameter(torch.log(0.5 * torch.ones(d_model, N // 2)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(N // 2).repeat(d_model, 1).float())


class S4D(nn.Module):
    def __init__(self, d_model, d_state):
        super().__init__()
        self.h, self.n, self.transposed = d_model, d_state, True
        self.D = nn.Parameter(torch.randn(d_model))
        self.kernel = S4DKernel(d_model, d_state)
        self.activation, self.dropout = nn.GELU(), nn.Identity()
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, kernel_size=1), nn.GLU(dim=-2))

    def forward(self, u):
        kernel, L = self.kernel, u.shape[-1]
        A = -torch.exp(kernel.log_A_real) + 1j * kernel.A_imag
        dtA = A * torch.exp(kernel.log_dt)[:, None]
        C = torch.view_as_complex(kernel.C) * (torch.exp(dtA) - 1) / A
        k = 2 * (C[..., None] * torch.exp(dtA[..., None] * torch.arange(L))).sum(-2).real
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(k, n=2 * L), n=2 * L)[..., :L]
        return self.output_linear(self.activation(y + u * self.D[:, None])), None
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in {
        "models/s4/s4.py": "import not_installed_here",
        "models/s4/s4d.py": MINIMAL,
        "src/names.py": "import sys\n\nWITHOUT_KEOPS = sys.modules.get('pykeops', 0) is None\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_checkout_stands_beside_the_drop_in_with_its_weights(checkout: Path) -> None:
    found, case = checkouts.load(checkout), Case("S4D", 3, 4, 24, batch=2)
    assert [job.backend for job in runner.plan([case], quick=True, checkout=found)] == ["direct", found.name, "s4_fast"]
    row = worker.measure_row(case, found.name, "cpu", 0.01, found)
    assert row.backend == "official 4 naive" and row.version == "state-spaces/s4 4"
    assert row.errors and row.errors.forward < 1e-5 and row.errors.gradient is not None and row.forward_backward
    assert not any(job.backend == found.name for job in runner.plan([Case("S4", 3, 4, 24)], checkout=found))


def test_what_does_not_import_there_is_skipped_with_the_command(checkout: Path) -> None:
    found, case = checkouts.load(checkout), Case("S4Block-diag", 3, 4, 24, batch=2)
    row = worker.measure_row(case, found.name, "cpu", 0.01, found)
    assert "pip install not_installed_here" in row.skipped
    assert worker.measure_row(case, "s4_fast", "cpu", 0.01, found).forward is not None


def test_a_folder_without_its_files_is_refused_with_the_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"models/s4/s4.py \(release 4\).*git clone"):
        checkouts.load(tmp_path)
    with pytest.raises(ValueError, match="git clone"):
        checkouts.load(tmp_path / "nowhere")


def test_a_checkout_in_which_nothing_runs_is_refused(checkout: Path) -> None:
    (checkout / "models/s4/s4d.py").write_text("from src.elsewhere import DropoutNd")
    with pytest.raises(ValueError, match="checkout is incomplete"):
        checkouts.load(checkout)
