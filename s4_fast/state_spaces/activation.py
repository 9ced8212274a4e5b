"""Activations and linear maps by the option names of state-spaces/s4."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, init

from s4_fast.ssm.layout import lies_turned
from s4_fast.torch_private import has_hooks


class GLU(nn.Module):
    """``a f(b)`` of the halves (a, b) of ``dim``; ``torch.nn.GLU`` where f is the sigmoid."""

    def __init__(self, dim: int = -1, activation: str = "sigmoid") -> None:
        super().__init__()
        self.dim = dim
        self.activation_fn = Activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, self.dim)
        return a * self.activation_fn(b)


class ModReLU(nn.Module):
    """``sign(x) relu(|x| + b)`` with a trained b (features,) for the last dimension (Arjovsky et al. 2016)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.b = nn.Parameter(torch.empty(features).uniform_(-0.01, 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x.sign() * functional.relu(x.abs() + self.b)


class SquaredReLU(nn.Module):
    """``relu(x)^2`` (So et al. 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x).square()


class Laplace(nn.Module):
    """``(1 + erf((x - mu) / (sigma sqrt 2))) / 2``, which is close to ``relu(x)^2`` (Mega: Ma et al. 2022)."""

    def __init__(self, mu: float = 0.707107, sigma: float = 0.282095) -> None:
        super().__init__()
        self.mu, self.sigma = mu, sigma

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf((x - self.mu) / (self.sigma * math.sqrt(2))))


_POINTWISE: dict[str, Callable[[], nn.Module]] = {
    **dict.fromkeys(("none", "id", "identity", "linear"), nn.Identity),
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    **dict.fromkeys(("swish", "silu"), nn.SiLU),
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    **dict.fromkeys(("sqrelu", "relu2"), SquaredReLU),
    "laplace": Laplace,
}
ACTIVATIONS = (*_POINTWISE, "modrelu", "glu", *(f"glu-{name}" for name in _POINTWISE))


def halves(activation: str | None) -> bool:
    """Whether ``activation`` returns half of the features that it gets."""
    return isinstance(activation, str) and activation.startswith("glu")


def Activation(activation: str | None = None, dim: int = -1, size: int | None = None) -> nn.Module:
    """The module of an activation's name; None is the identity.

    Args:
        activation: one of ``ACTIVATIONS``. ``"glu"`` and ``"glu-NAME"`` gate one half of ``dim`` by the other.
        dim: the dimension of the features.
        size: the number of features, which ``"modrelu"`` alone needs.

    Raises:
        TypeError: the name is not a string.
        ValueError: the name is unknown, or ``"modrelu"`` lacks its size.

    Examples:
        >>> Activation("glu")(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
    if activation is None:
        return nn.Identity()
    if not isinstance(activation, str):
        raise TypeError(f"expected the name of an activation, got {activation!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; expected None or one of {', '.join(ACTIVATIONS)}")
    if activation == "glu":
        return nn.GLU(dim)
    if halves(activation):
        return GLU(dim, activation.removeprefix("glu-"))
    if activation == "modrelu":
        if size is None or dim != -1:
            raise ValueError(
                f"modrelu needs the size of the features in the last dimension, got size={size}, dim={dim}"
            )
        return ModReLU(size)
    return _POINTWISE[activation]()


_INITIALIZERS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "uniform": lambda weight, gain: init.kaiming_uniform_(weight, nonlinearity=gain),  # type: ignore[arg-type]
    "normal": lambda weight, gain: init.kaiming_normal_(weight, nonlinearity=gain),  # type: ignore[arg-type]
    "xavier": lambda weight, gain: init.xavier_normal_(weight),
    "zero": lambda weight, gain: init.zeros_(weight),
    "one": lambda weight, gain: init.ones_(weight),
}
# The gains that PyTorch knows; what is not here is linear in its weight, or near to it.
_GAINS = {
    "tanh": "tanh",
    "relu": "relu",
    "gelu": "relu",
    "elu": "relu",
    "swish": "relu",
    "silu": "relu",
    "sigmoid": "sigmoid",
    "softplus": "relu",
    "sqrelu": "relu",
    "relu2": "relu",
    "laplace": "sigmoid",
}


class WeightNorm(nn.Module):
    """A linear map with ``weight = weight_g weight_v / |weight_v|``, the norm taken per output (Salimans, Kingma 2016).

    ``torch.nn.utils.weight_norm`` with its parameter names, without its hook: it compiles, and may be copied at any
    time.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear | nn.Conv1d) -> None:
        super().__init__()
        self.convolves = isinstance(linear, nn.Conv1d)
        self.register_parameter("bias", None if linear.bias is None else nn.Parameter(linear.bias.detach()))
        self.weight_g = nn.Parameter(self._norm(linear.weight.detach()))
        self.weight_v = nn.Parameter(linear.weight.detach())
        if not bool((self.weight_g > 0).all()):
            raise ValueError("weight_norm needs a weight other than 0; choose another initializer")

    @staticmethod
    def _norm(v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)

    @property
    def weight(self) -> Tensor:
        return self.weight_g * (self.weight_v / self._norm(self.weight_v))

    def forward(self, x: Tensor) -> Tensor:
        return (functional.conv1d if self.convolves else functional.linear)(x, self.weight, self.bias)


class MappedFeatures(nn.Sequential):
    """A map of the features and its activation.

    Where (batch, length, features) lies in memory as (batch, features, length), so does what comes out, without a copy
    between: a linear map is then one of each column, a convolution of width 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        linear: Any = self[0]
        activation = self[1]
        is_linear = type(linear) is nn.Linear or (type(linear) is WeightNorm and not linear.convolves)
        if not (is_linear and x.ndim == 3 and lies_turned(x)) or any(map(has_hooks, self)):
            found: Tensor = super().forward(x)
            return found
        by_feature = functional.conv1d(x.mT, linear.weight[..., None], linear.bias)
        if type(activation) is nn.GLU and activation.dim == -1:
            return functional.glu(by_feature, dim=-2).mT  # the gradient of GLU is always in rows
        mapped: Tensor = activation(by_feature.mT)
        return mapped


def LinearActivation(
    d_input: int,
    d_output: int,
    bias: bool = True,
    transposed: bool = False,
    activation: str | None = None,
    activate: bool = False,
    *,
    initializer: str | None = None,
    weight_norm: bool = False,
) -> nn.Module:
    """A linear map of the features, with its activation behind it.

    Args:
        d_input: the features before.
        d_output: the features after. ``"glu"`` and its kin make the map twice as wide.
        bias: whether the map has one.
        transposed: whether features come second, (batch, features, length), instead of last.
        activation: an activation's name, see ``Activation``.
        activate: whether to return ``Sequential(map, activation)``; else the activation tells only the width and the
            gain.
        initializer: how the weight starts: ``"uniform"`` or ``"normal"`` (Kaiming, with the activation's gain),
            ``"xavier"``, ``"zero"``, ``"one"``; None for PyTorch's own.
        weight_norm: whether the weight is held as ``weight_g`` and ``weight_v``.

    Raises:
        TypeError: the activation's name is not a string.
        ValueError: an unknown name, or weight_norm of a zero weight.

    Examples:
        >>> LinearActivation(8, 4, activation="gelu", activate=True)(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
    layer = Activation(activation, -2 if transposed else -1, d_output)
    width = 2 * d_output if halves(activation) else d_output
    linear: nn.Linear | nn.Conv1d
    linear = nn.Conv1d(d_input, width, 1, bias=bias) if transposed else nn.Linear(d_input, width, bias=bias)
    if initializer is not None:
        if initializer not in _INITIALIZERS:
            raise ValueError(f"unknown initializer {initializer!r}; expected one of {', '.join(_INITIALIZERS)}")
        _INITIALIZERS[initializer](linear.weight, _GAINS.get(activation or "none", "linear"))
    mapped = WeightNorm(linear) if weight_norm else linear
    return MappedFeatures(mapped, layer) if activate and activation is not None else mapped
