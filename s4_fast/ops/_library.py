"""Registers an op and its adjoint with torch.library, and routes both to the chosen backend's module.

A backend module defines ``<op>(*tensors, *scalars)`` and ``<op>_backward(*grads, *tensors, *scalars, needs)`` with one
grad per output, which is None for one of several outputs that nothing used: zeros would cost a pass over memory, and
wake PyTorch's threads. The latter returns one gradient per tensor, in PyTorch's convention for complex gradients
(dRe + i dIm), and may return None where ``needs`` is False. Complex tensors cross the boundary as real pairs,
``(..., 2)``. Modules get contiguous tensors, and never an empty batch.

A backend module must conjugate with ``torch.conj_physical``: compiled graphs run custom ops with the Conjugate
dispatch key excluded, where the lazy ``.conj()`` and ``.mH`` silently lose their conjugation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s4_fast import dispatch, memory
from s4_fast.ops._derivatives import pulled_back, pulled_back_twice
from s4_fast.ops.direct import is_recorded, is_transformed, only_autograd_sees, operations_are_seen, plain


@dataclass(frozen=True)
class Op:
    """A registered op. Calling it with tensors, scalars and a backend's name runs that backend.

    ``complex_inputs`` says per tensor whether it is complex, ``complex_outputs`` per output; one output is a Tensor,
    several are a tuple. ``scalars`` are schema fragments such as ``"SymInt L"``; ``fake(*tensors, *scalars)`` returns
    the empty output or outputs for real-pair inputs. The outputs have no entries exactly where the first tensor has
    none. Tensors that ``optional`` names may be None. ``plain(*tensors, *scalars)`` computes the same by operations of
    PyTorch that derivatives of any order and transforms go through.
    """

    name: str
    tensors: Sequence[str]
    complex_inputs: Sequence[bool]
    complex_outputs: Sequence[bool]
    scalars: Sequence[str]
    fake: Callable[..., Any]
    plain: Callable[..., Any]
    optional: Sequence[str] = ()

    def __call__(self, *args: Any, backend: str) -> Any:
        count = len(self.tensors)
        if only_autograd_sees(args[:count]) and args[0].numel():
            tensors = [_plain(t) for t in args[:count]]
            if is_recorded(args[:count]):
                return _Recorded.apply(self, args[count:], backend, *tensors)
            return _join(self._run_forward(tensors, args[count:], backend))
        if backend == dispatch.PLAIN or is_transformed(args[:count]):
            return self._plainly(args[:count], args[count:])
        pairs = [_to_pairs(t) if c and t is not None else t for t, c in self._inputs(args)]
        outputs = _split(getattr(torch.ops.s4_fast, self.name)(*pairs, *args[count:], backend))
        return _join([torch.view_as_complex(t) if c else t for t, c in self._outputs(outputs)])

    def register(self) -> Op:
        """Define ``s4_fast::<name>`` and ``s4_fast::<name>_backward`` and return self."""
        kinds = ("Tensor?" if t in self.optional else "Tensor" for t in self.tensors)
        tensors = (f"{kind} {t}" for kind, t in zip(kinds, self.tensors, strict=True))
        arguments = ", ".join([*tensors, *self.scalars, "str backend"])
        grad = "Tensor?" if self._several else "Tensor"
        grads = ", ".join(f"{grad} grad_{i}" for i in range(len(self.complex_outputs)))
        outputs = ", ".join("Tensor" for _ in self.complex_outputs)
        forward = torch.library.custom_op(
            f"s4_fast::{self.name}", self._forward, mutates_args=(), schema=f"({arguments}) -> ({outputs})"
        )
        backward = torch.library.custom_op(
            f"s4_fast::{self.name}_backward",
            self._backward,
            mutates_args=(),
            schema=f"({grads}, {arguments}, bool[] needs) -> Tensor[]",
        )
        forward.register_fake(lambda *args: self.fake(*args[:-1]))
        backward.register_fake(self._fake_backward)
        forward.register_autograd(self._autograd, setup_context=self._setup_context)
        backward.register_autograd(self._autograd_of_adjoint, setup_context=self._setup_adjoint)
        return self

    @property
    def _several(self) -> bool:
        return len(self.complex_outputs) > 1

    def _inputs(self, args: Sequence[Any]) -> Any:
        return zip(args[: len(self.tensors)], self.complex_inputs, strict=True)

    def _outputs(self, outputs: Sequence[Tensor | None]) -> Any:
        return zip(outputs, self.complex_outputs, strict=True)

    def _run(self, function: str, args: Sequence[Any], backend: str, device: str) -> tuple[Tensor, ...]:
        run = getattr(dispatch.load(self.name, backend), function)
        try:
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return _split(run(*args))
            return _split(run(*args))
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            names = [*self.tensors, *(scalar.split()[-1] for scalar in self.scalars)]
            given = zip(names, args[0 if function == self.name else len(self.complex_outputs) :], strict=False)
            sizes = ", ".join(f"{name} {_size(value)}" for name, value in given if value is not None)
            raise memory.explained(error, f"{function} by {backend} of {sizes}") from error

    def _run_forward(self, tensors: Sequence[Tensor | None], scalars: Sequence[Any], backend: str) -> list[Tensor]:
        first = tensors[0]
        assert first is not None
        return [t.contiguous() for t in self._run(self.name, (*tensors, *scalars), backend, first.device.type)]

    def _forward(self, *args: Any) -> Any:
        *rest, backend = args
        if args[0].numel() == 0:
            return self.fake(*rest)
        tensors = [None if t is None else _from_pairs(t.contiguous(), c) for t, c in self._inputs(rest)]
        outputs = self._run_forward(tensors, rest[len(self.tensors) :], backend)
        return _join([_to_pairs(t) if c else t for t, c in self._outputs(outputs)])

    def _backward(self, *args: Any) -> list[Tensor]:
        grads, (*rest, backend, needs) = self._split_backward(args)
        if rest[0].numel() == 0:
            return [torch.zeros_like(t) for t in self._fake_backward(*args)]
        pairs = [*self._outputs(grads), *self._inputs(rest)]
        tensors = [None if t is None else _from_pairs(t.contiguous(), c) for t, c in pairs]
        scalars = rest[len(self.tensors) :]
        args = (*tensors, *scalars, tuple(needs))
        found = self._run(f"{self.name}_backward", args, backend, rest[0].device.type)
        out = []
        for g, is_complex, needed in zip(found, self.complex_inputs, needs, strict=True):
            if not needed:
                out.append(rest[0].new_empty(0))
            else:
                out.append((_to_pairs(g) if is_complex else g).contiguous())
        return out

    def _fake_backward(self, *args: Any) -> list[Tensor]:
        _, (*rest, _, needs) = self._split_backward(args)
        tensors = rest[: len(self.tensors)]
        return [
            t.new_empty(t.shape) if needed else rest[0].new_empty(0) for t, needed in zip(tensors, needs, strict=True)
        ]

    def _split_backward(self, args: Sequence[Any]) -> tuple[Sequence[Tensor | None], Sequence[Any]]:
        count = len(self.complex_outputs)
        return args[:count], args[count:]

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        count = len(self.tensors)
        ctx.set_materialize_grads(not self._several)
        ctx.save_for_backward(*inputs[:count])
        ctx.rest = inputs[count:]

    def _autograd(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(self.tensors)
        needs = list(ctx.needs_input_grad[:count])
        if is_transformed((*grads, *ctx.saved_tensors)):
            found = pulled_back(self._plainly_in_pairs(ctx.rest[:-1]), grads, ctx.saved_tensors, needs)
            return (*found, *(None for _ in ctx.rest))
        found = getattr(torch.ops.s4_fast, f"{self.name}_backward")(*grads, *ctx.saved_tensors, *ctx.rest, needs)
        return (*(g if needed else None for g, needed in zip(found, needs, strict=True)), *(None for _ in ctx.rest))

    def _plainly(self, tensors: Sequence[Tensor | None], scalars: Sequence[Any]) -> Any:
        """The outputs by differentiable operations, whatever the backend."""
        first = tensors[0]
        assert first is not None
        if not torch.compiler.is_compiling() and first.numel() == 0:
            outputs = _split(
                self.fake(*(_to_pairs(t) if c and t is not None else t for t, c in self._inputs(tensors)), *scalars)
            )
            return _join([torch.view_as_complex(t) if c else t for t, c in self._outputs(outputs)])
        with torch.autocast(first.device.type, enabled=False):
            return self.plain(*tensors, *scalars)

    def _plainly_in_pairs(self, scalars: Sequence[Any]) -> Callable[[list[Any]], list[Tensor]]:
        """``_plainly`` beyond the boundary, where complex tensors are pairs."""

        def function(pairs: list[Any]) -> list[Tensor]:
            outputs = _split(self._plainly([_from_pairs(t, c) for t, c in self._inputs(pairs)], scalars))
            return [_to_pairs(t) if c else t for t, c in self._outputs(outputs)]

        return function

    def _setup_adjoint(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grads, rest = self._split_backward(inputs)
        count = len(self.tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads, *rest[:count])
        ctx.rest = rest[count:]

    def _autograd_of_adjoint(self, ctx: Any, seconds: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """The plain operations' adjoint stands for the backend's, of which nobody knows the derivative."""
        (*scalars, _, needs), count = ctx.rest, len(self.complex_outputs)
        grads, tensors = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        # An adjoint that is not needed has no entries.
        seconds = [s if needed else None for s, needed in zip(seconds, needs, strict=True)]
        wanted = ctx.needs_input_grad[: len(ctx.saved_tensors)]
        found = pulled_back_twice(self._plainly_in_pairs(scalars), seconds, grads, tensors, needs, wanted)
        return (*found, *(None for _ in ctx.rest))


class _Recorded(torch.autograd.Function):
    """An op under autograd alone, at a fraction of what torch.library costs. Further derivatives go through it."""

    @staticmethod
    def forward(ctx: Any, op: Op, scalars: Sequence[Any], backend: str, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(not op._several)
        ctx.save_for_backward(*tensors)
        ctx.op, ctx.scalars, ctx.backend = op, scalars, backend
        return _join(op._run_forward(tensors, scalars, backend))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        op, tensors, needs = ctx.op, ctx.saved_tensors, ctx.needs_input_grad[3:]
        if is_transformed((*grads, *tensors)):
            found = pulled_back(lambda views: _split(op._plainly(views, ctx.scalars)), grads, tensors, needs)
        elif torch.is_grad_enabled() or operations_are_seen():
            pairs = [t if t is None or not c else _to_pairs(t) for t, c in (*op._outputs(grads), *op._inputs(tensors))]
            run = getattr(torch.ops.s4_fast, f"{op.name}_backward")
            found = run(*pairs, *ctx.scalars, ctx.backend, list(needs))
            found = [_from_pairs(g, c) if n else None for g, c, n in zip(found, op.complex_inputs, needs, strict=True)]
        else:
            plain_grads = [_plain(g) for g in grads]
            args = (*plain_grads, *tensors, *ctx.scalars, needs)
            found = op._run(f"{op.name}_backward", args, ctx.backend, tensors[0].device.type)
            found = [g.contiguous() if n else None for g, n in zip(found, needs, strict=True)]
        return None, None, None, *found


def _size(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value


def _plain(t: Tensor | None) -> Tensor | None:
    return None if t is None else plain(t)


def _split(outputs: Any) -> tuple[Any, ...]:
    if type(outputs) is tuple:
        return outputs
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _join(outputs: Sequence[Tensor]) -> Any:
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _to_pairs(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj())


def _from_pairs(t: Any, is_complex: bool) -> Any:
    return torch.view_as_complex(t) if is_complex and t is not None else t
