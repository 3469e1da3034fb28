"""Fold the parallel branches of exported ONNX models into single convolutions, and prove that nothing else changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxrep.batch import BatchOptions, run_batch
    from onnxrep.options import Options
    from onnxrep.passes import fold
    from onnxrep.pipeline import Result, bench, inspect, optimize, verify
    from onnxrep.report.records import Comparison

__all__ = [
    "BatchOptions",
    "Comparison",
    "Options",
    "Result",
    "__version__",
    "bench",
    "fold",
    "inspect",
    "optimize",
    "run_batch",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the interface when it is first used: the command line's help needs none of it."""
    if name in ("BatchOptions", "run_batch"):
        from onnxrep import batch

        return getattr(batch, name)
    if name == "fold":
        from onnxrep.passes import fold

        return fold
    if name == "Options":
        from onnxrep.options import Options

        return Options
    if name == "Comparison":
        from onnxrep.report.records import Comparison

        return Comparison
    if name in __all__:
        from onnxrep import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
