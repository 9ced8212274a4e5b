"""Loading a state_dict all or nothing: what does not fit is named, and then nothing has changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import is_tensor_like

from s4_fast.named_errors import NamedErrors


class Renewed(NamedTuple):
    """Entries of an older checkpoint in their present names and meaning.

    ``origin`` is what they are of; ``names`` has what each new name was called.
    """

    entries: dict[str, Any]
    origin: str
    names: Mapping[str, str]


class AllOrNothing(NamedErrors):
    """A module whose ``load_state_dict`` checks every key and shape before it copies the first one.

    ``obsolete`` names what older checkpoints hold and the module has no use for; it is passed over.
    """

    obsolete: tuple[str, ...] = ()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ``torch.nn.Module.load_state_dict``, but the module is unchanged when it raises.

        Raises:
            RuntimeError: naming the missing and unexpected keys (if ``strict``), the shapes that differ, and what is
                not a tensor.
            TypeError: ``state_dict`` is not a mapping.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"expected a mapping of names to tensors, got {type(state_dict).__name__}")
        if unnamed := [key for key in state_dict if not isinstance(key, str)]:
            raise self._refusal("", [f"{key!r}: the keys of a state_dict are names" for key in unnamed])
        own = self.state_dict()
        metadata = getattr(state_dict, "_metadata", {})
        problems, origin = [], ""
        names: dict[str, str] = {}
        for prefix, module in self._parts():
            try:
                renewed = module.renewed(state_dict, prefix)
            except ValueError as error:
                problems.append(str(error))
                continue
            if renewed is not None:
                state_dict, origin, names = renewed.entries, f" of {renewed.origin}", {**names, **renewed.names}
        if problems:
            raise self._refusal("", problems)
        for key, tensor in own.items():
            value = state_dict.get(key, tensor)
            if isinstance(tensor, Tensor) and not is_tensor_like(value):
                problems.append(f"{key}: expected a tensor, the checkpoint has {type(value).__name__}")
            elif isinstance(tensor, Tensor) and value.shape != tensor.shape:
                problems.append(f"{key}: expected shape {tuple(tensor.shape)}, the checkpoint has {tuple(value.shape)}")
        if strict:
            problems += [f"{key}: missing from the checkpoint" for key in own if key not in state_dict]
            passed_over = {prefix + name for prefix, module in self._parts() for name in module.obsolete}
            unknown = (key for key in state_dict if key not in own and key not in passed_over)
            problems += [f"{key}: not a key of this module" for key in unknown]
        for prefix, module in self._parts():
            problems += module.misfits(state_dict, prefix, metadata.get(prefix.removesuffix("."), {}).get("version"))
        if problems:
            raise self._refusal(origin, [_with_old_name(problem, names) for problem in problems])
        if metadata and not hasattr(state_dict, "_metadata"):
            state_dict = OrderedDict(state_dict)
            state_dict._metadata = metadata  # type: ignore[attr-defined]
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _parts(self) -> list[tuple[str, AllOrNothing]]:
        """The modules of this class, with what their entries' names begin with."""
        return [
            (f"{path}." if path else "", module)
            for path, module in self.named_modules()
            if isinstance(module, AllOrNothing)
        ]

    def _refusal(self, origin: str, problems: list[str]) -> RuntimeError:
        listed = "\n  ".join(problems)
        return RuntimeError(
            f"the checkpoint{origin} does not fit {type(self).__name__}; nothing was loaded:\n  {listed}"
        )

    def renewed(self, state_dict: Mapping[str, Any], prefix: str) -> Renewed | None:
        """``state_dict`` with the entries under ``prefix`` that are of an older release in the present form.

        None where there are none.

        Raises:
            ValueError: what keeps them from being read.
        """
        return None

    def misfits(self, state_dict: Mapping[str, Any], prefix: str, version: int | None) -> list[str]:
        """What does not fit of this module's own entries, whose names begin with ``prefix``, beside keys and shapes.

        ``version`` is that of the module that was saved, where the checkpoint says it.
        """
        return []

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Found before, unless another module loads this one.
        try:
            renewed = self.renewed(state_dict, prefix)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        if renewed is not None:
            state_dict.clear()
            state_dict.update(renewed.entries)
        if problems := self.misfits(state_dict, prefix, local_metadata.get("version")):
            error_msgs.extend(problems)
            return
        for name in self.obsolete:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _with_old_name(problem: str, names: Mapping[str, str]) -> str:
    name, _, reason = problem.partition(": ")
    return f"{name} ({names[name]} in the checkpoint): {reason}" if name in names else problem
