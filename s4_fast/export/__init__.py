"""Trained models as files that run without Python: one step or a sequence in ONNX, one step in C99."""

from s4_fast.export.c_file import to_c
from s4_fast.export.model_files import load_model, save_model
from s4_fast.export.onnx_file import to_onnx
from s4_fast.export.refusals import ExportError

__all__ = ["ExportError", "load_model", "save_model", "to_c", "to_onnx"]
