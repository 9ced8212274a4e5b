"""Sequence layers and models on (batch, length, features)."""

from s4_fast.layers.block import SSMBlock
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.frozen import FrozenStep
from s4_fast.layers.model import ModelState, S4SequenceModel
from s4_fast.layers.s4_layer import S4Layer
from s4_fast.layers.s4d_layer import S4DLayer

__all__ = ["DropoutNd", "FrozenStep", "ModelState", "S4DLayer", "S4Layer", "S4SequenceModel", "SSMBlock"]
