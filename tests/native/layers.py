"""A whole layer's arguments, its calls of the CUDA functions, and what the definition in float64 gives for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from s4_fast.ops.diagonal.form import Form
from s4_fast.ops.diagonal.reference import diagonal_ssm
from s4_fast.ops.dplr_scan.reference import dplr_scan
from tests.helpers import FORWARD, GRADIENT, log_uniform, normal, relative_error, uniform, widened
from tests.native.emulated import Emulated, Library

SIGNALS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# A rounding of each half type relative to the largest number, and what two allow of a norm.
HALF = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
PLAIN = Form()
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class Layer:
    """The arguments of a call, on the CPU: u (batch, H, L) whatever the form, complex as such; DPLR with a rank."""

    @staticmethod
    def names(rank: int) -> tuple[str, ...]:
        return ("u", "dt", "A_real", "A_imag", *(["P"] if rank else []), "B", "C", "D", "state", "ahead")

    def __init__(
        self,
        generator: Generator,
        form: Form = PLAIN,
        *,
        batch: int = 2,
        H: int = 4,
        n: int = 3,
        L: int = 17,
        c: int = 1,
        rank: int = 0,
        copies: int = 0,
        shared_dt: bool = True,
        without: Sequence[str] = (),
        dtype: torch.dtype = torch.float64,
        signal: torch.dtype | None = None,
        family: str = "",
    ) -> None:
        copies, kind = copies or H, COMPLEX[dtype]
        self.form, self.dtype, self.signal, self.family = form, dtype, signal or dtype, family
        self.rank, self.sizes = rank, (batch, H, n, L, c, *([rank] if rank else []), copies, 1 if shared_dt else n)
        channels = c * (1 + form.bidirectional)
        dt = log_uniform(generator, 1e-3, 1e-1, H, self.sizes[-1])
        decay = log_uniform(generator, 1e-1, 2, copies, n)
        self.tensors: dict[str, Tensor | None] = {
            "u": (1 + normal(generator, batch, H, L, dtype=dtype)).to(self.signal),
            "dt": (dt.log() if form.log_dt else dt).to(dtype),
            "A_real": (decay.log() if form.log_decay else -decay).to(dtype),
            "A_imag": uniform(generator, 0, 60, copies, n).to(dtype),
            **({"P": normal(generator, rank, copies, n, dtype=kind)} if rank else {}),
            "B": normal(generator, copies, n, dtype=kind),
            "C": normal(generator, channels, H, n, dtype=kind),
            "D": normal(generator, c, H, dtype=dtype),
            "state": normal(generator, batch, H, n, dtype=kind),
            "ahead": normal(generator, batch, H, n, dtype=kind) if form.bidirectional else None,
        }
        for name in without:
            self.tensors[name] = None
        self.grad_y = (1 + normal(generator, batch, c, H, L, dtype=dtype)).to(self.signal)
        self.grad_final = normal(generator, batch, H, n, dtype=kind)

    @property
    def function(self) -> str:
        return self.family + ("dplr_scan" if self.rank else "diagonal")

    @property
    def head(self) -> tuple[object, ...]:
        return (self.dtype, SIGNALS[self.signal], self.form.flags, *self.sizes, float(self.form.rate))

    def laid(self, t: Tensor) -> Tensor:
        """(batch, ..., H, L) as it lies where the form is time-major."""
        return t.movedim(-1, 1).contiguous() if self.form.time_major else t

    def back(self, t: Tensor) -> Tensor:
        return t.movedim(1, -1) if self.form.time_major else t

    def arguments(self, library: Library) -> list[Tensor | None]:
        tensors = [None if t is None else self.laid(t) if name == "u" else t for name, t in self.tensors.items()]
        return [None if t is None else t.to(library.device) for t in tensors]

    def forward(self, library: Library, with_final: bool = True) -> tuple[Tensor, Tensor | None]:
        y = empty(self.laid(self.grad_y).to(library.device))
        final = empty(self.grad_final.to(library.device)) if with_final else None
        library.call(self.function, y, *self.head, *self.arguments(library), y, final)
        return self.back(y), final

    def backward(
        self, library: Library, needed: Sequence[str] | None = None, cotangents: Sequence[bool] = (True, True)
    ) -> dict[str, Tensor]:
        arguments, names = self.arguments(library), self.names(self.rank)
        needed = names if needed is None else needed
        given = zip(names, arguments, strict=True)
        out = {name: empty(t) for name, t in given if t is not None and name in needed}
        grads = [self.laid(self.grad_y).to(library.device), self.grad_final.to(library.device)]
        first = [g if wanted else None for g, wanted in zip(grads, cotangents, strict=True)]
        like = arguments[0]
        assert like is not None
        gradients = (out.get(name) for name in names)
        library.call(f"{self.function}_backward", like, *self.head, *first, *arguments, *gradients)
        if "u" in out:
            out["u"] = self.back(out["u"])
        return out

    def expected(self, cotangents: Sequence[bool] = (True, True)) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """y (batch, c, H, L), the final state and the gradients, by the definition."""
        leaves = {k: widened(t).requires_grad_() for k, t in self.tensors.items() if t is not None}
        pairs = {k: torch.view_as_real(t) if k in ("P", "B", "C") else t for k, t in leaves.items()}
        u, *rest = (pairs.get(name) for name in self.names(self.rank))
        definition: Callable[..., tuple[Tensor, Tensor]] = dplr_scan if self.rank else diagonal_ssm
        y, final = definition(u, *rest, self.form._replace(time_major=False))
        total = 0 * y.sum()
        if cotangents[0]:
            total = total + (y * widened(self.grad_y)).sum()
        if cotangents[1]:
            total = total + (final * widened(self.grad_final).conj()).real.sum()
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return y.detach(), final.detach(), dict(zip(leaves, grads, strict=True))


def empty(like: Tensor) -> Tensor:
    """An output that a kernel has yet to write: NaN."""
    return torch.full(like.shape, math.nan, dtype=like.dtype, device=like.device)


def close(name: str, actual: Tensor, expected: Tensor, allowed: dict[str, float]) -> None:
    bound = 2 * HALF[actual.dtype] if actual.dtype in HALF else allowed[torch.finfo(actual.dtype).dtype]
    error = relative_error(actual.cpu(), expected)
    assert error <= bound, (name, error)


def check(library: Library, layer: Layer, cotangents: Sequence[bool] = (True, True)) -> dict[str, Tensor]:
    y, final, wanted = layer.expected(cotangents)
    actual_y, actual_final = layer.forward(library)
    close("y", actual_y, y, FORWARD)
    close("final", actual_final, final, FORWARD)
    grads = layer.backward(library, cotangents=cotangents)
    for name, grad in grads.items():
        close(f"gradient of {name}", grad, wanted[name], GRADIENT)
    return grads


FORMS = {
    "plain": PLAIN,
    "time-major": Form(time_major=True),
    "bidirectional": Form(bidirectional=True),
    "bilinear": Form(bilinear=True, rate=0.5),
    "logs": Form(log_dt=True, log_decay=True, conjugate=True),
    "all": Form(True, True, True, True, True, True, 2.0),
    "all of the hold": Form(True, True, False, True, True, True, 1.5),
}


def launches(emulated: Emulated, call: Callable[[], object]) -> int:
    before = emulated.launches()
    call()
    return emulated.launches() - before
