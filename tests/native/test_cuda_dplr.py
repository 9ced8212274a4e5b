"""The CUDA functions of a whole DPLR layer against the definition in float64: emulated, and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor

from s4_fast.ops.diagonal.form import Form
from tests.helpers import FORWARD, GRADIENT
from tests.native.emulated import Emulated, Library, needs_compiler
from tests.native.layers import FORMS, HALF, Layer, check, close, launches

NAMES = Layer.names(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["plain", "time-major", "bidirectional", "logs", "all"])
@pytest.mark.parametrize(
    ("n", "L", "c", "rank", "copies", "shared_dt"),
    [
        (1, 1, 1, 1, 4, True),
        (3, 17, 2, 2, 2, False),
        (29, 65, 1, 1, 1, True),
        (70, 200, 2, 3, 2, False),
        (4, 128, 1, 4, 2, True),
    ],
)
def test_dplr_scan(
    library: Library,
    generator: Generator,
    n: int,
    L: int,
    c: int,
    rank: int,
    copies: int,
    shared_dt: bool,
    form: str,
    dtype: torch.dtype,
) -> None:
    batch, H = (3, 4) if L < 100 else (1, 2)
    sizes = {"batch": batch, "H": H, "n": n, "L": L, "c": c, "rank": rank, "copies": copies}
    check(library, Layer(generator, FORMS[form], **sizes, shared_dt=shared_dt, dtype=dtype))
