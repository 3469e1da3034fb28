"""A zoo at a time: each model in a child process of its own, so that none of them can hurt the rest.

The modules of the parent (all but :mod:`onnxrep.batch.child` and :mod:`onnxrep.batch.server`) open no model, and import
neither onnx nor onnxruntime nor numpy.
"""

from onnxrep.batch.records import BatchOptions, Outcome, Summary
from onnxrep.batch.runner import run_batch

__all__ = ["BatchOptions", "Outcome", "Summary", "run_batch"]
