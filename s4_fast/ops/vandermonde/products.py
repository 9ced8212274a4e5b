"""The Vandermonde ops and their adjoints from the two products that a backend offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, conj_physical


class Nodes(ABC):
    """Nodes lambda = exp(x), x (H, n), and the products of a backend with their powers below L.

    ``rows`` is how many rows per feature the products have, where what is prepared for them depends on it.
    """

    def __init__(self, x: Tensor, L: int, rows: int) -> None:
        self.x, self.L, self.rows = x, L, rows

    @abstractmethod
    def synthesize(self, v: Tensor, scale: float) -> Tensor:
        """scale Re sum_n v_n lambda_n^l, v (c, H, n) -> (c, H, L)."""

    @abstractmethod
    def moments(self, u: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        """sum_l u_l lambda^l and, if ``first``, sum_l l u_l lambda^l, else None: u (c, H, L) -> (c, H, n)."""


@dataclass(frozen=True)
class Products:
    """The functions of a backend's module."""

    nodes: type[Nodes]

    def log_vandermonde(self, v: Tensor, x: Tensor, L: int) -> Tensor:
        """v (c, H, n), x (H, n) -> (c, H, L)."""
        return self.nodes(x, L, v.shape[0]).synthesize(v, 2.0)

    def log_vandermonde_backward(
        self, grad: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        """grad_v = 2 (sum_l g_l lambda^l)*, grad_x = sum_c 2 v* (sum_l l g_l lambda^l)*."""
        zeroth, first = self.nodes(x, L, v.shape[0]).moments(grad, needs[1])
        grad_x = None if first is None else conj_physical((2 * v * first).sum(0))
        return conj_physical(2 * zeroth), grad_x

    def log_vandermonde_transpose(self, u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
        """u (c, H, L), v (c, H, n), x (H, n) -> (c, H, n)."""
        return v * self.nodes(x, L, v.shape[0]).moments(u, False)[0]

    def log_vandermonde_transpose_backward(
        self, grad: Tensor, u: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """With s = sum_l u_l lambda^l: grad_u = Re sum_n g* v lambda^l, grad_v = g s*, grad_x = sum_c g (v ds/dx)*."""
        nodes = self.nodes(x, L, v.shape[0])
        grad_u = nodes.synthesize(conj_physical(grad) * v, 1.0) if needs[0] else None
        if not (needs[1] or needs[2]):
            return grad_u, None, None
        zeroth, first = nodes.moments(u, needs[2])
        grad_x = None if first is None else (grad * conj_physical(v * first)).sum(0)
        return grad_u, grad * conj_physical(zeroth), grad_x
