"""How fast an execution provider is: what estimates of time rest on.

``make calibrate`` measures the figures of a machine and prints them in the form in which they stand here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

POINTWISE, DENSE, GROUPED, DEPTHWISE, PRODUCT = KINDS = ("pointwise", "dense", "grouped", "depthwise", "product")
"""Convolutions that a runtime has kernels of their own for, and products of matrices."""


@dataclass(frozen=True)
class Rates:
    """How fast a provider is, and what it fuses by itself.

    Attributes:
        pointwise, dense, grouped, depthwise, product: multiply-accumulates per second of convolutions with one tap,
            with several, of groups, of groups of one channel, and of matrix products.
        dilated: by what share of these a dilated convolution of one channel per group, and another, runs.
        elements: elements read or written per second by element-wise ops.
        launch: seconds that a kernel takes to start.
        fuses_scales: whether a scale or shift by constants costs nothing behind a convolution.
        fuses_sums: whether the sum of two images costs no kernel where one is made by a convolution.
        splits: whether a Concat may be taken apart: measured to pay, or not known.
        measured: whether these are figures of a device, or guesses on which nothing may rest alone.
    """

    pointwise: float
    dense: float
    grouped: float
    depthwise: float
    product: float
    dilated: tuple[float, float]
    elements: float
    launch: float
    fuses_scales: bool
    fuses_sums: bool
    splits: bool
    measured: bool

    def macs(self, kind: str, *, dilated: bool = False) -> float:
        """Return the multiply-accumulates per second of a kind of convolution or product."""
        speed: float = getattr(self, kind)
        return speed * (self.dilated[kind != DEPTHWISE] if dilated else 1.0)


def kind_of(weight: Sequence[int], group: int) -> str:
    """Return the kind of a convolution with a weight of shape ``[Co, Ci / group, *kernel]``."""
    if group > 1:
        return DEPTHWISE if weight[1] == 1 else GROUPED
    return POINTWISE if all(k == 1 for k in weight[2:]) else DENSE


RATES: Mapping[str, Rates] = MappingProxyType(
    {
        "cpu": Rates(
            5.5e10, 5.7e10, 5.5e10, 3.3e10, 5.4e10, (1.0, 1.0), 3.1e10, 2e-7,
            fuses_scales=True, fuses_sums=True, splits=True, measured=True,
        ),
        "cuda": Rates(
            4e12, 4e12, 1e12, 5e11, 4e12, (1.0, 1.0), 1.5e11, 1e-5,
            fuses_scales=True, fuses_sums=False, splits=False, measured=False,
        ),
    }
)  # fmt: skip
"""Per execution provider: of one core of an x86-64 server with AVX-512 under ONNX Runtime 1.31; of CUDA nothing has
been measured, and what only rates can decide is not done there."""
