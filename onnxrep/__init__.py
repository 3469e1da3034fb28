"""Fold the parallel branches of exported ONNX models into single convolutions, and prove that the function is the same."""

__version__ = "0.1.0"
