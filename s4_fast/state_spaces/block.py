"""The block of state-spaces/s4 around a convolution: gate, bottleneck, dropout and the mix of the features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from s4_fast import torch_private
from s4_fast.arguments import UnknownOptionError, integer, signal
from s4_fast.checkpoint import AllOrNothing, Renewed
from s4_fast.layers import padding
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.padding import Lengths
from s4_fast.ssm.layout import turned
from s4_fast.state_spaces import older_arguments
from s4_fast.state_spaces.activation import Activation, LinearActivation, halves
from s4_fast.state_spaces.arguments import check_shape, flattened, per_row, refuse_requests
from s4_fast.state_spaces.convolution import FFTConv, one_sample
from s4_fast.state_spaces.kernels import SSMKernelDiag
from s4_fast.state_spaces.options import BlockOptions
from s4_fast.state_spaces.releases import older_layer


class S4Block(AllOrNothing):
    """``output_linear(dropout(mult_act(output_gate(layer(input_linear(x))) * input_gate(x))))``.

    The ``S4Block`` of state-spaces/s4 with its options and names: its checkpoints load strictly, and those of this
    block load there. Without ``gate`` and ``bottleneck``, the default, it is ``output_linear(dropout(layer(x)))``.

    Args:
        d_model: number of features.
        bottleneck: the layer works on ``d_model / bottleneck`` features, to which a linear map brings x (GSS: Mehta et
            al. 2022). None for no such map.
        gate: the layer's outputs, mapped to ``gate * d_model`` features where they are not as many, are multiplied by
            a linear map of x (GSS). None for no gate.
        gate_act: the activation of that map.
        mult_act: the activation behind the product, or behind the layer where there is no gate.
        final_act: the activation of the last linear map, which leads back to ``d_model`` features; ``"id"`` for none;
            None for no linear map at all. ``"glu"`` where neither this nor ``postact`` is given.
        postact: older name of ``final_act``; None alone is a map without activation, as it was before release 4.
        initializer: of the last linear map, see ``LinearActivation``.
        weight_norm: of the last linear map, see ``LinearActivation``.
        dropout: probability of a zero in the layer and before the last linear map.
        tie_dropout: whether all time steps share one mask.
        transposed: whether inputs and outputs are (batch, d_model, length) instead of (batch, length, d_model).
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
        **layer_args: of the ``FFTConv``: ``l_max=None``, ``channels=1``, ``swap_channels=False``,
            ``bidirectional=False``, ``activation="gelu"``, ``drop_kernel=0.0``, ``mode="dplr"``, ``kernel=None``, and
            what that takes for its kernel, ``d_state=64``, ``init="legs"``, ``disc="zoh"``, ... Those of releases 1 to
            3 too, see ``s4_fast.state_spaces.older_arguments.translated``: ``H``, ``hyper_act``, ``measure_args``,
            ``keops``, ``hurwitz``, ``tie_state``, ``trainable``, ``lr_dt``, ``real_type``, ``fast_gate``. Code of those
            releases, whose dropout, gate and defaults are others, wants ``S4``.

    Checkpoints of releases 1 to 3 load too (``s4_fast.state_spaces.releases``).

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an option's value is unknown or out of range, or two contradict each other.

    Examples:
        >>> layer = S4Block(8, d_state=16, mode="diag", init="diag-lin", transposed=False)
        >>> y, _ = layer(torch.randn(2, 100, 8))
        >>> y.shape
        torch.Size([2, 100, 8])
        >>> y, state = layer.eval().step(torch.randn(2, 8), layer.default_state(2))
        >>> y.shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        d_model: int | None = None,
        bottleneck: int | None = None,
        gate: int | None = None,
        gate_act: str | None = None,
        mult_act: str | None = None,
        final_act: str | EllipsisType | None = ...,
        postact: str | EllipsisType | None = ...,
        initializer: str | None = None,
        weight_norm: bool = False,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **layer_args: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        options: dict[str, Any] = dict(layer_args)
        if older_arguments.is_older(options):
            options = older_arguments.translated({"d_model": d_model, "mult_act": mult_act, **options})
            d_model, mult_act = options.pop("d_model"), options.pop("mult_act")
        d_model = integer("d_model", d_model, 1)
        bottleneck = None if bottleneck is None else integer("bottleneck", bottleneck, 1)
        gate = None if gate is None else integer("gate", gate, 1)
        if bottleneck is not None and d_model % bottleneck:
            raise ValueError(f"bottleneck must divide d_model, got bottleneck = {bottleneck}, d_model = {d_model}")
        final_act = older_arguments.last_activation(postact, final_act)
        if final_act is None and (initializer is not None or weight_norm):
            raise ValueError("initializer and weight_norm are for the last linear map, which final_act=None leaves out")
        self.d_model, self.bottleneck, self.gate, self.transposed = d_model, bottleneck, gate, transposed

        inner = d_model if bottleneck is None else d_model // bottleneck
        if bottleneck is not None:
            self.input_linear = LinearActivation(d_model, inner)
        try:
            self.layer = FFTConv(inner, transposed=False, dropout=dropout, tie_dropout=tie_dropout, **options)
        except UnknownOptionError as error:
            raise error.through(S4Block) from None
        width = self.layer.d_output
        if gate is not None:
            self.input_gate = LinearActivation(d_model, gate * d_model, activation=gate_act, activate=True)
            fits = width == gate * d_model
            self.output_gate = nn.Identity() if fits else LinearActivation(width, gate * d_model)
            width = gate * d_model
        self.mult_activation = Activation(mult_act, size=width)
        if halves(mult_act):
            if width % 2:
                raise ValueError(f"mult_act={mult_act!r} halves the features, of which there are {width}")
            width //= 2
        drop = DropoutNd if tie_dropout else nn.Dropout
        self.drop = drop(dropout) if dropout != 0 else nn.Identity()
        self.d_output = width if final_act is None else d_model
        self.output_linear: nn.Module = nn.Identity()
        if final_act is not None:
            self.output_linear = LinearActivation(
                width, d_model, activation=final_act, activate=True, initializer=initializer, weight_norm=weight_norm
            )
        if (device, dtype) != (None, None):
            self.to(device, dtype)

    def forward(
        self,
        x: Tensor,
        lengths: Lengths | int | None = None,
        *,
        state: Tensor | None = None,
        rate: float = 1.0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The block over a sequence.

        Args:
            x: (batch, d_model, length), or (batch, length, d_model) where not ``transposed``. Any length >= 1.
            lengths: the lengths of right-padded rows, integers from 1 to ``length``: (batch,), (1,), or one int for all
                rows. What lies in the padding is not read, and the outputs there are those of a zero input.
            state: the layer's state before, as ``default_state`` or a call with ``state`` returns it.
            rate: the sampling rate of x relative to the one that the parameters were trained for.
            **kwargs: may be None or False, for the sake of callers that pass the same ones to every layer.

        Returns:
            y like x with ``d_output`` features, and the state after the (row's) last input; None where none was given.

        Raises:
            TypeError: lengths are not integers, x or the state has the wrong dtype, or a keyword argument asks for
                something.
            ValueError: x, lengths or the state has the wrong shape or is out of range.
        """
        refuse_requests(kwargs, "S4Block takes x, lengths, state and rate")
        x = signal("x", x, self)
        check_shape(x, self.d_model, self.transposed)
        if self.transposed:
            # The layer and the last map take either memory order; the maps of the others would each copy x.
            x = x.mT if self.gate is None and self.bottleneck is None else turned(x)
        rows = padding.rows(per_row(lengths, x.shape[0]), x)
        if rows is not None:
            x = rows.cut(x)
        y, after = self.layer(self._enter(x), state=state, rate=rate, lengths=rows)
        y = self._leave(y, x)
        return turned(y) if self.transposed else y, after

    if TYPE_CHECKING:
        __call__ = forward

    def _enter(self, x: Tensor) -> Tensor:
        return x if self.bottleneck is None else self.input_linear(x)

    def _leave(self, y: Tensor, x: Tensor) -> Tensor:
        """From the layer's outputs for x to the block's, (..., features) each."""
        if self.gate is not None:
            y = self.output_gate(y) * self.input_gate(x)
        return self.output_linear(self.drop(self.mult_activation(y)))

    def setup_length(self, L: int) -> None:
        """Set the kernel up for a length of at least L; nothing needs it, see ``SSMKernelDPLR.setup_length``."""
        self.layer.setup_length(L)

    def setup_step(self, **kwargs: Any) -> None:
        """Prepare ``step``, which does so itself: nothing needs it but ``mode``, as ``FFTConv.setup_step`` has it."""
        self.layer.setup_step(**kwargs)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: x (batch, d_model), state -> y (batch, d_output), state.

        From ``default_state``, and without dropout, the outputs equal those of ``forward``.
        """
        x = signal("x", x, self)
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise ValueError(f"expected x of shape (batch, {self.d_model}), got {tuple(x.shape)}")
        if torch_private.has_hooks(self):
            return one_sample(self, x, state)
        y, after = self.layer.step(self._enter(x), state)
        return self._leave(y, x), after

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """The layer's zero state, (*batch_shape, d_model / bottleneck, states), where the parameters are."""
        return self.layer.default_state(*batch_shape, device=device)

    @property
    def d_state(self) -> int:
        """How many numbers the state of one sequence has."""
        return self.layer.d_state

    @property
    def state_to_tensor(self) -> Callable[[Tensor], Tensor]:
        """What makes (..., d_state) of a state (..., features, states)."""
        return flattened

    def renewed(self, state_dict: Mapping[str, Any], prefix: str) -> Renewed | None:
        kernel = self.layer.kernel
        found = older_layer(state_dict, prefix, kernel.real_transform)
        if found is None:
            return None
        kernel.check_older()
        if found.release == 3:
            self._compare_defaults(prefix)
        return found.renewed(state_dict, type(self).__name__)

    def _compare_defaults(self, prefix: str) -> None:
        """Warn where release 3 means something else by an option that a checkpoint does not hold."""
        kernel = self.layer.kernel
        if isinstance(kernel, SSMKernelDiag) and kernel.disc != "bilinear":
            warnings.warn(
                f"{prefix}kernel.kernel: release 3 discretises S4D by disc='bilinear' where its option is not given; "
                f"this layer has disc={kernel.disc!r}",
                stacklevel=4,
            )

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, bottleneck={self.bottleneck}, gate={self.gate}, transposed={self.transposed}"
