"""A step of a compiled graph as one op, which remembers between calls what an eager step does.

A graph that formed the discretisation anew would do so at every sample. The op sees the parameters' numbers when it
runs, compares them as ``s4_fast.ssm.memo`` does, and steps with what was made of them. It has no derivatives, so
that steps which autograd records stay in the graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s4_fast import backend_requests, torch_private
from s4_fast.ops.direct import is_recorded
from s4_fast.ssm.memo import Memo
from s4_fast.ssm.parameters import Stored, full, logarithms
from s4_fast.ssm.powers import inside_transform
from s4_fast.ssm.stepping import Stepper

Maker = Callable[[Stored, "Tensor | None"], Stepper]

_makers: dict[str, Maker] = {}
# By the address of C: whatever is found there is compared. A reference to the tensor, a weak one too, would forbid
# torch.utils.swap_tensors. The least recently used go first.
_memos: OrderedDict[int, Memo] = OrderedDict()
_MOST = 128
_lock = threading.Lock()

_OP = "s4_fast::remembered_step"
torch.library.define(
    _OP,
    "(Tensor u, Tensor state, Tensor? D, Tensor dt, Tensor A_real, Tensor A_imag, Tensor B, Tensor C, Tensor? P, "
    "str kind) -> (Tensor, Tensor)",
)


def register(kind: str, make: Maker) -> None:
    """Declare how steppers of this kind are made of parameters that are stored as ``SSMParameters`` says."""
    _makers[kind] = make


def runs(tensors: list[Tensor]) -> bool:
    """Whether the op serves a step of the graph that is being compiled, which reads ``tensors``."""
    return (
        all([t.is_cpu for t in tensors])  # comparisons on other devices would wait for these
        and not is_recorded(tensors)
        and not torch_private.is_exporting()
        and not torch_private.has_dual_level()
        and not inside_transform()
        and backend_requests.find() is None
    )


def step(
    u: Tensor, state: Tensor, D: Tensor | None, stored: Sequence[Tensor], P: Tensor | None, kind: str
) -> tuple[Tensor, Tensor]:
    """As ``Stepper.step``, for parameters in the precision that they are stored in."""
    y, after = torch.ops.s4_fast.remembered_step(u, state.resolve_conj(), D, *stored, P, kind)
    return y, after


@torch.library.impl(_OP, "CPU")
def _run(
    u: Tensor,
    state: Tensor,
    D: Tensor | None,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor,
    C: Tensor,
    P: Tensor | None,
    kind: str,
) -> tuple[Tensor, Tensor]:
    tensors = [dt, A_real, A_imag, B, C] if P is None else [dt, A_real, A_imag, B, C, P]
    memo = _memo(C.data_ptr())

    def make() -> Stepper:
        return _makers[kind](logarithms(*map(full, tensors[:5])), None if P is None else full(P))

    with torch.no_grad():
        y, after = memo.get("stepper", tensors, kind, make).step(u, state, D)
    return y.contiguous(), after.contiguous()


def _memo(address: int) -> Memo:
    with _lock:
        memo = _memos.setdefault(address, Memo())
        _memos.move_to_end(address)
        if len(_memos) > _MOST:
            _memos.popitem(last=False)
    return memo


@torch.library.register_fake(_OP)
def _fake(u: Tensor, state: Tensor, D: Tensor | None, dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor,
          C: Tensor, P: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    return u.new_empty(u.shape[0], C.shape[0] * C.shape[1]), state.new_empty(state.shape)
