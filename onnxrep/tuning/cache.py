"""Times that were taken before, by the content of what was timed: one small JSON file each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnxrep import files
from onnxrep.errors import OutputError
from onnxrep.timing.statistics import FEWEST

SCHEMA = 1
_LARGEST = 1 << 16


def default_folder() -> Path:
    """Return where the platform wants caches of a user to lie."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "")
        return (Path(root) if root else Path.home() / "AppData/Local") / "onnxrep" / "tune"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/onnxrep/tune"
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "onnxrep" / "tune"


class Cache:
    """A folder of entries. What cannot be read or written, or is not of this kind, is as if it were not there."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder: Path | None = folder
        if folder is None:
            with contextlib.suppress(RuntimeError):  # a user without a home
                self._folder = default_folder()

    def load(self, key: str, names: Sequence[str]) -> dict[str, list[float]] | None:
        """Return the times of each candidate, or None if there are none."""
        if self._folder is None:
            return None
        path = self._folder / f"{key}.json"
        try:
            if path.stat().st_size > _LARGEST:
                return None
            entry = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or (entry.get("schema"), entry.get("key")) != (SCHEMA, key):
            return None
        seconds = entry.get("seconds")
        if not isinstance(seconds, dict) or sorted(seconds) != sorted(names):
            return None
        counts = {len(s) if isinstance(s, list) else 0 for s in seconds.values()}
        if (
            len(counts) != 1
            or min(counts) < FEWEST
            or not all(_is_time(x) for s in seconds.values() if isinstance(s, list) for x in s)
        ):
            return None
        return {n: [float(x) for x in seconds[n]] for n in names}

    def store(self, key: str, seconds: Mapping[str, Sequence[float]]) -> None:
        """Keep the times of each candidate."""
        if self._folder is None:
            return
        entry = {
            "schema": SCHEMA,
            "key": key,
            "seconds": {n: [float(f"{x:.4g}") for x in s] for n, s in seconds.items()},
        }
        with contextlib.suppress(OSError, OutputError):
            self._folder.mkdir(parents=True, exist_ok=True)
            files.write_bytes(self._folder / f"{key}.json", json.dumps(entry).encode())


def _is_time(value: Any) -> bool:
    """Whether this is a number of seconds."""
    return isinstance(value, float) and 0.0 < value < math.inf


def fingerprint(models: Mapping[str, onnx.ModelProto], about: Sequence[Any]) -> str:
    """Return a hash of some models, whatever their values are called and their float weights are, and of more."""
    digest = hashlib.sha256(repr((SCHEMA, *about)).encode())
    for name, model in models.items():
        digest.update(b"\0" + name.encode() + b"\0" + _anonymous(model).SerializeToString(deterministic=True))
    return digest.hexdigest()[:40]


def _anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model whose values are numbered and whose float tensors are empty."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    found.ClearField("metadata_props")
    names: dict[str, str] = {"": ""}
    graph = found.graph

    def number(name: str) -> str:
        return names.setdefault(name, str(len(names)))

    for value in (*graph.input, *graph.output):
        value.name = number(value.name)
    for node in graph.node:
        node.name = node.doc_string = ""
        node.ClearField("metadata_props")
        for group in (node.input, node.output):
            renamed = [number(name) for name in group]
            del group[:]
            group.extend(renamed)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _empty(attribute.t)
    for tensor in graph.initializer:
        tensor.name = number(tensor.name)
        _empty(tensor)
    ordered = sorted(graph.initializer, key=lambda t: int(t.name))
    copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in ordered]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    return found


def _empty(tensor: onnx.TensorProto) -> None:
    """Take the values from a tensor of floats, and from large ones: their number is what counts."""
    integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    if tensor.data_type in integers and files.tensor_bytes(tensor) <= 1024 and not files.is_external(tensor):
        return
    kept = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    tensor.CopyFrom(kept)
