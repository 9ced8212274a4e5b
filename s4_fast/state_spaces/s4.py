"""The layer ``S4`` of releases 1 to 3 of state-spaces/s4: their options, defaults and order of parts."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from s4_fast.arguments import UnknownOptionError, integer, signal
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.padding import Lengths
from s4_fast.state_spaces import older_arguments
from s4_fast.state_spaces.activation import LinearActivation
from s4_fast.state_spaces.arguments import longest
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.kernels import SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.options import OlderBlockOptions

# Options that a release alone has, in the order in which they tell it.
_OF_RELEASE = {
    1: ("H", "stride", "weight_decay", "cache", "input_linear", "use_state"),
    2: ("trainable", "hurwitz", "tie_state", "length_correction", "precision", "resample", "lr_dt", "fast_gate"),
}
# What these options may be: the rest of what they did is not supported, or does not change a number.
_ONLY = {"stride": (1,), "use_state": (False,), "resample": (False,), "precision": (1,)}
_IGNORED = ("cache", "weight_decay")


class S4(S4Block):
    """``output_linear(dropout(activation(k * u + D u)))``: the layer of projects built on releases 1 to 3.

    It computes what the ``S4`` of the release did, and takes its options and calls. Parameters have the names of
    release 4 (``layer.kernel.C``); checkpoints of every release load (``s4_fast.state_spaces.releases``). From
    ``S4Block`` it differs in its defaults, in one dropout where that has two, and in the gate of release 3, which
    stands behind the last map: ``output_gate(output_linear(...) * input_gate(u))``.

    Args:
        d_model: number of features, which release 1 calls ``H``.
        d_state: real state size N per feature.
        l_max: the longest kernel; in releases 1 and 2 only the length that training starts from.
        channels: number of outputs per feature.
        bidirectional: whether a second kernel runs from the end.
        activation: behind the convolution, and in release 3 of ``input_linear`` and ``input_gate`` too.
        postact: behind the last map; None for a map alone. By default ``"glu"`` in release 3, None before.
        hyper_act: None, or the activation of what multiplies the outputs: their second half, of twice as many channels
            (releases 2 and 3), or a linear map of u (release 1).
        dropout: probability of a zero before the last map.
        tie_dropout: whether all time steps share one mask; releases 1 and 2 do so where ``transposed``.
        bottleneck: of release 3, see ``S4Block``.
        gate: of release 3, see ``S4Block``.
        transposed: whether inputs and outputs are (batch, d_model, length) instead of (batch, length, d_model).
        verbose: whether to log the kernel's sizes and length, at level INFO.
        initializer: of the linear maps, see ``LinearActivation``.
        weight_norm: of the linear maps, see ``LinearActivation``.
        release: 1, 2 or 3; None for 3, or the one that an option belongs to: 1 for ``H``, ``stride``,
            ``input_linear``, ``use_state``, ``cache``; 2 for ``trainable``, ``hurwitz``, ``tie_state``,
            ``length_correction``, ``precision``, ``resample``.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
        **kernel_args: options of the kernel: ``measure``, ``measure_args``, ``rank``, ``dt_min``, ``dt_max``,
            ``trainable``, ``lr``, ``hurwitz``, ``tie_state``, ``n_ssm``, ``mode``, ``disc``, ``real_type``,
            ``bandlimit``, ``deterministic``, ``keops``, and those of
            ``SSMKernel``. A diagonal kernel's ``disc`` is ``"bilinear"`` by default.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an option's value is unknown, out of range or not supported, or two contradict each other.

    Examples:
        >>> layer = S4(d_model=8, d_state=16, l_max=100, bidirectional=True, postact=None)
        >>> y, state = layer(torch.randn(2, 8, 100))
        >>> y.shape
        torch.Size([2, 8, 100])

    S4: Gu, Goel, Ré 2022, arXiv 2111.00396; the gate: Mehta et al. 2022, arXiv 2206.13947.
    """

    def __init__(
        self,
        d_model: int | None = None,
        d_state: int = 64,
        l_max: int | None = None,
        channels: int = 1,
        bidirectional: bool = False,
        activation: str | None = "gelu",
        postact: str | EllipsisType | None = ...,
        hyper_act: str | None = None,
        dropout: float = 0.0,
        tie_dropout: bool | EllipsisType = ...,
        bottleneck: int | None = None,
        gate: int | None = None,
        transposed: bool = True,
        verbose: bool = False,
        *,
        initializer: str | None = None,
        weight_norm: bool = False,
        release: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kernel_args: Unpack[OlderBlockOptions],
    ) -> None:
        given: dict[str, Any] = dict(kernel_args)
        release = _release(release, given)
        if release < 3 and not (bottleneck is None and gate is None):
            raise ValueError(f"bottleneck and gate are options of release 3, not of release {release}")
        input_linear = _supported(given)
        corrected = bool(given.pop("length_correction", release > 1))
        first = release == 1
        if input_linear:
            bottleneck = 1
        gated = first and hyper_act is not None
        options = older_arguments.translated(
            {
                "d_model": d_model,
                "activation": None if gated else activation,
                "hyper_act": None if first else hyper_act,
                "mult_act": activation if gated else None,
                **({"trainable": None} if release == 2 else {}),
                **given,
            },
            first,
        )
        diagonal = str(options.get("mode", "nplr")).lower() in ("diag", "s4d")
        older_arguments.put_defaults(options, options.get("measure") or options.get("init", "legs"), diagonal)
        if isinstance(postact, EllipsisType):
            postact = "glu" if release == 3 else None
        maps: dict[str, Any] = {"initializer": initializer, "weight_norm": weight_norm}
        try:
            super().__init__(
                bottleneck=bottleneck,
                gate=1 if gated else None,
                gate_act=hyper_act if gated else None,
                final_act="id" if postact is None else postact,
                transposed=transposed,
                d_state=d_state,
                l_max=l_max,
                channels=channels,
                bidirectional=bidirectional,
                verbose=verbose,
                **maps,
                **options,
            )
        except UnknownOptionError as error:
            raise error.through(S4) from None
        self.release, self._gated_after = release, gate is not None
        inner = self.layer.d_model
        if bottleneck is not None:
            before = postact if first else activation
            self.input_linear = LinearActivation(self.d_model, inner, activation=before, activate=True, **maps)
        if gate is not None:
            self._add_gate(integer("gate", gate, 1), activation, postact, maps)
        tied = tie_dropout if isinstance(tie_dropout, bool) else release < 3 and transposed
        if dropout != 0:
            self.drop = DropoutNd(dropout, transposed=False) if tied else nn.Dropout(dropout)
        if release < 3:
            self._start_from(longest(l_max), corrected)
        elif diagonal and isinstance(self.layer.kernel, SSMKernelDiag):
            self.layer.kernel.multiply_C_by_B()
        if (device, dtype) != (None, None):
            self.to(device, dtype)

    def _add_gate(self, gate: int, activation: str | None, postact: str | None, maps: Mapping[str, Any]) -> None:
        width = gate * self.d_model
        self.gate = gate
        self.input_gate = LinearActivation(self.d_model, width, activation=activation, activate=True, **maps)
        self.output_gate = LinearActivation(width, self.d_model, **maps)
        last = "id" if postact is None else postact
        self.output_linear = LinearActivation(self.layer.d_output, width, activation=last, activate=True, **maps)

    def _start_from(self, l_max: int | None, corrected: bool) -> None:
        """What ``l_max`` is before release 3: no end of the kernel, and the first length of C."""
        self.layer.l_max = None
        kernel = self.layer.kernel
        if isinstance(kernel, SSMKernelDPLR):
            kernel.l_max = l_max or 1
            if not corrected:
                kernel.take_as_truncated(kernel.l_max)

    def forward(  # type: ignore[override]
        self,
        u: Tensor,
        state: Tensor | None = None,
        rate: float = 1.0,
        lengths: Lengths | int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The layer over a sequence; arguments, results and errors are those of ``S4Block.forward``.

        ``state`` comes second, as in releases 1 and 3.
        """
        return super().forward(signal("u", u, self), lengths, state=state, rate=rate, **kwargs)

    if TYPE_CHECKING:
        __call__ = forward  # type: ignore[assignment]

    def _leave(self, y: Tensor, x: Tensor) -> Tensor:
        if self._gated_after:
            y = self.output_linear(self.drop(self.mult_activation(y)))
            return self.output_gate(y * self.input_gate(x))
        if self.release == 1 and self.gate is not None and self.bottleneck is not None:
            x = self._enter(x)  # what multiplies the outputs is of the mapped input
        return super()._leave(y, x)

    def _compare_defaults(self, prefix: str) -> None:
        """Its defaults are the release's."""

    @property
    def kernel(self) -> SSMKernelDiag | SSMKernelDPLR:
        """The kernel: ``kernel(L=L)`` returns it (channels, d_model, L), and the outputs that a state leaves."""
        return self.layer.kernel

    @property
    def D(self) -> Tensor:
        """The skip connection, (channels, d_model)."""
        return self.layer.D

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, release={self.release}"


def _release(release: int | None, options: Mapping[str, Any]) -> int:
    """The release whose options these are; it is named, or told by an option that it alone has."""
    if release not in (None, 1, 2, 3):
        raise ValueError(f"expected release to be 1, 2 or 3, got {release!r}; release 4 has S4Block")
    if release is not None:
        return release
    return next((n for n, names in _OF_RELEASE.items() if any(name in options for name in names)), 3)


def _supported(options: dict[str, Any]) -> bool:
    """Take options of release 1 and 2 away that change nothing, or raise; whether there is an ``input_linear``."""
    for name, values in _ONLY.items():
        if (value := options.pop(name, values[0])) not in values:
            raise ValueError(f"{name}={value!r} is not supported; {name}={values[0]!r} is")
    for name in _IGNORED:
        options.pop(name, None)
    return bool(options.pop("input_linear", False))
