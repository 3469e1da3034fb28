"""File to ModelProto and back: external data that is checked before it is read, and replacement that is atomic.

A model is hostile input. What it says of other files is canonicalised, contained in the model's own folder and opened
without following links; what it says of its own sizes is checked in Python integers before anything is allocated.
"""

from __future__ import annotations

from onnxrep.files.external import Folder, array, check_tensors
from onnxrep.files.message import LARGEST_MESSAGE, MessageTooLarge, serialized
from onnxrep.files.reading import ModelFile, parse, read
from onnxrep.files.temporary import check_target, remove_stale, write_bytes
from onnxrep.files.tensors import is_external, refer, sparse_tensors, tensor_bytes, tensors, weight_bytes
from onnxrep.files.writing import ALIGNMENT, write

__all__ = [
    "ALIGNMENT",
    "LARGEST_MESSAGE",
    "Folder",
    "MessageTooLarge",
    "ModelFile",
    "array",
    "check_target",
    "check_tensors",
    "is_external",
    "parse",
    "read",
    "refer",
    "remove_stale",
    "serialized",
    "sparse_tensors",
    "tensor_bytes",
    "tensors",
    "weight_bytes",
    "write",
    "write_bytes",
]
