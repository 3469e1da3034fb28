"""Where the sliding windows of ONNX's ops read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from onnxrep.constants import Constants
from onnxrep.lattice import Mode, Taps
from onnxrep.shapes.sizes import Dim, counted

LARGEST_KERNEL = 1 << 12
"""Kernels beyond this size are not looked at."""


class UnknownWindow(ValueError):
    """The attributes of a sliding window do not say where it reads."""


def window(
    attributes: Mapping[str, Any], kernel: Sequence[int], lengths: Sequence[Dim] | None
) -> tuple[Taps, tuple[int, ...], tuple[int, ...], Mode]:
    """Return ``(taps, stride, size, mode)`` of a sliding window from ONNX attributes.

    Args:
        attributes: of the node; ``strides``, ``dilations``, ``pads`` and ``auto_pad`` are read.
        kernel: the kernel's shape, one entry per spatial axis.
        lengths: the input's sizes if known; SAME with a stride needs them.

    Raises:
        UnknownWindow: an attribute has a value without a meaning here.

    """
    axes = len(kernel)
    strides = tuple(attributes.get("strides") or (1,) * axes)
    dilations = tuple(attributes.get("dilations") or (1,) * axes)
    pads = tuple(attributes.get("pads") or (0,) * (2 * axes))
    auto: str = attributes.get("auto_pad", "NOTSET") or "NOTSET"
    if len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes:
        raise UnknownWindow("strides, dilations or pads do not fit the kernel")
    if min((*strides, *dilations, *kernel, 1)) < 1:
        raise UnknownWindow("a stride, dilation or kernel size below 1")
    if max((*kernel, 0)) > LARGEST_KERNEL:
        raise UnknownWindow(f"a kernel of size {max(kernel)}")
    if auto == "VALID":
        pads = (0,) * (2 * axes)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for axis in range(axes):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            if strides[axis] == 1:
                total = reach - 1
            else:
                length = lengths[axis] if lengths else None
                if not isinstance(length, int):
                    free = tuple(tuple(d * k for k in range(n)) for d, n in zip(dilations, kernel, strict=True))
                    return free, strides, (-1,) * axes, "SAME_UPPER" if auto == "SAME_UPPER" else "SAME_LOWER"
                total = max((-(-length // strides[axis]) - 1) * strides[axis] + reach - length, 0)
            small, large = total // 2, total - total // 2
            begins.append(small if auto == "SAME_UPPER" else large)
            ends.append(large if auto == "SAME_UPPER" else small)
        pads = (*begins, *ends)
    elif auto != "NOTSET":
        raise UnknownWindow(f"auto_pad {auto}")
    taps = tuple(tuple(d * k - b for k in range(n)) for n, d, b in zip(kernel, dilations, pads[:axes], strict=True))
    size = tuple(
        b + e - d * (n - 1) - 1 for n, d, b, e in zip(kernel, dilations, pads[:axes], pads[axes:], strict=True)
    )
    return taps, strides, size, "conv"


def pad_margins(node: gs.Node, constants: Constants, rank: int) -> list[tuple[int, int]] | None:
    """Return ``(begin, end)`` per axis of a Pad, or None if they are not known.

    Pads are an attribute before opset 11 and an input since; opset 18 adds the axes that they are for.
    """
    names = [v.name for v in node.inputs] + [""] * 4
    pads = node.attrs.get("pads")
    where: list[int] | None = list(range(rank))
    if names[1]:
        constant = constants.get(names[1])
        pads = None if constant is None else constant.values().reshape(-1).tolist()
    if names[3]:
        constant = constants.get(names[3])
        if constant is None:
            return None
        where = counted(constant.values().reshape(-1).tolist(), rank)
    if pads is None or where is None or len(pads) != 2 * len(where):
        return None
    margins = [(0, 0)] * rank
    for axis, begin, end in zip(where, pads[: len(where)], pads[len(where) :], strict=True):
        margins[axis] = (int(begin), int(end))
    return margins
