"""What chunks of up to T samples of a DPLR recurrence need, formed in float64, and the way back from its gradients.

States are real: (Re s_1, Im s_1, Re s_2, ...), N = 2n of them. A chunk u of r samples that begins in s gives

    y = u R + s Cmap,   s' = s A^r + u Bmap,   R[j, t] = k_{t-j},  k_d = 2 Re C A_bar^d B_bar

with the transposes of the matrices that act on columns. ``Cmap`` has the columns C A_bar^{t+1}, ``Bmap`` the rows
A_bar^{r-1-j} B_bar: chains of T steps of O(n) each. With X_j = a^{r-1-j} G and V_j = V A_bar^j,

    A_bar^r = a^r - sum_{j<r} X_j V_j.
"""

from __future__ import annotations

import torch
from torch import Tensor, conj_physical

from s4_fast.ops.vandermonde.two_level import power_table


class Maps:
    """The chains of C, V and B_bar in T steps, and what is made of them."""

    def __init__(self, a: Tensor, G: Tensor, V: Tensor, B_bar: Tensor, C: Tensor, T: int) -> None:
        """a, B_bar (H, n), G, V (rank, H, n), C (channels, H, n), complex128."""
        self.a, self.G, self.T, self.channels = a, G, T, len(C)
        squares = [a]
        while 1 << len(squares) <= T:
            squares.append(squares[-1] * squares[-1])
        self.power = power_table(squares, T + 1, a, a.dtype)  # (T + 1, H, n)
        rows = self.channels + len(G)
        # B_bar is multiplied from the left: there V takes the overlap, and G is what it adds.
        self.probes = torch.cat((G[:, None].expand(-1, rows, -1, -1), V[:, None]), 1)
        self.updates = torch.cat((V[:, None].expand(-1, rows, -1, -1), G[:, None]), 1)
        self.chain = a.new_empty(T + 1, rows + 1, *a.shape)
        torch.cat((C, V, B_bar[None]), out=self.chain[0])
        self.overlaps = _advance(a, self.probes, self.updates, self.chain)
        # In the order of matrix products, (H, ...).
        self.outgoing = _row(self.chain[:, : self.channels]).permute(2, 1, 0, 3)  # (H, channels, T + 1, N)
        self.incoming = real(self.chain[:T, -1]).transpose(0, 1)  # A_bar^j B_bar, (H, T, N)
        self._transitions: dict[tuple[int, int], Tensor] = {}
        self.lags = torch.einsum("hcn,htn->hct", self.outgoing[:, :, 0], self.incoming)
        self.Vs = _row(self.chain[:T, self.channels : rows]).permute(2, 0, 1, 3)  # (H, T, rank, N)
        self.Xs = real(self.power[:T].flip(0)[:, None] * G).permute(2, 0, 1, 3)

    def transition(self, r: int, chunks: int = 1) -> Tensor:
        """A_bar^(r chunks), (H, N, N), to multiply from the right."""
        found = self._transitions.get((r, chunks))
        if found is None:
            found = self._transition(r) if chunks == 1 else torch.linalg.matrix_power(self.transition(r), chunks)
            self._transitions[r, chunks] = found
        return found

    def _transition(self, r: int) -> Tensor:
        V, X = self._factors(r, slice(None))
        A = -(V.mT @ X)
        decay, blocks = self.power[r], _blocks(A)
        blocks[:, 0, 0] += decay.real
        blocks[:, 1, 1] += decay.real
        blocks[:, 0, 1] += decay.imag
        blocks[:, 1, 0] -= decay.imag
        return A

    def _factors(self, r: int, h: slice) -> tuple[Tensor, Tensor]:
        """Whose product, with the sign changed, is what the rank adds to the diagonal a^r."""
        return self.Vs[h, :r].flatten(1, 2), self.Xs[h, self.T - r :].flatten(1, 2)


