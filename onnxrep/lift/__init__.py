"""From ONNX ops to maps: one file per family of ops, one explicit table per layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_graphsurgeon as gs

from onnxrep.lift import affine, channels, conv, linear, movement, pad, pool
from onnxrep.lift.base import FIRST, LAST, Branch, Decline, Facts, Layout, Lifted

Lift = Callable[[gs.Node, Facts, str], Lifted]
"""Lifts one output of a node."""

_ANYWHERE: dict[str, Lift] = {
    "Add": affine.lift_add,
    "BatchNormalization": affine.lift_batch_normalization,
    "Cast": affine.lift_cast,
    "Div": affine.lift_div,
    "Dropout": affine.lift_dropout,
    "Flatten": movement.lift_reshape,
    "Identity": affine.lift_identity,
    "Mean": affine.lift_mean,
    "Mul": affine.lift_mul,
    "Neg": affine.lift_neg,
    "Reshape": movement.lift_reshape,
    "Squeeze": movement.lift_reshape,
    "Sub": affine.lift_sub,
    "Sum": affine.lift_sum,
    "Unsqueeze": movement.lift_reshape,
}
_ON_CHANNELS: dict[str, Lift] = {
    "Concat": channels.lift_concat,
    "Gather": channels.lift_gather,
    "Slice": channels.lift_slice,
    "Split": channels.lift_split,
    "Transpose": movement.lift_transpose,
}
_TABLES: Mapping[str, Mapping[str, Lift]] = MappingProxyType(
    {
        "first": MappingProxyType(
            {
                **_ANYWHERE,
                **_ON_CHANNELS,
                "AveragePool": pool.lift_average_pool,
                "Conv": conv.lift_conv,
                "ConvTranspose": conv.lift_conv_transpose,
                "MatMul": conv.lift_matmul_from_left,
                "Pad": pad.lift_pad,
                "SpaceToDepth": channels.lift_space_to_depth,
            }
        ),
        "last": MappingProxyType({**_ANYWHERE, **_ON_CHANNELS, "Gemm": linear.lift_gemm, "MatMul": linear.lift_matmul}),
        "flat": MappingProxyType(
            {
                **_ANYWHERE,
                "Conv": conv.lift_conv_flat,
                "Gemm": linear.lift_gemm,
                "MatMul": linear.lift_matmul,
            }
        ),
    }
)

LIFTED: frozenset[str] = frozenset(op for table in _TABLES.values() for op in table)
"""Every op type that is lifted in some layout."""


def lifts(layout: Layout) -> Mapping[str, Lift]:
    """Return op type -> lift for a layout."""
    return _TABLES[layout.kind]


__all__ = ["FIRST", "LAST", "LIFTED", "Branch", "Decline", "Facts", "Layout", "Lifted", "lifts"]
