"""The modules that go into a user's model, small, and one way to call all of them: on (batch, length, 4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from s4_fast import S4DLayer, S4Layer, S4SequenceModel
from s4_fast.layers import SSMBlock
from s4_fast.ssm.model import SSMModel
from s4_fast.state_spaces import S4, S4D, FFTConv, S4Block
from tests.helpers import relative_error

H, N = 4, 8

model = partial(S4SequenceModel, H, H, H, 2, N, task="regression")
diag = {"d_state": N, "init": "diag-lin"}
KINDS: dict[str, Callable[..., nn.Module]] = {
    "S4DLayer": partial(S4DLayer, H, N),
    "S4DLayer scan": partial(S4DLayer, H, N, path="scan"),
    "S4DLayer convolution": partial(S4DLayer, H, N, path="convolution"),
    "S4DLayer bidirectional": partial(S4DLayer, H, N, bidirectional=True),
    "S4Layer": partial(S4Layer, H, N),
    "S4Layer bidirectional": partial(S4Layer, H, N, bidirectional=True),
    "SSMBlock s4d": partial(SSMBlock, H, N),
    "SSMBlock s4": partial(SSMBlock, H, N, layer="s4"),
    "S4SequenceModel s4d": model,
    "S4SequenceModel s4": partial(model, layer="s4"),
    "S4D": partial(S4D, H, N),
    "S4D in rows": partial(S4D, H, N, transposed=False),
    "FFTConv diag": partial(FFTConv, H, mode="diag", **diag),
    "FFTConv dplr": partial(FFTConv, H, d_state=N, transposed=False),
    "S4Block diag": partial(S4Block, H, mode="diag", transposed=False, **diag),
    "S4Block dplr": partial(S4Block, H, d_state=N),
    "S4 gated": partial(S4, H, d_state=N, gate=1, n_ssm=1),
    "S4Block bidirectional": partial(S4Block, H, d_state=N, bidirectional=True),
}
OFFICIAL = (S4D, FFTConv, S4Block)
STEPPING = [kind for kind in KINDS if "bidirectional" not in kind and not kind.startswith("S4D in") and kind != "S4D"]


def kernels(module: nn.Module) -> list[SSMModel]:
    return [m for m in module.modules() if isinstance(m, SSMModel)]


def set_up(module: nn.Module, L: int) -> nn.Module:
    """The module, its S4 kernels set up for length L."""
    for kernel in kernels(module):
        kernel.prepare(L)
    return module


def made(kind: str, L: int = 12) -> nn.Module:
    """The same in every call: in float64, its S4 kernels set up for length L."""
    torch.manual_seed(0)
    return set_up(KINDS[kind](dt_min=0.01).double(), L)


def value(module: nn.Module, name: str) -> Tensor:
    """What ``name``, with dots, is at present."""
    parent, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(parent), last)
    return found


def plain(kind: str, module: nn.Module) -> nn.Module:
    """A module without hooks and parametrizations whose parameters have the values that those of ``module`` have."""
    other = made(kind)
    other.load_state_dict({name: value(module, name).detach() for name in other.state_dict()})
    return other


def close(actual: Tensor, expected: Tensor, allowed: float = 1e-11) -> bool:
    return relative_error(actual.detach(), expected.detach()) <= allowed


def over(module: nn.Module, u: Tensor) -> Tensor:
    """(batch, length, features) over a sequence."""
    if not isinstance(module, OFFICIAL):
        found: Tensor = module(u)
        return found
    y: Tensor = module(u.mT.contiguous())[0].mT if module.transposed else module(u)[0]
    return y


def initial(module: Any, batch: int) -> Any:
    return module.default_state(batch) if isinstance(module, OFFICIAL) else module.init_state(batch)


def prefilled(module: Any, u: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """(batch, length, features) over a sequence, and the state after it."""
    if not isinstance(module, OFFICIAL):
        y, after = module.prefill(u, state)
        return y, after
    state = initial(module, len(u)) if state is None else state
    y, after = module(u.mT.contiguous() if module.transposed else u, state=state)
    return (y.mT if module.transposed else y), after


def stepped(module: Any, u: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """(batch, length, features) sample by sample, and the state after the last."""
    state, outputs = initial(module, len(u)) if state is None else state, []
    for x in u.unbind(1):
        y, state = module.step(x, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def in_parts(module: nn.Module, u: Tensor, cut: int) -> Tensor:
    """(batch, length, features): a prefix at once, then the rest sample by sample."""
    first, state = prefilled(module, u[:, :cut])
    return torch.cat((first, stepped(module, u[:, cut:], state)[0]), 1)
