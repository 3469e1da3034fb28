"""From ONNX ops to maps: one file per family of ops, one explicit table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_graphsurgeon as gs

from onnxrep.lift import affine, conv, pad
from onnxrep.lift.base import Branch, Decline, Facts, Lifted

LIFTS: Mapping[str, Callable[[gs.Node, Facts], Lifted]] = MappingProxyType(
    {
        "Add": affine.lift_add,
        "BatchNormalization": affine.lift_batch_normalization,
        "Cast": affine.lift_cast,
        "Conv": conv.lift_conv,
        "ConvTranspose": conv.lift_conv_transpose,
        "Div": affine.lift_div,
        "Dropout": affine.lift_dropout,
        "Identity": affine.lift_identity,
        "Mean": affine.lift_mean,
        "Mul": affine.lift_mul,
        "Neg": affine.lift_neg,
        "Pad": pad.lift_pad,
        "Sub": affine.lift_sub,
        "Sum": affine.lift_sum,
    }
)

__all__ = ["LIFTS", "Branch", "Decline", "Facts", "Lifted"]
