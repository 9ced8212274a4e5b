"""A model's step as one C99 file."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from s4_fast import files
from s4_fast.export.c_source import source
from s4_fast.export.reading import read
from s4_fast.export.refusals import ExportError


def to_c(
    model: nn.Module, path: str | Path, *, name: str | None = None, rate: float = 1.0, force: bool = False
) -> dict[str, str]:
    """Write one step of ``model`` in evaluation mode, with its weights, as a C99 file that needs nothing but libm.

    The file declares, for ``name`` = ``effect``:

        typedef struct { ... } effect_state;
        void effect_init(effect_state *state);
        void effect_step(effect_state *state, const float *u, float *y);

    ``effect_step`` takes ``EFFECT_INPUTS`` floats and writes ``EFFECT_OUTPUTS``; it allocates nothing, and threads may
    step states of their own. Other files see the declarations by ``#define EFFECT_DECLARATIONS`` before ``#include
    "effect.c"``. States and their products are in double, because roundings of a weakly damped state add up over the
    steps; compiled with ``-DEFFECT_SINGLE``, they are in float, for processors without double.

    Args:
        model: as in ``s4_fast.export.to_onnx``.
        path: the file to write.
        name: what the names in C begin with; None for the file's name without its ending.
        rate: how many times as coarse as in training the sampling is: dt is multiplied by it.
        force: whether the file may exist.

    Returns:
        What the comment at the top of the file says, by name.

    Raises:
        ExportError: a ValueError that says what cannot be exported, and why. Nothing is written then.
        OSError: the file exists and not ``force``, or cannot be written.

    Examples:
        >>> model = s4_fast.S4SequenceModel(1, 8, 1, n_layers=2, d_state=4, task="regression")
        >>> facts = to_c(model, "effect.c")
        >>> facts["model"], facts["task"]
        ('S4SequenceModel', 'regression')
    """
    path = Path(path)
    name = path.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ExportError(f"{name!r} is no name in C; choose one: name= in Python, --name on the command line")
    files.refuse_existing(path, force)
    program = read(model, rate)
    facts = {key: str(value) for key, value in program.facts.items()}
    files.write(path, source(program, name), force)
    return facts
