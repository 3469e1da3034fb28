"""A model's float64 twin as it runs: which ops it must leave in float32, and where its weights are kept."""

from __future__ import annotations

import math
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrep import files, machine
from onnxrep.errors import OutputError
from onnxrep.proof.errors import CannotRun, NeedsSizes, NoTwin
from onnxrep.proof.inputs import InputSet
from onnxrep.proof.sessions import Runtime, Session
from onnxrep.proof.sides import Side
from onnxrep.proof.twin import FLOATS, MARK, Twin

MEMORY_LIMIT = 1 << 30
"""Bytes of float64 weights that may lie in memory."""

_MOST_ISLANDS = 24
_DOUBLE = 8


class Reference:
    """A model's float64 twin: built when it first runs, or before; one for all sizes, or where that cannot be many."""

    def __init__(self, side: Side, watched: Sequence[str], runtime: Runtime, *, moved: bool = False) -> None:
        """``watched``: values that are outputs besides the model's own; ``moved`` as in :class:`Twin`."""
        self.islands: set[str] = set()
        """Op types that run in float32, of the twins that have run."""
        self._side, self._watched, self._moved = side, watched, moved
        self._runtime = replace(runtime, provider="cpu")
        self._sessions: dict[Any, Session] = {}
        self._building = threading.Lock()
        self._begun: Future[tuple[Session, list[str]]] | None = None

    def begin(self, pool: Executor) -> None:
        """Begin to build it, if that has not begun."""
        self._begun = self._begun or pool.submit(self._built, None)

    def run(self, inputs: InputSet) -> dict[str, Any]:
        """Return the outputs.

        Raises:
            NoTwin: there is none that runs.

        """
        feeds = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.feeds.items()}
        session = self._session({k: v.shape for k, v in inputs.feeds.items()})
        try:
            return session.run(feeds)
        except CannotRun as error:
            raise NoTwin(f"it does not run on {inputs.name}: {error}") from None

    def stop(self) -> None:
        """End the runs that go on; there will be no others."""
        for session in list(self._sessions.values()):
            session.stop()

    def _session(self, shapes: Mapping[str, tuple[int, ...]]) -> Session:
        """Return a session for inputs of these shapes."""
        key: tuple[tuple[str, tuple[int, ...]], ...] | None = tuple(shapes.items())
        with self._building:
            for known in (None, key):
                if known in self._sessions:
                    return self._sessions[known]
            try:
                session, islands = self._begun.result() if self._begun else self._built(None)
                key = None
            except NeedsSizes:
                session, islands = self._built(shapes)
            self.islands |= set(islands)
            return self._sessions.setdefault(key, session)

    def _built(self, shapes: Mapping[str, tuple[int, ...]] | None) -> tuple[Session, list[str]]:
        """Build a twin; return it with its islands."""
        source = onnx.ModelProto()
        source.CopyFrom(self._side.model)
        for name in self._watched:
            source.graph.output.add(name=name)
        return session_of_twin(source, self._side.folder, self._runtime, shapes, self._moved)


def session_of_twin(
    model: onnx.ModelProto,
    folder: files.Folder | None,
    runtime: Runtime,
    shapes: Mapping[str, tuple[int, ...]] | None,
    moved: bool = False,
) -> tuple[Session, list[str]]:
    """Return a session of a model's float64 twin, and its islands: ops for which there is no double kernel.

    The weights of a large twin lie in a temporary file, which ONNX Runtime maps; ``moved`` as in :class:`Twin`.

    Raises:
        NoTwin: there is none.

    """
    size = sum(_DOUBLE * math.prod(t.dims) for t in files.tensors(model) if t.data_type in FLOATS)
    forced: frozenset[str] = frozenset()
    for _ in range(_MOST_ISLANDS):
        try:
            return _session(model, folder, runtime, shapes, forced, size, moved)
        except CannotRun as error:
            missing = re.search(rf"implementation for (\w+)\(|(\w+){re.escape(MARK)}", str(error))
            culprit = missing and (missing[1] or missing[2])
            if not culprit or culprit in forced:
                raise NoTwin(str(error)) from None
            forced |= {culprit}
    raise NoTwin("too many ops have no double kernel")


def _session(
    model: onnx.ModelProto,
    folder: files.Folder | None,
    runtime: Runtime,
    shapes: Mapping[str, tuple[int, ...]] | None,
    forced: frozenset[str],
    size: int,
    moved: bool,
) -> tuple[Session, list[str]]:
    """Return a session of a twin whose weights take ``size`` bytes, and the twin's islands.

    Raises:
        CannotRun: ONNX Runtime does not load it.
        NoTwin: there is none.

    """
    if size <= MEMORY_LIMIT:
        held: dict[str, NDArray[Any]] = {}
        twin = Twin(model, folder, forced, shapes, partial(_hold, held), moved=moved)
        session = runtime.session(twin.model, "off", reuse_memory=False, weights=held, defaults=twin.defaults)
        return session, twin.islands
    with machine.scratch() as name:
        free = shutil.disk_usage(name).free
        if size > free:
            raise NoTwin(f"its weights take {size / 2**30:.0f} GiB in {name}, where {free / 2**30:.0f} GiB are free")
        try:
            with (name / "weights").open("wb") as file:
                twin = Twin(model, folder, forced, shapes, partial(_append, file), moved=moved)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise NoTwin(f"its weights cannot be kept in {name}: {error.strerror or error}") from None
        session = runtime.session(twin.model, "off", files.Folder(name), reuse_memory=False, defaults=twin.defaults)
        return session, twin.islands


def _hold(held: dict[str, NDArray[Any]], tensor: onnx.TensorProto, values: NDArray[Any]) -> None:
    """Keep a tensor's values in memory, under its name."""
    files.refer(tensor, "memory", 0)
    held[tensor.name] = values


def _append(file: BinaryIO, tensor: onnx.TensorProto, values: NDArray[Any]) -> None:
    """Append a tensor's values to a file in the folder of the model."""
    file.write(bytes(-file.tell() % files.ALIGNMENT))
    files.refer(tensor, Path(file.name).name, file.tell())
    file.write(values.data)
