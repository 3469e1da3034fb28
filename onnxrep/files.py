"""File to ModelProto and back: external data that is checked before it is read, and replacement that is atomic.

A model is hostile input. What it says of other files is canonicalised, contained in the model's own folder and opened
without following links; what it says of its own sizes is checked in Python integers before anything is allocated.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxrep import machine
from onnxrep.errors import InvalidModel, MissingInput, OutputError, UsageError
from onnxrep.printing import printable

INLINE_LIMIT = 1 << 30
"""Bytes of tensors that may lie inside one file; protobuf itself ends at 2 GiB."""

ALIGNMENT = 4096
"""External tensors start at multiples of this, so that a runtime can map them."""

_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class ModelFile:
    """A model as it was read.

    Attributes:
        path: the file, or None for a model that was handed over in memory.
        data: the bytes of the file (or of the message handed over), never changed.
        model: the parsed message; external tensors stay references.
        folder: where references to external data start, or None where there can be none.

    """

    path: Path | None
    data: bytes
    model: onnx.ModelProto
    folder: Path | None

    @property
    def digest(self) -> str:
        """SHA-256 of the model's bytes, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def fresh(self) -> onnx.ModelProto:
        """Return the message as it was read, parsed anew."""
        model = onnx.ModelProto()
        model.ParseFromString(self.data)
        return model

    @property
    def external_size(self) -> int:
        """Bytes of external data that the model refers to."""
        return sum(tensor_bytes(t) for t in tensors(self.model) if is_external(t))


def read(path: Path) -> ModelFile:
    """Read a model without its external data.

    Raises:
        MissingInput: there is no such file, or it is no regular file.
        InvalidModel: it is not an ONNX model, or its sizes or references are wrong.

    """
    if not path.exists():
        raise MissingInput(f"{path}: no such file")
    if path.is_dir():
        raise MissingInput(f"{path}: is a folder; name one .onnx file")
    if not path.is_file():
        raise MissingInput(f"{path}: is not a regular file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingInput(f"{path}: cannot be read ({error.strerror})") from None
    return parse(data, path)


def parse(data: bytes, path: Path | None = None) -> ModelFile:
    """Parse and check the bytes of a model; ``path`` is where they came from.

    Raises:
        InvalidModel: see :func:`read`.

    """
    label = str(path) if path else "the model"
    if not data:
        raise InvalidModel(f"{label}: empty file")
    if data.startswith(_LFS):
        raise InvalidModel(f"{label}: a Git LFS pointer, not the model; run 'git lfs pull' first")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError) as error:
        what = "graphs are nested too deep" if "depth" in str(error) else "not an ONNX file (or a truncated one)"
        raise InvalidModel(f"{label}: {what}") from None
    folder = path.resolve().parent if path else None
    source = ModelFile(path, data, model, folder)
    _check_tensors(source, label)
    return source


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor of a model: initializers and attributes, in subgraphs and local functions too."""
    graphs = [model.graph]
    nodes: list[onnx.NodeProto] = [n for f in model.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
        nodes = []


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data lies in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def array(tensor: onnx.TensorProto, folder: Path | None) -> NDArray[Any]:
    """Return a tensor's values in its own type; external data is mapped, not copied.

    Raises:
        InvalidModel: the external reference is wrong.

    """
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    path, offset, length = _locate(tensor, folder)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if length == 0:
        return np.zeros(tuple(tensor.dims), dtype)
    with _open_contained(path) as file:
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        view = mmap.mmap(file.fileno(), offset - start + length, access=mmap.ACCESS_READ, offset=start)
    flat = np.frombuffer(
        view, dtype=np.dtype(dtype).newbyteorder("<"), offset=offset - start, count=math.prod(tensor.dims)
    )
    return flat.reshape(tuple(tensor.dims))


def _bits(data_type: int) -> int | None:
    """Return the size of one element, or None where it is not fixed."""
    if data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return None
    packed = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    try:
        name = onnx.TensorProto.DataType.Name(data_type)
        return packed.get(name) or 8 * int(np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize)
    except (KeyError, ValueError):
        return None


_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes that the dims ask for, in Python integers (0 where the type has no fixed size)."""
    return (math.prod(tensor.dims) * (_bits(tensor.data_type) or 0) + 7) // 8


