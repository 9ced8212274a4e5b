"""The smallest S4D: one block in 60 lines on the functions of s4_fast, and its minimal variant as one matrix product.

    pip install matplotlib
    python examples/train_mini_s4d.py
    python examples/train_mini_s4d.py --variant minimal

Run as a program it does a forward pass, trains for a few seconds on random sequences to tell how smooth they are, and
draws what it has learnt. How the block relates to the official one: VERIFICATION_vs_official_s4d.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn.functional import gelu, mse_loss

import s4_fast
from command_line import COUNT, SEED, make_folder, positive, run_command, usable_device
from result_files import save_figure, save_tensors
from s4_fast import DropoutNd, fft_conv, log_vandermonde, weights
from s4_fast.ssm import initialization
from s4_fast.ssm.discretization import zoh_diagonal

VARIANTS = ("full", "minimal")
SMOOTHEST = 0.95


class S4DKernel(nn.Module):
    """``K[l] = Re sum_n C_n B_bar_n exp(dt A_n l)`` per feature; zero-order hold, ``B_bar = (exp(dt A) - 1) / A B``.

    Parameters: ``log_dt`` (d_model,); ``log_A_real`` and ``A_imag`` (d_model, d_state), where
    ``A = -exp(log_A_real) + i A_imag``; ``B`` and ``C`` (d_model, d_state, 2), real pairs.

    Args:
        d_model: number of features.
        d_state: number of complex modes per feature. A layer of s4_fast would call them ``2 d_state``: it counts the
            conjugate of each.
        dt_min, dt_max: the range of the log-uniform initial step size.
    """

    backend: str | None = None  # of the kernel's sum; None for the automatic choice

    def __init__(self, d_model: int, d_state: int = 8, dt_min: float = 0.001, dt_max: float = 0.1) -> None:
        super().__init__()
        if d_model < 1 or d_state < 1:
            raise ValueError(f"d_model and d_state must be at least 1, got {d_model} and {d_state}")
        A, B = initialization.diagonal("lin", 2 * d_state)
        real = torch.get_default_dtype()
        modes = (d_model, d_state)
        self.log_dt = nn.Parameter(initialization.log_dt((d_model,), dt_min, dt_max, dtype=real))
        self.log_A_real = nn.Parameter((-A.real).log().to(real).repeat(d_model, 1))
        self.A_imag = nn.Parameter(A.imag.to(real).repeat(d_model, 1))
        self.B = nn.Parameter(torch.view_as_real(B.to(real.to_complex()).repeat(d_model, 1)))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(modes, dtype=real.to_complex())))
        for parameter in (self.log_dt, self.log_A_real, self.A_imag, self.B):
            parameter._optim = {"weight_decay": 0.0}  # s4_fast.get_ssm_param_groups gives them their own rate

    def forward(self, L: int) -> Tensor:
        """The first L samples, (d_model, L)."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        B, C = torch.view_as_complex(self.B), torch.view_as_complex(self.C)
        x, B_bar = zoh_diagonal(A, B, self.log_dt.exp()[:, None])
        # log_vandermonde adds the conjugates, and so sums to twice the real part.
        return log_vandermonde(C * B_bar / 2, x, L, backend=self.backend)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Checkpoints may hold B and C as complex numbers."""
        for name in (prefix + "B", prefix + "C"):
            value = state_dict.get(name)
            if isinstance(value, Tensor) and value.is_complex():
                state_dict[name] = torch.view_as_real(value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class MiniS4D(nn.Module):
    """One S4D block, the mean over time, and a linear head: (B, d_model, L) -> (B, 1).

    The block is ``GLU(W dropout(gelu(K * u + D u)) + b)``. ``variant="minimal"`` has neither D, nor dropout, nor the
    linear map with GLU: its block is ``gelu(K * u)``, and before the GELU and behind it everything is linear.

    Args:
        d_model: number of features.
        d_state: number of complex modes per feature.
        L: length of the sequences.
        dropout: probability that a feature is dropped, at all positions at once; none in the minimal variant.
        variant: ``"full"`` or ``"minimal"``.

    Raises:
        ValueError: a size below 1, an unknown variant, or dropout in the minimal one.
    """

    def __init__(
        self, d_model: int = 4, d_state: int = 8, L: int = 64, dropout: float = 0.0, variant: str = "full"
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}")
        if L < 1:
            raise ValueError(f"L must be at least 1, got {L}")
        if variant == "minimal" and dropout != 0:
            raise ValueError(f"the minimal variant has no dropout, got {dropout}")
        self.d_model, self.L, self.variant = d_model, L, variant
        self.kernel_gen = S4DKernel(d_model, d_state)
        self.D = nn.Parameter(torch.randn(d_model)) if variant == "full" else None
        self.activation = nn.GELU()
        self.dropout = DropoutNd(dropout, transposed=True)
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, 1), nn.GLU(1)) if variant == "full" else None
        self.decoder = nn.Linear(d_model, 1)

    def block(self, u: Tensor) -> Tensor:
        """What is averaged over time, of the shape of u."""
        if u.ndim != 3 or u.shape[1:] != (self.d_model, self.L):
            raise ValueError(f"expected u of shape (B, {self.d_model}, {self.L}), got {tuple(u.shape)}")
        y = self.activation(fft_conv(u, self.kernel_gen(self.L), self.D))
        return y if self.output_linear is None else self.output_linear(self.dropout(y))

    def forward(self, u: Tensor) -> Tensor:
        return self.decoder(self.block(u).mean(-1))

    @torch.no_grad()
    def export_toeplitz(self, head_idx: int = 0) -> Tensor:
        """T (L, L) of one feature's convolution, ``K * u = T u``: ``T[i, j] = K[i - j]`` for ``j <= i``, else 0."""
        K = self.kernel_gen(self.L)[head_idx]
        lag = torch.arange(self.L, device=K.device)[:, None] - torch.arange(self.L, device=K.device)
        return torch.where(lag >= 0, K[lag.clamp(min=0)], 0)


