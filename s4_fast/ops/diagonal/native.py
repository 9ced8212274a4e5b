"""A diagonal SSM from its continuous parameters by the native library: one call each way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s4_fast import native_library
from s4_fast.ops._checks import COMPLEX

_SIZES, _SYSTEM = "iiiiiiiiiid", "ppppppppp"


def functions(name: str) -> tuple[native_library.Function, native_library.Function]:
    """The C functions ``<name>`` and ``<name>_backward``."""
    forward = native_library.Function(name, _SIZES + _SYSTEM + "pp")
    return forward, native_library.Function(f"{name}_backward", _SIZES + "pp" + _SYSTEM + "ppppppppp")


@dataclass(frozen=True)
class Diagonal:
    """The functions of a module by two C functions."""

    forward: native_library.Function
    backward: native_library.Function

    def diagonal_ssm(
        self,
        u: Tensor,
        dt: Tensor,
        A_real: Tensor,
        A_imag: Tensor,
        B: Tensor | None,
        C: Tensor,
        D: Tensor | None,
        state: Tensor | None,
        ahead: Tensor | None,
        flags: int,
        rate: float,
    ) -> tuple[Tensor, Tensor]:
        """Shapes as in ``reference.py``, but y is (batch, c H, L), or (batch, L, c H)."""
        sizes = _sizes(u, dt, A_real, C, flags)
        batch, H, n, L, c = sizes[3:8]
        y = torch.empty_like(u) if c == 1 else u.new_empty((batch, L, c * H) if flags & 1 else (batch, c * H, L))
        final = C.new_empty((batch, H, n), dtype=COMPLEX[C.dtype])
        self.forward(u, *sizes, rate, u, dt, A_real, A_imag, B, C, D, state, ahead, y, final)
        return y, final

    def diagonal_ssm_backward(
        self,
        grad_y: Tensor | None,
        grad_final: Tensor | None,
        u: Tensor,
        dt: Tensor,
        A_real: Tensor,
        A_imag: Tensor,
        B: Tensor | None,
        C: Tensor,
        D: Tensor | None,
        state: Tensor | None,
        ahead: Tensor | None,
        flags: int,
        rate: float,
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        inputs = (u, dt, A_real, A_imag, B, C, D, state, ahead)
        sizes = _sizes(u, dt, A_real, C, flags)
        grads = [torch.empty_like(t) if needed else None for t, needed in zip(inputs, needs, strict=True)]  # type: ignore[arg-type]
        self.backward(u, *sizes, rate, grad_y, grad_final, *inputs, *grads)
        return tuple(grads)


def _sizes(u: Tensor, dt: Tensor, A_real: Tensor, C: Tensor, flags: int) -> tuple[int, ...]:
    """The integers that begin the arguments: dtypes, flags, batch, H, n, L, c, copies, dt_states."""
    batch, H, L = u.shape
    if flags & 1:
        H, L = L, H
    copies, n = A_real.shape
    c = C.numel() // ((4 if flags & 2 else 2) * H * n)
    codes = native_library.DTYPES
    return codes[C.dtype], codes[u.dtype], flags, batch, H, n, L, c, copies, dt.numel() // H


_FORWARD, _BACKWARD = functions("diagonal")
_DIAGONAL = Diagonal(_FORWARD, _BACKWARD)
diagonal_ssm = _DIAGONAL.diagonal_ssm
diagonal_ssm_backward = _DIAGONAL.diagonal_ssm_backward
