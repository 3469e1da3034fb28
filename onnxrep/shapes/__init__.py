"""What is known for certain about the shape and type of each value.

Static sizes come from ONNX's shape inference, run on a copy from which every declared inner shape was removed: such
declarations are claims, and exporters get them wrong. Where a size is not static, it is followed through the graph in
the normal form ``floor((base + size) / stride) + 1`` of :mod:`onnxrep.lattice`: two values whose sizes have the same
normal form have equal sizes for every input that the model accepts.
"""

from __future__ import annotations

from onnxrep.shapes.follow import FOLLOWED, Shapes, enlarges
from onnxrep.shapes.inference import infer, inferred
from onnxrep.shapes.sizes import Dim, Known, Shape, Size, assign, counted, lengths_of, resolved
from onnxrep.shapes.windows import UnknownWindow, pad_margins, window

__all__ = [
    "FOLLOWED",
    "Dim",
    "Known",
    "Shape",
    "Shapes",
    "Size",
    "UnknownWindow",
    "assign",
    "counted",
    "enlarges",
    "infer",
    "inferred",
    "lengths_of",
    "pad_margins",
    "resolved",
    "window",
]
