"""Small modules that the files of state-spaces/s4 define beside S4, for code that imports them from there."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from s4_fast.layers import dropout
from s4_fast.ssm.marks import MarkedModule


class DropoutNd(dropout.DropoutNd):
    """``s4_fast.DropoutNd`` with features second by default, (batch, features, ...).

    Args:
        p: probability of a zero, in [0, 1).
        tie: whether positions share one mask.
        transposed: whether features come second.

    Examples:
        >>> y = DropoutNd(0.5)(torch.ones(2, 8, 100))
        >>> torch.equal(y[..., 0], y[..., -1])
        True
    """

    def __init__(self, p: float = 0.5, tie: bool = True, transposed: bool = True) -> None:
        super().__init__(p, tie, transposed)


class TransposedLinear(nn.Module):
    """``weight x + bias`` of the second to last dimension: (..., d_input, length) -> (..., d_output, length).

    Parameters ``weight`` (d_output, d_input) and ``bias`` (d_output, 1), 0.0 without one. They start as those of
    ``torch.nn.Linear``.

    Args:
        d_input: the features before.
        d_output: the features after.
        bias: whether there is one.

    Examples:
        >>> TransposedLinear(8, 4)(torch.randn(2, 8, 100)).shape
        torch.Size([2, 4, 100])
    """

    def __init__(self, d_input: int, d_output: int, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(d_input)
        self.weight = nn.Parameter(torch.empty(d_output, d_input).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(d_output, 1).uniform_(-bound, bound)) if bias else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x + self.bias


class OptimModule(MarkedModule):
    """A module whose parameters carry ``_optim``, a learning rate and weight decay for the optimiser.

    ``s4_fast.get_ssm_param_groups`` makes parameter groups of these marks.

    Examples:
        >>> module = OptimModule()
        >>> module.register("A", torch.zeros(4), lr=1e-3)
        >>> module.A._optim
        {'lr': 0.001, 'weight_decay': 0.0}
    """

    def register(self, name: str, tensor: Tensor, lr: float | None = None, wd: float | None = 0.0) -> None:
        """Make ``tensor`` the parameter ``name`` with its marks; a buffer where ``lr`` is 0."""
        if lr == 0:
            self.register_buffer(name, tensor)
            return
        self.register_parameter(name, nn.Parameter(tensor))
        mark = {key: value for key, value in (("lr", lr), ("weight_decay", wd)) if value is not None}
        if mark:
            self.set_marks({name: mark})
