"""``python -m onnxrep``."""

from onnxrep.cli import run

run()
