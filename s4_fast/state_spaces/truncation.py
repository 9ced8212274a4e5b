"""The parameter C of the official S4 kernel: truncated for the length that a buffer holds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4_fast import torch_private
from s4_fast.ops import _checks
from s4_fast.ops.direct import operations_are_seen
from s4_fast.ssm.dplr import DPLRModel, DPLRRecurrence, damage, truncated, untruncated
from s4_fast.ssm.parameters import to_pairs

log = logging.getLogger(__name__)

# A set-up writes C and l_kernel, which other threads then see both of or neither.
_SETTING_UP = threading.Lock()


class TruncatedDPLRModel(DPLRModel):
    """A DPLR model whose parameter ``C`` holds ``C (I - A_bar^l_kernel)``, or the plain C while ``l_kernel`` is 0.

    ``l_kernel`` is a buffer, as in state-spaces/s4. What is computed is a function of the parameters and of this buffer
    as they are; a kernel longer than ``l_kernel``, one at another rate, and a step take the C that follows from it.

    In training the first pass sets a fresh kernel up, once, as the original does, so that the parameter that is trained
    is the original's. A pass without gradients, in a graph or transform, with given parameters (``functional_call``),
    or among several processes changes nothing: it computes the same from the plain C.
    """

    l_kernel: Tensor
    l_max: int | None = None
    verbose = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._length = 0  # of graphs, which read no buffers: see _read_length

    def register_parameter(self, name: str, param: Any) -> None:
        super().register_parameter(name, param)
        self._know_own()

    def _know_own(self) -> None:
        """Remember which C is this module's, and not one that a call is given while the module's own is set aside."""
        self.__dict__["_own"] = id(torch_private.own_parameters(self).get("C"))

    def setup(self, L: int) -> None:
        """Truncate C for a length of at least L, as the first kernel of this length does in training.

        It changes the parameter ``C`` and the buffer ``l_kernel`` in place, and nothing that is computed. ``L`` is in
        samples of the parameters' own rate; a kernel that is set up doubles its length until that is reached.

        Raises:
            RuntimeError: FSDP has sharded the parameters, or C is made of other tensors.
        """
        L = _checks.length("setup", L)
        if torch_private.is_sharded(self):
            raise RuntimeError(f"C is sharded: call setup({L}) before FSDP shards it")
        if not any(self.C is t for t in torch_private.own_tensors(self)):
            raise RuntimeError("C is made of other tensors (by a parametrization, or pruning): it cannot be set up")
        self._set_up(L)

    def take_as_truncated(self, length: int) -> None:
        """Read C as truncated for ``length``, as it is: what is computed becomes another."""
        self.l_kernel.fill_(length)
        self._read_length()

    def _set_up(self, L: int, *, fresh: bool = False) -> None:
        """``setup``, or where ``fresh`` only of a kernel that was not set up before, by whatever thread."""
        with _SETTING_UP, torch.no_grad():
            length = before = self._read_length()
            if L <= length or (fresh and length):
                return
            A_bar, C = self._transition(1.0), torch.view_as_complex(self.C.double())
            if length == 0:
                length = self.l_max or L
                C = truncated(C, A_bar, length)
            C, length = _doubled(C, A_bar, length, L)
            self.C.copy_(to_pairs(C))
            self.l_kernel.fill_(length)
            self._length = length
        if self.verbose:
            log.info("%s: from length %d to %d", type(self).__name__, before, length)

    def prepare(self, L: int, rate: float = 1.0) -> None:
        if self._trains() and self._read_length() == 0:
            self._set_up(_rounded(rate * L), fresh=True)

    def _trains(self) -> bool:
        """Whether this is an ordinary pass of training, of the module's own C."""
        C = torch_private.own_parameters(self).get("C")
        return (
            C is not None
            and C.requires_grad
            and torch.is_grad_enabled()
            and not operations_are_seen()
            and self.__dict__["_own"] == id(C)  # a graph that asks it keeps a weak reference, and C cannot be swapped
            and not C.is_meta
            and not torch_private.is_sharded(self)
            and not _among_others()
        )

    def impulse_response(self, L: int, rate: float = 1.0) -> Tensor:
        L = _checks.length("kernel", L)
        self.prepare(L, rate)
        C, length = self._of_one_moment()
        if length == 0 or rate != 1:
            wide = C.to(torch.complex128)
            plain = untruncated(wide, self._transition(1.0), length) if length else wide
            C, length = truncated(plain, self._transition(rate), L), L
        elif L > length:
            C, length = _doubled(C.to(torch.complex128), self._transition(1.0), length, L)
        return self._kernel_of(C, length, rate)[..., :L]

    def scans(self) -> bool:
        # What is exported takes any length, of which a kernel's set-up would be a case apart.
        return self._read_length() == 0 or (torch.compiler.is_compiling() and torch_private.is_exporting())

    def _outputs(self) -> Tensor:
        return torch.view_as_real(self._plain_C().to(self.state_dtype()))

    def recurrence(self, rate: float = 1.0) -> DPLRRecurrence:
        increment, G, V, B, _ = super().recurrence(rate)
        return DPLRRecurrence(increment, G, V, B, self._plain_C())

    def _transition(self, rate: float) -> Tensor:
        return super().recurrence(rate).transition()

    def _plain_C(self) -> Tensor:
        return self.remembered("plain C", self._untruncated)

    def _untruncated(self) -> Tensor:
        C, length = self._of_one_moment()
        C = C.to(torch.complex128)
        return untruncated(C, self._transition(1.0), length) if length else C

    def _of_one_moment(self) -> tuple[Tensor, int]:
        """C as it is stored, (channels, d_model, n), complex, and the length that it is truncated for."""
        if operations_are_seen():
            return self._C(), self._read_length()
        with _SETTING_UP:
            C, length = self._C(), self._read_length()
            return (C if length else C.clone()), length

    def _read_length(self) -> int:
        """The buffer as a number. A graph keeps the number of when it was made, and fails where the buffer differs."""
        if torch.compiler.is_compiling():
            if not torch_private.is_exporting():
                same = self.l_kernel == self._length
                torch_private.assert_when_computed(same, "l_kernel is not what it was when the graph was compiled")
        elif torch_private.innermost_transform() is not None:
            return self._transformed_length()
        # A mode may have no numbers to read: that of fake tensors has none.
        elif not (self.l_kernel.is_meta or torch_private.dispatch_modes()):
            self._length = int(self.l_kernel)
        return self._length

    def _transformed_length(self) -> int:
        """The length under a transform, of all members where there is one for each, as in a vmap over models."""
        lengths = torch_private.unwrapped(self.l_kernel)
        if lengths.is_meta or torch_private.dispatch_modes():
            return self._length
        first, last = int(lengths.min()), int(lengths.max())
        if first != last:
            raise RuntimeError(
                f"vmap over kernels whose C is truncated for different lengths, l_kernel from {first} to {last}: call "
                f"setup({last}) of each before they are stacked"
            )
        return first

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "l_kernel": self._read_length()}

    def misfits(self, state_dict: Mapping[str, Any], prefix: str, version: int | None) -> list[str]:
        found, key = super().misfits(state_dict, prefix, version), f"{prefix}l_kernel"
        if key in state_dict:
            problem = damage(state_dict[key])
            return [*found, f"{key}: {problem}"] if problem else found
        if f"{prefix}C" in state_dict:
            return [*found, f"{key}: missing beside C, which is truncated for that length"]
        return found

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._know_own()
        self._read_length()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self._know_own()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._know_own()

    def _uncopied(self) -> dict[str, Any]:
        return {**super()._uncopied(), "_own": None}


def _doubled(C: Tensor, A_bar: Tensor, length: int, L: int) -> tuple[Tensor, int]:
    """C truncated for ``length`` as one truncated for that doubled until it is at least L, and the new length."""
    A_bar = torch.linalg.matrix_power(A_bar, length) if length < L else A_bar
    while length < L:
        C = 2 * C - truncated(C, A_bar, 1)
        A_bar, length = A_bar @ A_bar, 2 * length
    return C, length


def _among_others() -> bool:
    """Whether other processes may have copies of the parameters, which a change here would not reach."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _rounded(length: float) -> int:
    return max(1, round(length))
