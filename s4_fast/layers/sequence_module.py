"""Modules whose input is a sequence, or with ``split_time`` a slice of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from s4_fast.checkpoint import AllOrNothing
from s4_fast.layers.padding import Rows
from s4_fast.ssm.model import SSMModel
from s4_fast.ssm.sequence import Way, through, through_slice
from s4_fast.time_split import SplittableSequence
from s4_fast.torchscript import refuse_onnx, refuse_scripting, refuse_tracing


class SequenceModule(SplittableSequence, AllOrNothing):
    """A module that takes a state space model over its input, or over the sequence of which it is a slice."""

    def _through(
        self,
        model: SSMModel,
        u: Tensor,
        D: Tensor | None,
        way: Way,
        check: Callable[[int], None],
        *,
        state: Tensor | None = None,
        rows: Rows | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``model`` over u, or over the sequence of which u is this rank's slice; see ``through``.

        ``check(least)`` raises where the arguments do not fit, or u has fewer than ``least`` samples.
        """
        refuse_tracing()
        refuse_onnx()
        if self.time_split is None:
            check(1)
            lengths = None if rows is None else rows.lengths
            return through(model, u, D, way, state=state, lengths=lengths, return_state=return_state)
        tied: tuple[Any, ...] = (*self.parameters(),)
        slices = self.time_split.agree(
            type(self).__name__,
            lambda: check(0),
            u,
            rows,
            length=lambda: u.shape[1 if way.time_major else 2],
            state=state is not None,
            needs_grad=lambda: any(t is not None and t.requires_grad for t in (u, state, *tied)),
            same=lambda: {
                "return_state": return_state,
                **model.sizes(),
                "bidirectional": way.bidirectional,
                "rate": way.rate,
            },
        )
        return through_slice(model, slices, u, D, way, state=state, return_state=return_state, tied=tied)

    def __prepare_scriptable__(self) -> None:
        """What ``torch.jit.script`` asks every module inside the one that it is given."""
        refuse_scripting()


def one_sample(module: Any, u: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A step (batch, features) of ``module`` as a call with one sample, in which its hooks take part."""
    y, after = module.prefill(u[:, None], state)
    return y[:, 0], after
