"""Elementwise operations read operands that lie alike in memory: mixed strides cost them ten times as much."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s4_fast.ssm import layout
from s4_fast.state_spaces import S4D, FFTConv, S4Block
from tests.modules import KINDS, H, N, set_up

# Elementwise too, but without the tag: GLU halves what it gets.
OTHERS = {torch.ops.aten.glu.default, torch.ops.aten.glu_backward.default}


def order(t: Tensor) -> tuple[int, ...] | None:
    """The dimensions of more than one entry from the widest stride to the narrowest; None where one is broadcast."""
    sizes = [d for d, size in enumerate(t.shape) if size > 1]
    strides = [t.stride(d) for d in sizes]
    return None if 0 in strides else tuple(d for _, d in sorted(zip(strides, sizes, strict=True), reverse=True))


class Recorder(TorchDispatchMode):
    """Records elementwise operations on operands of several memory orders."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags or func in OTHERS:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            ndim = max((t.ndim for t in tensors), default=0)
            full = [t for t in tensors if t.ndim == ndim and t.numel() > 1]
            if func not in OTHERS:
                full = [t for t in full if t.shape == out.shape] if isinstance(out, Tensor) else full
            orders = {found for t in full if (found := order(t)) is not None}
            self.seen.add(str(func))
            if len(orders) > 1:
                self.mixed.append(f"{func} {[(tuple(t.shape), t.stride()) for t in full]}")
        return out


OPTIONS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"{cls.__name__} {mode} transposed={transposed}{''.join(f' {k}={v}' for k, v in more.items())}": partial(
            cls, H, mode=mode, d_state=N, transposed=transposed, **more
        )
        for cls, varied in (
            (FFTConv, ({}, {"activation": "glu"}, {"channels": 2}, {"bidirectional": True}, {"dropout": 0.5})),
            (
                S4Block,
                (
                    {},
                    {"gate": 1},
                    {"gate": 2, "mult_act": "gelu"},
                    {"bottleneck": 2},
                    {"gate": 3, "bottleneck": 2},
                    {"bidirectional": True},
                    {"channels": 2},
                    {"final_act": "gelu"},
                    {"final_act": "id"},
                    {"dropout": 0.5},
                    {"dropout": 0.5, "tie_dropout": True},
                    {"weight_norm": True},
                ),
            ),
        )
        for more in varied
        for mode in ("diag", "dplr")
        for transposed in (True, False)
    },
    "S4D dropout": partial(S4D, H, N, dropout=0.5),
    "S4D dropout in rows": partial(S4D, H, N, dropout=0.5, transposed=False),
    "SSMBlock dropout": partial(KINDS["SSMBlock s4d"], dropout=0.5),
    "SSMBlock bidirectional": partial(KINDS["SSMBlock s4d"], bidirectional=True),
}


@pytest.mark.parametrize("lengths", [None, (11, 7)], ids=["whole", "rows"])
@pytest.mark.parametrize("kind", [*KINDS, *OPTIONS])
@pytest.mark.sample(30)
def test_operands_lie_alike(kind: str, lengths: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "operations_are_seen", lambda: False)  # as in training, where no mode looks on
    torch.manual_seed(0)
    module = set_up((KINDS | OPTIONS)[kind](), 11)
    if lengths is not None and isinstance(module, S4D):
        lengths = None
    transposed = getattr(module, "transposed", False)
    u = torch.randn(2, *((H, 11) if transposed else (11, H)), requires_grad=True)
    with Recorder() as recorder:
        y = module(u * 1, **({} if lengths is None else {"lengths": list(lengths)}))
        y = y[0] if isinstance(y, tuple) else y
        y.backward(torch.randn_like(y).contiguous())
    assert not recorder.mixed, "\n".join(recorder.mixed)
    assert "aten.mul.Tensor" in recorder.seen


def test_other_orders_are_seen() -> None:
    x = torch.randn(2, 3, 4)
    with Recorder() as recorder:
        x + 1, x + x, x + x[:1], x[:1] + x.mT.contiguous().mT[:1]
    assert len(recorder.mixed) == 1
    with Recorder() as recorder:
        nn.functional.glu(x.requires_grad_(), -1).backward(torch.randn(2, 2, 3).mT)
    assert len(recorder.mixed) == 1
