"""Fold the parallel branches of exported ONNX models into single convolutions, and prove that nothing else changed."""

__version__ = "0.1.0"
