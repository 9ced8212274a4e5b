"""Loading a state_dict all or nothing: what does not fit is named, and then nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class AllOrNothing(nn.Module):
    """A module whose ``load_state_dict`` checks every key and shape before it copies the first one."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ``torch.nn.Module.load_state_dict``, but the module is unchanged when it raises.

        Raises:
            RuntimeError: naming the missing and unexpected keys (if ``strict``) and the shapes that differ.
        """
        own = self.state_dict()
        problems = [
            f"{key}: expected shape {tuple(own[key].shape)}, the checkpoint has {tuple(value.shape)}"
            for key, value in state_dict.items()
            if key in own and hasattr(value, "shape") and value.shape != own[key].shape
        ]
        if strict:
            problems += [f"{key}: missing from the checkpoint" for key in own if key not in state_dict]
            problems += [f"{key}: not a key of this module" for key in state_dict if key not in own]
        if problems:
            listed = "\n  ".join(problems)
            raise RuntimeError(f"the checkpoint does not fit {type(self).__name__}; nothing was loaded:\n  {listed}")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
