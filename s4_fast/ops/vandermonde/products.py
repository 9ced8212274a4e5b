"""The Vandermonde ops and their adjoints from the two products that a compiled backend offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, conj_physical


@dataclass(frozen=True)
class Products:
    """``synthesize(v, x, L, scale)`` is scale Re sum_n v_n lambda_n^l, for v (c, H, n), x (H, n) -> (c, H, L).

    ``moments(u, x, first)`` is sum_l u_l lambda^l and, if ``first``, sum_l l u_l lambda^l, else None, for
    u (c, H, L), x (H, n) -> (c, H, n).
    """

    synthesize: Callable[[Tensor, Tensor, int, float], Tensor]
    moments: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]

    def log_vandermonde(self, v: Tensor, x: Tensor, L: int) -> Tensor:
        """v (c, H, n), x (H, n) -> (c, H, L)."""
        return self.synthesize(v, x, L, 2.0)

    def log_vandermonde_backward(
        self, grad: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        """grad_v = 2 (sum_l g_l lambda^l)*, grad_x = sum_c 2 v* (sum_l l g_l lambda^l)*."""
        zeroth, first = self.moments(grad, x, needs[1])
        grad_x = None if first is None else conj_physical((2 * v * first).sum(0))
        return conj_physical(2 * zeroth), grad_x

    def log_vandermonde_transpose(self, u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
        """u (c, H, L), v (c, H, n), x (H, n) -> (c, H, n)."""
        return v * self.moments(u, x, False)[0]

    def log_vandermonde_transpose_backward(
        self, grad: Tensor, u: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """With s = sum_l u_l lambda^l: grad_u = Re sum_n g* v lambda^l, grad_v = g s*, grad_x = sum_c g (v ds/dx)*."""
        grad_u = self.synthesize(conj_physical(grad) * v, x, L, 1.0) if needs[0] else None
        if not (needs[1] or needs[2]):
            return grad_u, None, None
        zeroth, first = self.moments(u, x, needs[2])
        grad_x = None if first is None else (grad * conj_physical(v * first)).sum(0)
        return grad_u, grad * conj_physical(zeroth), grad_x
