"""Registers an op and its adjoint with torch.library, and routes both to the chosen backend's module.

A backend module defines ``<op>(*tensors, *scalars)`` and ``<op>_backward(grad, *tensors, *scalars, needs)``.
The latter returns one gradient per tensor, in PyTorch's convention for complex gradients (dRe + i dIm), and
may return None where ``needs`` is False. Complex tensors cross the boundary as real pairs, ``(..., 2)``. Modules
get contiguous tensors, and never an empty batch.

A backend module must conjugate with ``torch.conj_physical``: compiled graphs run custom ops with the Conjugate
dispatch key excluded, where the lazy ``.conj()`` and ``.mH`` silently lose their conjugation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s4_fast import dispatch


@dataclass(frozen=True)
class Op:
    """A registered op. Calling it with tensors, scalars and a backend's name runs that backend.

    ``complex_inputs`` says per tensor whether it is complex; ``scalars`` are schema fragments such as
    ``"SymInt L"``; ``fake(*tensors, *scalars)`` returns an empty output for real-pair inputs. The output has no
    entries exactly where the first tensor has none.
    """

    name: str
    tensors: Sequence[str]
    complex_inputs: Sequence[bool]
    complex_output: bool
    scalars: Sequence[str]
    fake: Callable[..., Tensor]

    def __call__(self, *args: Any, backend: str) -> Tensor:
        count = len(self.tensors)
        pairs = [_to_pairs(t) if c else t for t, c in zip(args[:count], self.complex_inputs, strict=True)]
        out = getattr(torch.ops.s4_fast, self.name)(*pairs, *args[count:], backend)
        return torch.view_as_complex(out) if self.complex_output else out

    def register(self) -> Op:
        """Define ``s4_fast::<name>`` and ``s4_fast::<name>_backward`` and return self."""
        arguments = ", ".join([*(f"Tensor {t}" for t in self.tensors), *self.scalars, "str backend"])
        forward = torch.library.custom_op(
            f"s4_fast::{self.name}", self._forward, mutates_args=(), schema=f"({arguments}) -> Tensor"
        )
        backward = torch.library.custom_op(
            f"s4_fast::{self.name}_backward",
            self._backward,
            mutates_args=(),
            schema=f"(Tensor grad, {arguments}, bool[] needs) -> Tensor[]",
        )
        forward.register_fake(lambda *args: self.fake(*args[:-1]))
        backward.register_fake(self._fake_backward)
        forward.register_autograd(self._autograd, setup_context=self._setup_context)
        backward.register_autograd(self._no_second_derivative)
        return self

    def _unpack(self, args: Sequence[Any]) -> list[Any]:
        count = len(self.tensors)
        tensors = [t.contiguous() for t in args[:count]]
        unpacked = [torch.view_as_complex(t) if c else t for t, c in zip(tensors, self.complex_inputs, strict=True)]
        return [*unpacked, *args[count:]]

    def _forward(self, *args: Any) -> Tensor:
        *rest, backend = args
        if args[0].numel() == 0:
            return self.fake(*rest)
        run = getattr(dispatch.load(self.name, backend), self.name)
        with torch.autocast(args[0].device.type, enabled=False):
            out = run(*self._unpack(rest))
        return _to_pairs(out).contiguous() if self.complex_output else out.contiguous()

    def _backward(self, grad: Tensor, *args: Any) -> list[Tensor]:
        *rest, backend, needs = args
        if args[0].numel() == 0:
            return [torch.zeros_like(t) for t in self._fake_backward(grad, *args)]
        grad = torch.view_as_complex(grad.contiguous()) if self.complex_output else grad.contiguous()
        run = getattr(dispatch.load(self.name, backend), f"{self.name}_backward")
        with torch.autocast(grad.device.type, enabled=False):
            grads = run(grad, *self._unpack(rest), tuple(needs))
        out = []
        for g, is_complex, needed in zip(grads, self.complex_inputs, needs, strict=True):
            if not needed:
                out.append(grad.new_empty(0, dtype=grad.real.dtype if grad.is_complex() else grad.dtype))
            else:
                out.append(_to_pairs(g).contiguous() if is_complex else g.contiguous())
        return out

    def _fake_backward(self, grad: Tensor, *args: Any) -> list[Tensor]:
        *rest, _, needs = args
        tensors = rest[: len(self.tensors)]
        return [t.new_empty(t.shape) if needed else grad.new_empty(0) for t, needed in zip(tensors, needs, strict=True)]

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        count = len(self.tensors)
        ctx.save_for_backward(*inputs[:count])
        ctx.rest = inputs[count:]

    def _autograd(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = len(self.tensors)
        needs = list(ctx.needs_input_grad[:count])
        grads = getattr(torch.ops.s4_fast, f"{self.name}_backward")(grad, *ctx.saved_tensors, *ctx.rest, needs)
        return (*(g if needed else None for g, needed in zip(grads, needs, strict=True)), *(None for _ in ctx.rest))

    def _no_second_derivative(self, ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"second derivatives of {self.name} are not implemented by this backend; backend='reference' has them"
        )


def _to_pairs(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj())
