"""S4D and S4 as sequence layers on (batch, length, features)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from s4_fast import torch_private
from s4_fast.arguments import options_of, refuse_unknown, signal
from s4_fast.layers import padding
from s4_fast.layers.padding import Lengths
from s4_fast.layers.sequence_module import SequenceModule, one_sample
from s4_fast.ssm import DPLRSSM, DiagonalSSM
from s4_fast.ssm.sequence import Path, Way, as_autocast, check_path, choose


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
        self.path = path
        self.d_model, self.d_state, self.bidirectional = kernel.d_model, kernel.d_state, bidirectional
        self.kernel = kernel
        self.D = nn.Parameter(torch.randn(kernel.d_model, device=device, dtype=dtype))

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
        return f"bidirectional={self.bidirectional}, path={self.path}"


class S4DLayer(SSMLayer):
    r"""The S4D layer: a diagonal SSM per feature plus a skip, on (batch, length, d_model).

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even. ``state_dim`` is accepted as another name.
        dt_min, dt_max: the range of the log-uniform initial step size.
        bidirectional: whether a second kernel runs from the end.
        path: ``"scan"`` (``s4_fast.ssm_scan``), ``"convolution"`` (kernel and FFT), or ``"auto"``: whichever is
            faster for the shape and the device, see ``explain``. Both compute the same.
        device, dtype: of the parameters; None for PyTorch's defaults.
        **kernel: further options of ``s4_fast.ssm.DiagonalSSM`` (``init``, ``discretization``, ``lr``, ...).
    """

    kernel: DiagonalSSM

    def __init__(
        self,
        d_model: int,
        d_state: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        bidirectional: bool = False,
        path: str = "auto",
        state_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kernel: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, kernel, options_of_layer(S4DLayer))
        check_path(path)
        kernel = {"dt_min": dt_min, "dt_max": dt_max, "device": device, "dtype": dtype, **kernel}
        ssm = DiagonalSSM(d_model, _state_size(d_state, state_dim), channels=1 + bidirectional, **kernel)
        super().__init__(ssm, bidirectional, path, device, dtype)


class S4Layer(SSMLayer):
    r"""The S4 layer: a diagonal-plus-low-rank SSM per feature plus a skip, on (batch, length, d_model).

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even. ``state_dim`` is accepted as another name.
        dt_min, dt_max: the range of the log-uniform initial step size.
        bidirectional: whether a second kernel runs from the end.
        path: ``"scan"`` (``s4_fast.dplr_scan``), ``"convolution"`` (kernel and FFT), or ``"auto"``: whichever is
            faster for the shape and the device, see ``explain``. Both compute the same.
        device, dtype: of the parameters; None for PyTorch's defaults.
        **kernel: further options of ``s4_fast.ssm.DPLRSSM`` (``init``, ``rank``, ``lr``, ...).
    """

    kernel: DPLRSSM

    def __init__(
        self,
        d_model: int,
        d_state: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        bidirectional: bool = False,
        path: str = "auto",
        state_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kernel: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, kernel, options_of_layer(S4Layer))
        check_path(path)
        kernel = {"dt_min": dt_min, "dt_max": dt_max, "device": device, "dtype": dtype, **kernel}
        ssm = DPLRSSM(d_model, _state_size(d_state, state_dim), channels=1 + bidirectional, **kernel)
        super().__init__(ssm, bidirectional, path, device, dtype)


def _state_size(d_state: int | None, state_dim: int | None) -> int:
    if d_state is not None and state_dim is not None and d_state != state_dim:
        raise ValueError(f"d_state and state_dim name the same size, got {d_state} and {state_dim}")
    return next((size for size in (d_state, state_dim) if size is not None), 64)


def options_of_layer(layer: type[SSMLayer], *owners: type) -> list[str]:
    """What the constructor of a layer takes, its kernel's options included, behind those of its ``owners``."""
    takers = [c.__init__ for c in (*owners, layer, _KERNELS[layer])]  # type: ignore[misc]
    return [name for name in options_of(*takers) if name != "channels"]


_KERNELS: dict[type[SSMLayer], type] = {S4DLayer: DiagonalSSM, S4Layer: DPLRSSM}
