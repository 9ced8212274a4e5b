"""The types of calls of layers, blocks and models, which ``torch.nn.Module`` has none of."""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar, overload

from torch import Tensor

from s4_fast.layers.padding import Lengths

State = TypeVar("State")


class SequenceCall(Protocol[State]):
    """What a module over sequences returns: outputs, and with ``return_state`` the state after them."""

    @overload
    def __call__(
        self,
        u: Tensor,
        /,
        state: State | None = None,
        *,
        lengths: Lengths | None = None,
        return_state: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def __call__(
        self, u: Tensor, /, state: State | None = None, *, lengths: Lengths | None = None, return_state: Literal[True]
    ) -> tuple[Tensor, State]: ...

    @overload
    def __call__(
        self, u: Tensor, /, state: State | None = None, *, lengths: Lengths | None = None, return_state: bool
    ) -> Tensor | tuple[Tensor, State]: ...
