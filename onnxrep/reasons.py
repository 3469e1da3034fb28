"""Why something was left alone: a stable code for each refusal, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "border": "Two convolutions in a row differ from their composition at the image's border.",
        "broadcast": "Operands are not known to have equal shapes, so the sum may broadcast.",
        "certificate": "The fold failed its proof: a bug of onnxrep; please report it.",
        "captured": "An If, Loop or Scan body reads an inner value of the region.",
        "graph-output": "An inner value of the region is an output of the graph.",
        "local-function": "The node calls a local function, whose weights are its arguments.",
        "negative-variance": "Variance plus epsilon is not positive: the result is NaN or infinite.",
        "not-aligned": "The branches' results lie on different grids (stride, size).",
        "not-constant": "A parameter is computed from data.",
        "not-finite": "A parameter holds NaN or infinity; merging would spread it to other branches.",
        "not-per-channel": "A constant varies along another axis than the channels (ONNX aligns shapes to the right).",
        "old-opset": "Before opset 7 broadcasting and inference mode had other meanings.",
        "other-reader": "Another node reads an inner value of the region; merging would compute it twice.",
        "overflow": "The merged weight does not fit the model's number type.",
        "overridable": "A parameter is an initializer that is also a graph input: a caller may override it.",
        "pool": "AveragePool is no convolution here: it counts real pixels at the border, or rounds its size up.",
        "price": "The merged convolution would do more arithmetic than its parts.",
        "quantized": "A weight is stored quantized; merging would give that up.",
        "training-mode": "The node is in training mode: its result depends on its batch or on chance.",
        "taken-back": "The fold was taken back: with it the model as a whole was not the same function.",
        "unknown-attribute": "The node has an attribute or input beyond those understood.",
        "unproven": "The fold could not be proven: its nodes cannot be evaluated, or run at none of the sizes tried.",
        "unknown-shape": "The rank or the number of channels of a value is not known.",
    }
)
"""Codes of refusals that are reported."""

SILENT = frozenset(("constant", "not-linear"))
"""Codes that say only that an op is not of this algebra; they are not reported."""
