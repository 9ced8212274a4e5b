"""Sequence layers and models on (batch, length, features)."""

from s4_fast.layers.block import SSMBlock
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.frozen import FrozenStep
from s4_fast.layers.model import ModelState, S4SequenceModel
from s4_fast.layers.ssm_layer import S4DLayer, S4Layer

__all__ = ["DropoutNd", "FrozenStep", "ModelState", "S4DLayer", "S4Layer", "S4SequenceModel", "SSMBlock"]
