r"""A DPLR SSM as a diagonal one with feedback, in differentiable operations: for transforms and exported programs.

With ``e_l = 2 Re V s_l`` of the state s_l before sample l, ``s_{l+1} = a s_l + B u_l - G e_l``. In generating
functions, where ``k_XY[l] = 2 Re sum_n X a^l Y``, this is

    (I + omega k_VG) e = k_Vs + omega k_VB u,    y = k_C(as) + k_CB u - k_CG e

for the first state s. FFTs solve it on a circle of a smaller radius: what a sample leaves behind is there of size
``epsilon`` after a turn. Nothing of size n L exists, and no operation depends on the length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s4_fast.ops import _finite
from s4_fast.ops._complex import joined, log_bilinear, parts, plus
from s4_fast.ops.diagonal.form import read
from s4_fast.ops.diagonal.plain import completed
from s4_fast.ops.dplr_scan.discretization import Discretized
from s4_fast.ops.scan.plain import final_state
from s4_fast.ops.vandermonde.plain import log_vandermonde

# By precision: the length of a turn in lengths of the sequence, and log epsilon. Results are off by about
# epsilon + 1e-16 epsilon^(-1/turn).
_TURN = {torch.float32: (2, -25.0), torch.float64: (4, -29.5)}


def dplr_scan(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    P: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    flags: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Shapes as in ``reference.py``, but y is (batch, c H, L), or (batch, L, c H)."""
    form, dtype = read(flags, rate), u.dtype
    u = u.mT if form.time_major else u
    u = u.to(C.dtype)
    H, n = u.shape[1], A_real.shape[1]
    found = Discretized(dt.view(H, -1), A_real, A_imag, P, None if B is None else B.view(-1, n, 2), form)
    outputs = torch.view_as_complex(C.reshape(-1, H, n, 2)).to(torch.complex128)
    c = form.channels(outputs.shape[0])
    scan = _Scan(found, u.shape[-1], *_TURN[C.dtype])
    wide = _finite.without(u).double()
    y, after = scan.run(wide, outputs[:c], state, before=False)
    if form.bidirectional:
        late, _ = scan.run(wide.flip(-1), outputs[c:], ahead, before=True)
        y = y + late.flip(-1)
    after = after + spoilt_end(u)
    return completed(y.to(u.dtype), u, D, form).to(dtype), after.to(torch.view_as_complex(C).dtype)


def spoilt_end(u: Tensor) -> Tensor:
    """What makes NaN of a state after samples that are not finite: (batch, H, 1)."""
    return (u * 0).sum(-1, keepdim=True)


class _Scan:
    """A discretised system on the circle of sequences of L samples."""

    def __init__(self, system: Discretized, L: int, turn: int, epsilon: float) -> None:
        self.L, self.size = L, turn * L
        self.G, self.V, self.B = system.G, system.V, system.B_bar
        self.a, self.x = system.a, log_bilinear(system.step * system.A)
        device = self.x.device
        l = torch.arange(self.size, dtype=torch.float64, device=device)
        turns = l / self.size
        self.damping = torch.exp(epsilon * turns)
        angle, r = 2 * math.pi * turns[: self.size // 2 + 1], self.damping[1]
        self.omega = torch.complex(r * torch.cos(angle), -r * torch.sin(angle))

    def _spectra(self, X: Tensor, Y: Tensor) -> Tensor:
        """``k_XY``: X (i, H, n), Y (j, H, n) -> (i, j, H, frequencies)."""
        rows = log_vandermonde((X[:, None] * Y).flatten(0, 1), self.x, self.size)
        return torch.fft.rfft(rows * self.damping).unflatten(0, (X.shape[0], Y.shape[0]))

    def _back(self, spectra: Tensor) -> Tensor:
        return torch.fft.irfft(spectra, n=self.size)[..., : self.L] / self.damping[: self.L]

    def run(self, u: Tensor, C: Tensor, state: Tensor | None, before: bool) -> tuple[Tensor, Tensor]:
        """``2 Re C s_{l+1}``, or of s_l if ``before``, (batch, c, H, L), and the last state, for u in float64."""
        U = torch.fft.rfft(u * self.damping[: self.L], n=self.size)[:, None]  # (batch, 1, H, F)
        # Packages of AOTInductor do not concatenate complex tensors.
        inputs = joined(*map(torch.cat, zip(parts(self.B[None]), parts(self.G), strict=True)))
        k_V, k_C = self._spectra(self.V, inputs), self._spectra(C, inputs)
        known = self.omega * k_V[:, 0] * U  # (batch, rank, H, F)
        if state is not None:
            state = state.to(torch.complex128)
            known = known + self._spectra(self.V, state).transpose(0, 1)
        e = _solve(self.omega * k_V[:, 1:], known)
        y = k_C[:, 0] * U + (k_C[:, 1:] * -e[:, None]).sum(2)
        y = self.omega * y if before else y
        if state is not None:
            y = y + self._spectra(C if before else C * self.a, state).transpose(0, 1)
        feedback = -self._back(e)
        after = final_state(u, self.x, self.B, state)
        for j in range(self.G.shape[0]):
            after = after + final_state(feedback[:, j], self.x, self.G[j], None)
        return self._back(y), after


def _solve(k: Tensor, known: Tensor) -> Tensor:
    """``(I + k)^{-1} known``: (rank, rank, H, F), (batch, rank, H, F)."""
    if k.shape[0] == 1:
        return known / plus(k[0, 0], 1)
    matrix = k.permute(2, 3, 0, 1)
    eye = torch.eye(k.shape[0], dtype=k.dtype, device=k.device)
    return torch.linalg.solve_ex(eye + matrix, known.permute(2, 3, 1, 0)).result.permute(3, 2, 0, 1)
