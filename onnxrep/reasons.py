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
        "excluded": "The caller excluded the node or region (--only, --except, --kind).",
        "graph-output": "An inner value of the region is an output of the graph.",
        "local-function": "The node calls a local function, whose weights are its arguments.",
        "negative-variance": "Variance plus epsilon is not positive: the result is NaN or infinite.",
        "not-aligned": "The branches' results lie on different grids (stride, size).",
        "not-constant": "A parameter is computed from data.",
        "not-finite": "A parameter holds NaN or infinity; merging would spread it to other branches.",
        "not-per-channel": "A constant varies along another axis than the channels (ONNX aligns shapes to the right).",
        "old-opset": "Before opset 7 broadcasting and inference mode had other meanings.",
        "order": "A convolution and its neighbour could change places, but that is not exact here or does not pay.",
        "other-reader": "Another node reads an inner value of the region; merging would compute it twice.",
        "overflow": "The merged weight does not fit the model's number type.",
        "overridable": "A parameter is an initializer that is also a graph input: a caller may override it.",
        "pool": "AveragePool is no plain average here: it counts real pixels at the border, or rounds its size up.",
        "price": "The merged convolution would do more arithmetic than its parts.",
        "quantized": "A weight is stored quantized; merging would give that up.",
        "training-mode": "The node is in training mode: its result depends on its batch or on chance.",
        "resize": "The Resize is not a nearest one by constant whole factors.",
        "taken-back": "The fold was taken back: with it the model as a whole was not the same function.",
        "unknown-attribute": "The node has an attribute or input beyond those understood.",
        "unproven": "The fold could not be proven: its nodes cannot be evaluated, or run at none of the sizes tried.",
        "unknown-shape": "The rank or the number of channels of a value is not known.",
    }
)
"""Codes of refusals that are reported."""

ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "border": "Nothing: merging would change pixels at the border. Padding in the first layer alone would do.",
        "broadcast": "Export with fixed sizes, or run shape inference, so that the operands' shapes are known.",
        "certificate": "Please report it, with the model if you can share it. This region was left as it was.",
        "captured": "Nothing: the value is used inside an If, Loop or Scan.",
        "graph-output": "Remove the inner value from the graph's outputs if nobody needs it.",
        "local-function": "Try --inline-functions.",
        "negative-variance": "Check the training: a variance below zero is a broken weight.",
        "not-aligned": "Nothing: the branches cannot be added as one convolution.",
        "not-constant": "If the value is in fact fixed, export it as an initializer.",
        "not-finite": "Check the weights: NaN or infinity is mostly a broken training run.",
        "not-per-channel": "Check the export if you meant a factor per channel: its shape should be [C,1,1].",
        "old-opset": "Convert the model with onnx.version_converter, or export it again.",
        "other-reader": "Nothing: the value is needed elsewhere too.",
        "overflow": "Export in float32, or bfloat16: the merged weight is too large for this type.",
        "overridable": "Export with keep_initializers_as_inputs=False if no caller feeds its own weights.",
        "pool": "Nothing, unless count_include_pad was left off by mistake.",
        "price": "Nothing: the model is faster as it is.",
        "quantized": "Fold the float model first, and quantize afterwards.",
        "training-mode": "Export after model.eval().",
        "taken-back": "Please report it. The rest of the model was folded without it.",
        "unknown-attribute": "Please report it if the op should fold.",
        "unproven": "Export with a fixed size of the inputs.",
        "unknown-shape": "Export with fixed sizes, or run shape inference.",
    }
)
"""What a user can do about a refusal."""

SILENT = frozenset(("constant", "not-linear"))
"""Codes that say only that an op is not of this algebra; they are not reported."""

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "border": "nothing if the numbers are to stay the same; a model trained with the pad in front of the first "
        "convolution folds",
        "broadcast": "give the input its sizes (export with fixed shapes) if the two are equal whenever it runs",
        "certificate": "report it with the model; this region was left as it was",
        "excluded": "drop --only, --except or --kind to fold it",
        "graph-output": "remove the output if nobody reads it",
        "local-function": "--inline-functions lets it fold",
        "not-constant": "export with constant folding, in eval mode",
        "not-finite": "look at the checkpoint: a weight is broken",
        "negative-variance": "look at the checkpoint: a variance is broken",
        "not-per-channel": "if channels were meant, give the constant the shape [C, 1, 1]",
        "old-opset": "onnx.version_converter.convert_version(model, 13) raises the opset",
        "other-reader": "nothing if the other reader is wanted; if it is a debugging output, remove it",
        "overflow": "fold the float32 model, and convert it to float16 afterwards",
        "overridable": "export with keep_initializers_as_inputs=False",
        "quantized": "fold the float model first, and quantize the result",
        "taken-back": "report it with the model; the rest was folded",
        "training-mode": "export in eval mode: model.eval() and training=TrainingMode.EVAL",
        "unknown-shape": "run onnx.shape_inference, or export with fixed sizes",
        "unproven": "nothing was changed here; fixed input sizes (export without dynamic axes) may help",
    }
)
"""What a user can do about a refusal, where there is something."""
