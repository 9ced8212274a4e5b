"""HiPPO systems as models store them, for the tests of dplr_scan."""

from __future__ import annotations

import torch
from torch import Generator

from s4_fast.ssm import initialization
from tests.helpers import Tensors, log_uniform, normal

MEASURES = {"legs": 1, "legt": 2, "fout": 1, "lagt": 1}  # and the rank


def hippo(
    measure: str,
    generator: Generator,
    sizes: tuple[int, int, int, int],
    *,
    bidirectional: bool = False,
    dtype: torch.dtype = torch.complex64,
) -> Tensors:
    """The tensors of dplr_scan without D, rounded to ``dtype``; one system for all features, a step for each."""
    batch, H, n, L = sizes
    w, P, B = initialization.dplr(measure, 2 * n, MEASURES[measure])
    made = {
        "u": torch.randn(batch, H, L, dtype=torch.float64, generator=generator),
        "A": w[None],
        "P": P[:, None],
        "B": B[None],
        "C": normal(generator, 1 + bidirectional, H, n, dtype=torch.complex128),
        "dt": log_uniform(generator, 1e-3, 1e-1, H, 1),
        "state": normal(generator, batch, H, n, dtype=torch.complex128),
    }
    return {name: t.to(dtype if t.is_complex() else dtype.to_real()) for name, t in made.items()}