def export_minimal(model: MiniS4D) -> dict[str, Tensor]:
    """The minimal variant as the plain arrays of ``gelu(u M) W + b``, for u (B, d_model L) with the features in turn.

    ``M`` (d_model L, d_model L) holds the transposed Toeplitz matrices along its diagonal; ``W`` (d_model L, 1) is the
    mean over time and the head in one. What evaluates it needs no state space model, no FFT and no s4_fast.

    Raises:
        ValueError: the model is of another variant.
    """
    if model.variant != "minimal":
        raise ValueError(f"only the minimal variant is one matrix product, got {model.variant!r}")
    M = torch.block_diag(*(model.export_toeplitz(i).mT for i in range(model.d_model)))
    W = model.decoder.weight.detach().repeat_interleave(model.L, dim=1).mT / model.L
    return {"M": M.contiguous(), "W": W.contiguous(), "b": model.decoder.bias.detach().clone()}


def smooth_sequences(count: int, channels: int, L: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Noise (count, channels, L) of variance 1 and, (count, 1), the correlation of neighbours: what is to be told."""
    rho = SMOOTHEST * torch.rand(count, 1, generator=generator)
    noise = torch.randn(L, count, channels, generator=generator)
    x = [noise[0]]
    for sample in noise[1:]:
        x.append(rho * x[-1] + (1 - rho**2).sqrt() * sample)
    return torch.stack(x, -1), rho


def neighbours_correlation(x: Tensor) -> Tensor:
    """(count, 1): what statistics says of these sequences without learning."""
    return ((x[..., 1:] * x[..., :-1]).mean((1, 2)) / x.square().mean((1, 2)))[:, None]


def train(model: MiniS4D, steps: int, lr: float, batch: int, generator: Generator, console: Console) -> list[float]:
    """Losses of ``steps`` steps, each on new sequences."""
    device = model.decoder.weight.device
    optimizer = torch.optim.AdamW(s4_fast.get_ssm_param_groups(model, lr=lr, ssm_lr=lr / 4, weight_decay=0.01))
    losses = []
    for _ in track(range(steps), "training", console=console, transient=True):
        u, target = (t.to(device) for t in smooth_sequences(batch, model.d_model, model.L, generator))
        loss = mse_loss(model(u), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise click.ClickException(f"the model diverged in step {len(losses)}; try a lower --lr")
    return losses


def show_export(model: MiniS4D, path: Path, u: Tensor, console: Console) -> None:
    """Write the plain arrays, and compare what they give with the model."""
    weights.write(path, export_minimal(model), {}, force=True)
    arrays = load_file(path, device=str(u.device))
    with torch.no_grad():
        expected, linear = model(u), fft_conv(u, model.kernel_gen(model.L)).flatten(1)
    product = u.flatten(1) @ arrays["M"]
    out = gelu(product) @ arrays["W"] + arrays["b"]
    size = " x ".join(str(side) for side in arrays["M"].shape)
    console.print(f"{path}: gelu(u M) W + b, where M is {size}", soft_wrap=True)
    for name, a, b in (("u M and the convolution", product, linear), ("gelu(u M) W + b and the model", out, expected)):
        console.print(f"    {name} differ by at most {(a - b).abs().max():.1e}, of {b.abs().max():.2g}")


def draw(path: Path, model: MiniS4D, losses: list[float], chance: float) -> None:
    """The kernels, the first one as a matrix, and the loss."""
    figure = Figure(figsize=(12, 3.8), layout="constrained", facecolor="white")
    kernels, matrix, loss = figure.subplots(1, 3)
    with torch.no_grad():
        K = model.kernel_gen(model.L).cpu().numpy()
    for i, k in enumerate(K[:4]):
        kernels.plot(k, linewidth=2, label=f"feature {i}")
    kernels.set_title("Kernels K", loc="left")
    kernels.set_xlabel("lag")
    kernels.legend(frameon=False)
    T = model.export_toeplitz(0).cpu().numpy()
    shown = matrix.imshow(T, cmap="RdBu_r", vmin=-abs(T).max(), vmax=abs(T).max())
    matrix.set_title("Feature 0 as a matrix: K * u = T u", loc="left")
    matrix.set_xlabel("input step")
    matrix.set_ylabel("output step")
    figure.colorbar(shown, ax=matrix, shrink=0.85)
    loss.plot(range(1, len(losses) + 1), losses, color="#1f6fb2", linewidth=1.5)
    loss.axhline(chance, color="black", linewidth=1, linestyle=":", label="always the mean")
    loss.set_yscale("log")
    loss.set_title("Squared error in training", loc="left")
    loss.set_xlabel("step")
    loss.legend(frameon=False)
    for axes in (kernels, loss):
        axes.grid(color="#e4e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"MiniS4D, {model.variant}", fontweight="bold")
    save_figure(path, figure, dpi=100)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--variant", type=click.Choice(VARIANTS), default="full", help="minimal: kernel, GELU and head alone.")
@click.option("--d_model", "--d-model", type=COUNT, default=4, help="Features.")
@click.option("--d_state", "--d-state", type=COUNT, default=8, help="Complex modes per feature.")
@click.option("--seq_len", "--seq-len", type=COUNT, default=64, help="Length of the sequences.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.0)
@click.option("--steps", type=COUNT, default=300)
@click.option("--batch_size", "--batch-size", type=COUNT, default=64)
@click.option("--lr", callback=positive, default=0.02, help="Learning rate; that of dt, A and B is a quarter of it.")
@click.option("--seed", type=SEED, default=0, help="Of the weights and the sequences.")
@click.option("--device", default="auto", callback=usable_device, help="auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs/mini",
    help="Where the results go, named for the variant.",
)
def main(
    variant: str,
    d_model: int,
    d_state: int,
    seq_len: int,
    dropout: float,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    device: str,
    out: Path,
) -> None:
    """One S4D block: forward pass, a few seconds of training, pictures, and the minimal variant as a matrix."""
    torch.manual_seed(seed)
    try:
        model = MiniS4D(d_model, d_state, seq_len, dropout, variant).to(device)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    s4_fast.keep_pages()  # on the CPU: this program owns its memory, so let it keep what it frees
    make_folder(out)
    console = Console(highlight=False, markup=False)
    generator = Generator().manual_seed(seed)
    u, target = (t.to(device) for t in smooth_sequences(1000, d_model, seq_len, generator))
    weights = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        console.print(
            f"{variant} MiniS4D on {device}, {weights:,} parameters: {tuple(u.shape)} -> {tuple(model(u).shape)}"
        )

    losses = train(model, steps, lr, batch_size, generator, console)
    chance = target.var(correction=0).item()
    model.eval()
    with torch.no_grad():
        error = mse_loss(model(u), target).item()
    counted = mse_loss(neighbours_correlation(u), target).item()
    console.print(f"squared error on held-out sequences {error:.4f}; always the mean: {chance:.4f}, ", end="")
    console.print(f"the sample correlation: {counted:.4f}")

    save_tensors(out / f"{variant}.pt", model.state_dict())
    console.print(f"weights: {out / f'{variant}.pt'}", soft_wrap=True)
    if variant == "minimal":
        show_export(model, out / "minimal.safetensors", u, console)
    draw(out / f"{variant}.png", model, losses, chance)
    console.print(f"picture: {out / f'{variant}.png'}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