class MapGradients:
    """The gradients of what ``Maps`` has, to be added to, in float64."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.outgoing, self.incoming = torch.zeros_like(maps.outgoing), torch.zeros_like(maps.incoming)
        self.lags, self.Vs, self.Xs = (torch.zeros_like(t) for t in (maps.lags, maps.Vs, maps.Xs))
        self.power = torch.zeros_like(maps.power)

    def add_transition(self, h: slice, r: int, grad: Tensor) -> None:
        """Add what the gradient of ``Maps.transition`` of the features h leaves."""
        blocks = _blocks(grad)
        V, X = self.maps._factors(r, h)
        self.Vs[h, :r] -= (X @ grad.mT).unflatten(1, (r, -1))
        self.Xs[h, self.maps.T - r :] -= (V @ grad).unflatten(1, (r, -1))
        self.power[r, h] += torch.complex(blocks[:, 0, 0] + blocks[:, 1, 1], blocks[:, 0, 1] - blocks[:, 1, 0])

    def gradients(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The gradients of a, G, V, B_bar and C, complex128."""
        maps, T = self.maps, self.maps.T
        c, rows, G = maps.channels, maps.channels + len(maps.G), maps.G
        self.incoming += torch.einsum("hct,hcn->htn", self.lags, maps.outgoing[:, :, 0])
        self.outgoing[:, :, 0] += torch.einsum("hct,htn->hcn", self.lags, maps.incoming)
        # Conjugated gradients obey the recurrence of the chains from the end, with the roles of G and V exchanged.
        g = torch.zeros_like(maps.chain)
        g[:, :c] = 2 * complex_(self.outgoing).permute(2, 1, 0, 3)
        g[:T, c:rows] = 2 * complex_(self.Vs).permute(1, 2, 0, 3)
        g[:T, -1] = conj_physical(complex_(self.incoming)).transpose(0, 1)
        sums = _adjoint(maps.a, maps.probes, maps.updates, maps.chain, maps.overlaps, g)
        of_a, of_probes, of_updates = (conj_physical(t) for t in sums)
        first = conj_physical(g[0])
        of_X = complex_(self.Xs).permute(1, 2, 0, 3)  # (T, rank, H, n)
        falling = conj_physical(maps.power[:T].flip(0))
        grad_G = of_probes[:, :rows].sum(1) + of_updates[:, -1] + (falling[:, None] * of_X).sum(0)
        grad_V = of_updates[:, :rows].sum(1) + of_probes[:, -1] + first[c:rows]
        self.power[:T] += (conj_physical(G) * of_X).sum(1).flip(0)
        exponents = torch.arange(1, T + 1, dtype=torch.float64, device=g.device)[:, None, None]
        of_a = of_a + (exponents * conj_physical(maps.power[:-1]) * self.power[1:]).sum(0)
        return of_a, grad_G, grad_V, first[-1], first[:c]


def _advance(a: Tensor, probes: Tensor, updates: Tensor, x: Tensor) -> Tensor:
    """Fill x (T + 1, K, H, n) from x_0 on: ``x_t = a x_{t-1} - sum_r o_r updates_r``, where o_r is the overlap
    ``2 Re sum_n probes_r x_{t-1}``.

    a (H, n), probes and updates (rank, K, H, n) -> the overlaps o, (T, rank, K, H, 1).
    """
    seen = torch.empty(len(x) - 1, *probes.shape[:-1], 1, dtype=torch.float64, device=x.device)
    rows, added, states = _row(probes), real(updates), real(x)
    for t, overlaps in enumerate(seen):
        torch.mul(a, x[t], out=x[t + 1])
        for r, overlap in enumerate(overlaps):
            torch.sum(rows[r] * states[t], -1, keepdim=True, out=overlap)
            states[t + 1].addcmul_(added[r], overlap, value=-1)
    return seen


def _adjoint(
    a: Tensor, probes: Tensor, updates: Tensor, x: Tensor, seen: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The conjugated gradients of a, probes and updates of ``_advance``, g (T + 1, K, H, n) being those of x.

    g is overwritten with those through later x too.
    """
    rows, added, states, adjoints = _row(updates), real(probes), real(x), real(g)
    of_a, of_probes, of_updates = torch.zeros_like(g[0]), torch.zeros_like(added), torch.zeros_like(added)
    for t in reversed(range(len(seen))):
        g[t].addcmul_(a, g[t + 1])
        of_a.addcmul_(x[t], g[t + 1])
        for r in range(len(probes)):
            overlap = (rows[r] * adjoints[t + 1]).sum(-1, keepdim=True)
            adjoints[t].addcmul_(added[r], overlap, value=-1)
            of_probes[r].addcmul_(states[t], overlap, value=-1)
            of_updates[r].addcmul_(adjoints[t + 1], seen[t, r], value=-1)
    return of_a.sum(0), complex_(of_probes), complex_(of_updates)


def _blocks(A: Tensor) -> Tensor:
    """The blocks of each state with itself, (H, 2, 2, n), a view of A (H, N, N)."""
    return A.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).diagonal(dim1=1, dim2=3)


def real(s: Tensor) -> Tensor:
    """(..., n) complex -> (..., N)."""
    return torch.view_as_real(s).flatten(-2)


def complex_(s: Tensor) -> Tensor:
    """(..., N) -> (..., n) complex."""
    return torch.view_as_complex(s.unflatten(-1, (-1, 2)))


def _row(C: Tensor) -> Tensor:
    """The real row of 2 Re C s."""
    return real(2 * conj_physical(C))