def _check_tensors(source: ModelFile, label: str) -> None:
    """Check every tensor's dims against its data, and every external reference, without reading any data."""
    for tensor in tensors(source.model):
        name = printable(tensor.name or "(unnamed)")
        if any(d < 0 for d in tensor.dims):
            raise InvalidModel(f"{label}: tensor {name} has a negative dimension")
        if tensor.data_type not in _TYPES:
            raise InvalidModel(f"{label}: tensor {name} has the unknown type {tensor.data_type}")
        if is_external(tensor):
            _locate(tensor, source.folder, label)
        elif tensor.HasField("raw_data") and _bits(tensor.data_type) and len(tensor.raw_data) != tensor_bytes(tensor):
            sizes = f"{len(tensor.raw_data)} bytes of data for dims {list(tensor.dims)}"
            raise InvalidModel(f"{label}: tensor {name} has {sizes}")
        elif not tensor.HasField("raw_data") and _bits(tensor.data_type):
            _check_typed(tensor, name, label)


def _check_typed(tensor: onnx.TensorProto, name: str, label: str) -> None:
    """Check the element count of a tensor whose values lie in a typed field."""
    stored = len(tensor.float_data) + len(tensor.int32_data) + len(tensor.int64_data)
    stored += len(tensor.double_data) + len(tensor.uint64_data)
    wanted = math.prod(tensor.dims)
    bits = _bits(tensor.data_type) or 8
    per_field = 8 // bits if bits < 8 else 1
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        wanted *= 2
    if stored != -(-wanted // per_field):
        raise InvalidModel(f"{label}: tensor {name} has {stored} values for dims {list(tensor.dims)}")


def _locate(tensor: onnx.TensorProto, folder: Path | None, label: str = "the model") -> tuple[Path, int, int]:
    """Return ``(path, offset, length)`` of an external tensor after all checks that need no reading."""

    def refuse(why: str) -> InvalidModel:
        return InvalidModel(f"{label}: external data of tensor {printable(tensor.name or '(unnamed)')}: {why}")

    entry = {e.key: e.value for e in tensor.external_data}
    location = entry.get("location", "")
    if folder is None:
        raise refuse("the model was given in memory, so there is no folder to look in; give its path instead")
    if not location or "\0" in location:
        raise refuse("no location")
    if Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location:
        raise refuse(f"the location {printable(location)} leaves the model's folder")
    path = folder / location
    if not path.exists():
        raise refuse(f"{printable(location)} is missing beside the model")
    if not path.resolve().is_relative_to(folder) or path.is_symlink():
        raise refuse(f"{printable(location)} is a link or leaves the model's folder")
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise refuse(f"{printable(location)} is not a regular file with a single name")
    try:
        offset = int(entry.get("offset", "0"))
        length = int(entry.get("length", str(tensor_bytes(tensor))))
    except ValueError:
        raise refuse("offset or length is no number") from None
    if _bits(tensor.data_type) is None or length != tensor_bytes(tensor):
        raise refuse(f"{length} bytes for dims {list(tensor.dims)}")
    if offset < 0 or offset + length > status.st_size:
        raise refuse(f"bytes {offset} to {offset + length} of a file of {status.st_size}")
    return path, offset, length


@contextlib.contextmanager
def _open_contained(path: Path) -> Iterator[IO[bytes]]:
    """Open a checked path for reading, refusing a link that took its place meanwhile."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        yield file


def check_target(target: Path, follow_symlinks: bool = False) -> None:
    """Check, before any work is done, that a file could be written at ``target``.

    Raises:
        UsageError: its folder is missing, or it is a folder, a device or a link.
        OutputError: its folder is not writable.

    """
    if target.is_dir():
        raise UsageError(f"{target}: is a folder; name the output file")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target}: is no regular file")
    if target.is_symlink() and not follow_symlinks:
        raise UsageError(f"{target}: is a symbolic link; --follow-symlinks writes through it")
    folder = target.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{target}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{target}: the folder {folder} is not writable")


def write(
    target: Path,
    model: onnx.ModelProto,
    source: ModelFile,
    *,
    changed: bool = True,
    external: bool = False,
    follow_symlinks: bool = False,
    check: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """Write a model at ``target``, whole or not at all, and return the files written (data first, model last).

    Tensors that lie in the source's external files stay there if ``target`` is in the same folder; otherwise they are
    copied as a stream into one new data file, named by its content.

    Args:
        target: the output path.
        model: what to write.
        source: where ``model`` came from.
        changed: whether ``model`` differs from the source; if not, and nothing moves, the source's bytes are written.
        external: put every tensor of 1 KiB or more into the data file.
        follow_symlinks: write through a link at ``target`` instead of refusing it.
        check: called with the path of the complete temporary model before it takes the target's place; may raise.

    Raises:
        OutputError: the disk is full, or the folder not writable; what was at ``target`` is untouched.

    """
    check_target(target, follow_symlinks)
    target = target.resolve() if follow_symlinks else target
    remove_stale(target.parent)
    written: list[Path] = []
    try:
        outside = _to_move(model, source, target, external)
        if outside:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            model, changed = copy, True
            written.append(_write_data(target, _to_move(model, source, target, external), source.folder))
        data = model.SerializeToString(deterministic=True) if changed else source.data
        with _temporary(target.parent) as (file, name):
            file.write(data)
            _settle(file)
            if Path(name).read_bytes() != data:
                raise OutputError(f"{target}: what was written does not read back the same")
            check(Path(name))
            os.replace(name, target)
        _settle_folder(target.parent)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{target}: not written ({error.strerror or error}); nothing there was changed") from None
    return [*written, target]


def _to_move(model: onnx.ModelProto, source: ModelFile, target: Path, external: bool) -> list[onnx.TensorProto]:
    """Return the tensors of ``model`` that belong into a new data file beside ``target``."""
    same_folder = source.folder is not None and target.resolve().parent == source.folder
    every = list(tensors(model))
    inline = [t for t in every if not is_external(t) and len(t.raw_data) >= 1024]
    spill = external or sum(len(t.raw_data) for t in inline) > INLINE_LIMIT
    stay = same_folder and not external
    return [t for t in every if is_external(t) and not stay] + (inline if spill else [])


def write_bytes(target: Path, data: bytes) -> None:
    """Write a small file (a report) with the same protocol as a model."""
    try:
        with _temporary(target.resolve().parent) as (file, name):
            file.write(data)
            _settle(file)
            os.replace(name, target)
    except OSError as error:
        raise OutputError(f"{target}: not written ({error.strerror or error})") from None


def _write_data(target: Path, outside: list[onnx.TensorProto], folder: Path | None) -> Path:
    """Stream tensors into a new data file beside ``target``, point them to it, and return its path."""
    digest = hashlib.sha256()
    places: list[tuple[onnx.TensorProto, int, int]] = []
    with _temporary(target.parent) as (file, name):
        at = 0
        for tensor in outside:
            pad = -at % ALIGNMENT
            for chunk in (b"\0" * pad, *_chunks(tensor, folder)):
                file.write(chunk)
                digest.update(chunk)
                at += len(chunk)
            size = tensor_bytes(tensor)
            places.append((tensor, at - size, size))
        _settle(file)
        content = digest.hexdigest()
        for length in (12, 64):
            final = target.parent / f"{target.stem}.{content[:length]}.data"
            if not os.path.lexists(final):
                os.replace(name, final)
                break
            if _holds(final, content):
                os.unlink(name)  # a former run wrote it
                break
        else:
            raise OutputError(f"{final}: is there already, with other content")
    for tensor, offset, size in places:
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", final.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    return final


def _holds(path: Path, content: str) -> bool:
    """Whether a path is a regular file with this SHA-256."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == content


def _chunks(tensor: onnx.TensorProto, folder: Path | None, step: int = 1 << 22) -> Iterator[bytes]:
    """Yield a tensor's raw bytes in pieces."""
    if not is_external(tensor):
        yield tensor.raw_data
        return
    path, offset, length = _locate(tensor, folder)
    with _open_contained(path) as file:
        file.seek(offset)
        while length:
            piece = file.read(min(step, length))
            if not piece:
                raise InvalidModel(f"{printable(path.name)} became shorter while it was read")
            length -= len(piece)
            yield piece


_PREFIX = ".onnxrep-"


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Yield a new file in ``folder`` and its name; it is gone afterwards unless it was moved away."""
    name = ""
    for attempt in range(1000):
        name = str(folder / f"{_PREFIX}{socket.gethostname()}-{os.getpid()}-{attempt}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(name, flags, 0o666)
            break
        except FileExistsError:
            continue
    else:
        raise OutputError(f"{folder}: cannot make a temporary file")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _settle(file: IO[bytes]) -> None:
    """Bring a file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def _settle_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the platform allows it."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove temporary files that dead runs of this host left in ``folder``."""
    start = f"{_PREFIX}{socket.gethostname()}-"
    for path in folder.glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(start).partition("-")[0]
        if path.name.startswith(start) and owner.isdigit() and not machine.alive(int(owner)):
            with contextlib.suppress(OSError):
                path.unlink()
