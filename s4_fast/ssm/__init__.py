"""State space models: their matrices, initial values, discretisation, and parameter modules."""

from s4_fast.ssm.conjugates import with_conjugates, without_conjugates
from s4_fast.ssm.diagonal import DiagonalSSM
from s4_fast.ssm.dplr import DPLRSSM

__all__ = ["DPLRSSM", "DiagonalSSM", "with_conjugates", "without_conjugates"]
