"""S4D and S4 as sequence layers on (batch, length, features)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from s4_fast import torch_private
from s4_fast.arguments import choice, signal
from s4_fast.layers import padding
from s4_fast.layers.calls import SequenceCall
from s4_fast.layers.padding import Lengths
from s4_fast.layers.sequence_module import SequenceModule, one_sample
from s4_fast.ssm import DPLRSSM, DiagonalSSM
from s4_fast.ssm.sequence import PATHS, Path, Way, as_autocast, choose, described


class SSMLayer(SequenceModule):
    """``y = SSM(u) + D u`` per feature on (batch, length, d_model); linear, without activation or mixing.

    Bidirectional layers add a second kernel that runs from the end: output l sees every input.
    """

    def __init__(
        self,
        kernel: DiagonalSSM | DPLRSSM,
        bidirectional: bool,
        path: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.path = choice("path", path, PATHS)
        self.d_model, self.d_state, self.bidirectional = kernel.d_model, kernel.d_state, bidirectional
        self.kernel = kernel
        self.D = nn.Parameter(torch.randn(kernel.d_model, device=device, dtype=dtype))

    if TYPE_CHECKING:
        __call__: SequenceCall[Tensor]

    def forward(
        self,
        u: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The layer over a sequence, from state to state.

        A sequence may be cut anywhere: pass the state that the first part returns to the second, and outputs, state
        and gradients are those of the whole. Detach it between them to cut the gradients off there.

        Args:
            u: inputs, (batch, length, d_model), in the parameters' dtype or a half type. Any length >= 1, in any order
                of lengths. Under autocast u counts as one of autocast's dtype, as for ``nn.Linear``.
            state: the state before, (batch, d_model, d_state / 2), complex; None for zero.
            lengths: the lengths of right-padded rows, integers from 1 to ``length``, (batch,). Outputs and state are
                then those of each row alone, with zeros where a row has ended; what lies in the padding is not read.
            return_state: whether to return the state after the (row's) last input too.

        Returns:
            y like u, or (y, state). Differentiable in u, the state and every parameter.

        Raises:
            RuntimeError: a state is given to or asked of a bidirectional layer.
            TypeError: u or state has the wrong dtype, or lengths are not integers.
            ValueError: u, state or lengths has the wrong shape, lies on another device, or is out of range.
        """
        given = u
        u = self.given(lambda: as_autocast(signal("u", given, self)))
        rows = self.given(lambda: padding.rows(lengths, u))
        if rows is not None:
            u = rows.cut(u)
        way = Way(bidirectional=self.bidirectional, path=self.path)
        y, after = self._through(
            self.kernel,
            u,
            self.D,
            way,
            lambda least: self._check(u, state, return_state, least),
            state=state,
            rows=rows,
            return_state=return_state,
        )
        if rows is not None:
            y = rows.cut(y)
        if not return_state:
            return y
        assert after is not None
        return y, after

    def prefill(
        self, u: Tensor, state: Tensor | None = None, *, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        """``forward`` with ``return_state``: (y, state). ``step`` goes on where it stopped."""
        y, after = self(u, state, lengths=lengths, return_state=True)
        return y, after

    def _check(self, u: Tensor, state: Tensor | None, return_state: bool, least: int) -> None:
        if u.ndim != 3 or u.shape[-1] != self.d_model or u.shape[1] < least:
            expected = f"(batch, length, {self.d_model}) with length >= {least}"
            raise ValueError(f"expected u of shape {expected}, got {tuple(u.shape)}")
        if self.bidirectional and (state is not None or return_state):
            raise RuntimeError(
                "a bidirectional layer needs the whole sequence; it has no state to start from or return"
            )
        if state is not None:
            self.kernel.check(u.mT, state, "length")

    def init_state(self, batch: int) -> Tensor:
        """The zero state, (batch, d_model, d_state / 2), complex."""
        return self.kernel.init_state(batch)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: u (batch, d_model), state -> y (batch, d_model), state.

        From ``init_state`` the outputs equal ``forward`` on the whole sequence.

        Raises:
            RuntimeError: the layer is bidirectional.
            ValueError: u or state has the wrong shape.
        """
        if self.bidirectional:
            raise RuntimeError("a bidirectional layer needs the whole sequence; it cannot step")
        if torch_private.has_hooks(self):
            return one_sample(self, u, state)
        return self.kernel.stepped(as_autocast(signal("u", u, self)), state, self.D)

    def explain(self, u: Tensor) -> Path:
        """The path that ``self(u)`` takes through u (batch, length, d_model), and why. Nothing is computed.

        ``s4_fast.backend_table.SCAN_THRESHOLDS`` holds what the automatic choice goes by, and may be changed.
        """
        way = Way(bidirectional=self.bidirectional, path=self.path)
        return choose(self.kernel, u.shape[0], u.shape[1], way)

    def extra_repr(self) -> str:
        way = Way(bidirectional=self.bidirectional, path=self.path)
        directions = ", bidirectional=True" if self.bidirectional else ""
        return f"{self.d_model}, d_state={self.d_state}{directions}, {described(self.kernel, way)}"


class S4DLayer(SSMLayer):
    r"""The S4D layer: a diagonal SSM per feature plus a skip, on (batch, length, d_model).

    ``x'(t) = A x(t) + B u(t)``, ``y(t) = 2 Re C x(t) + D u(t)`` with A diagonal, for each feature by itself (S4D: Gu et
    al. 2022, arXiv 2206.11893). The layer is linear and mixes no features; ``SSMBlock`` does. Calls, ``prefill`` and
    ``step`` are differentiable in the input, the state and every parameter.

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even; N/2 conjugate pairs are stored.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        init: how A and B start: ``"lin"``, ``"inv"``, ``"inv2"``, ``"quad"``, ``"real"``, ``"legs"``, ``"legt"``,
            ``"lagt"``, ``"fout"`` or ``"rand"`` (``s4_fast.ssm.initialization.diagonal``), or the tensors (A, B), each
            (N/2,) or (n_ssm, N/2), complex.
        discretization: ``"zoh"`` (zero-order hold) or ``"bilinear"``.
        n_ssm: number of independent (A, B), a divisor of ``d_model``; None for one per feature.
        lr: the learning rate of dt, A and B in ``get_ssm_param_groups``; None for that of its ``ssm_lr``.
        bidirectional: whether a second kernel runs from the end. There are no states then.
        path: ``"scan"`` (``diagonal_ssm``), ``"convolution"`` (kernel and FFT), or ``"auto"``: whichever is faster for
            the shape and the device, see ``explain``. Both compute the same.
        generator: source of the initial random numbers; None for PyTorch's default one.
        state_dim: another name of ``d_state``; None where that is given.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default. Half types are stored as such, and computed with in
            float32.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an unknown name, a size that does not fit, or an unstable A (Re A > 0).

    Examples:
        >>> layer = S4DLayer(8, d_state=16)
        >>> y, state = layer.prefill(torch.randn(2, 100, 8))
        >>> y.shape, state.shape
        (torch.Size([2, 100, 8]), torch.Size([2, 8, 8]))
        >>> y, state = layer.step(torch.randn(2, 8), state)
        >>> y.shape
        torch.Size([2, 8])
    """

    kernel: DiagonalSSM

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        init: str | tuple[Tensor, Tensor] = "lin",
        discretization: str = "zoh",
        n_ssm: int | None = None,
        lr: float | None = None,
        bidirectional: bool = False,
        path: str = "auto",
        generator: Generator | None = None,
        state_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = DiagonalSSM(
            d_model,
            _state_size(d_state, state_dim),
            channels=1 + bidirectional,
            init=init,
            discretization=discretization,
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            lr=lr,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        super().__init__(kernel, bidirectional, path, device, dtype)


class S4Layer(SSMLayer):
    r"""The S4 layer: a diagonal-plus-low-rank SSM per feature plus a skip, on (batch, length, d_model).

    ``x'(t) = A x(t) + B u(t)``, ``y(t) = 2 Re C x(t) + D u(t)`` with ``A = Lambda - P P*``, for each feature by itself,
    under the bilinear discretisation (S4: Gu, Goel, Re 2022, arXiv 2111.00396). The layer is linear and mixes no
    features; ``SSMBlock`` does. Calls, ``prefill`` and ``step`` are differentiable in the input, the state and every
    parameter.

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even; N/2 conjugate pairs are stored.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        init: how Lambda, P and B start: ``"legs"``, ``"legt"``, ``"lagt"``, ``"fout"``, or ``"diag-"`` and a name that
            ``S4DLayer`` takes (``s4_fast.ssm.initialization.dplr``), or the tensors (Lambda (N/2,), P (rank, N/2),
            B (N/2,)), complex.
        rank: rank of the correction P; ``"legt"`` needs 2.
        n_ssm: number of independent (Lambda, P, B), a divisor of ``d_model``; None for one per feature.
        lr: the learning rate of dt, A, B and P in ``get_ssm_param_groups``; None for that of its ``ssm_lr``.
        bidirectional: whether a second kernel runs from the end. There are no states then.
        path: ``"scan"`` (``dplr_scan``), ``"convolution"`` (kernel and FFT), or ``"auto"``: whichever is faster for the
            shape and the device, see ``explain``. Both compute the same.
        generator: source of the initial random numbers; None for PyTorch's default one.
        state_dim: another name of ``d_state``; None where that is given.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default. Half types are stored as such, and computed with in
            float32.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an unknown name, a size that does not fit, or an unstable Lambda (Re > 0).

    Examples:
        >>> layer = S4Layer(8, d_state=16, init="legt", rank=2)
        >>> layer(torch.randn(2, 100, 8)).shape
        torch.Size([2, 100, 8])
    """

    kernel: DPLRSSM

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        init: str | tuple[Tensor, Tensor, Tensor] = "legs",
        rank: int = 1,
        n_ssm: int | None = None,
        lr: float | None = None,
        bidirectional: bool = False,
        path: str = "auto",
        generator: Generator | None = None,
        state_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = DPLRSSM(
            d_model,
            _state_size(d_state, state_dim),
            channels=1 + bidirectional,
            init=init,
            rank=rank,
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            lr=lr,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        super().__init__(kernel, bidirectional, path, device, dtype)


def _state_size(d_state: int, state_dim: int | None) -> int:
    if state_dim is None:
        return d_state
    if d_state not in (64, state_dim):  # 64 is the default
        raise ValueError(f"d_state and state_dim name the same size, got {d_state} and {state_dim}")
    return state_dim
