"""Data outside the model: located, contained, opened without following links, and the same file from first to last."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxrep.errors import InvalidModel, OutputError
from onnxrep.escape import printable
from onnxrep.files.tensors import (
    bits,
    check_inside,
    check_sparse,
    described,
    is_external,
    sparse_tensors,
    tensor_bytes,
    tensors,
)

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""How data is opened. A pipe must not hold the run up before it is known to be one."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Stamp:
    """What tells whether a file is still the one that it was."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return the stamp of a file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Piece:
    """The bytes of one tensor in a data file: the file as the model names it, where they start and how many."""

    location: str
    offset: int
    length: int


class Folder:
    """Where a model's external data lies.

    Attributes:
        path: the folder in which locations start, resolved.
        cache: None, or the cache folder of a repository inside which links may be followed; see :func:`cache_of`.

    """

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path, self.cache = path, cache
        self._stamps: dict[str, Stamp] = {}

    @property
    def root(self) -> Path:
        """The folder that no data may lie outside of."""
        return self.cache or self.path

    def unlinked(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a model whose locations start in :attr:`root` and lead to no link: the same one outside a cache."""
        if self.cache is None:
            return model
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for tensor in tensors(copy):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = Path(*self._place(entry.value)[1]).as_posix()
        return copy

    @property
    def locations(self) -> list[str]:
        """The data files that were met, as the model names them, sorted."""
        return sorted(self._stamps)

    def piece(self, tensor: onnx.TensorProto, label: str = "the model") -> Piece:
        """Return where a tensor's data is, after all checks that need no reading.

        Raises:
            InvalidModel: the reference is wrong, or leads where it must not.
            OutputError: the file is not the one that it was.

        """
        entry = {e.key: e.value for e in tensor.external_data}
        location = entry.get("location", "")
        try:
            size = self._size(location)
            offset = int(entry.get("offset", "0"))
            length = int(entry.get("length", str(tensor_bytes(tensor))))
            _check_range(tensor, offset, length, size)
        except ValueError as error:
            why = "offset or length is no number" if not isinstance(error, InvalidModel) else str(error)
            raise InvalidModel(f"{label}: external data of tensor {described(tensor)}: {why}") from None
        return Piece(location, offset, length)

    def _size(self, location: str) -> int:
        """Return the size of a data file, which is looked at once."""
        if location not in self._stamps:
            with self._opened(location) as file:
                self._stamps[location] = Stamp.of(os.fstat(file.fileno()))
        return self._stamps[location].size

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Return a tensor's values, mapped from its file and not copied where numpy has its type.

        Raises:
            InvalidModel, OutputError: see :meth:`piece`.

        """
        piece, dims = self.piece(tensor), tuple(tensor.dims)
        if (bits(tensor.data_type) or 8) < 8:  # several elements share a byte
            packed = onnx.TensorProto(data_type=tensor.data_type, dims=dims, raw_data=b"".join(self.chunks(piece)))
            return numpy_helper.to_array(packed)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
        if not piece.length:
            return np.zeros(dims, dtype)
        start = piece.offset - piece.offset % mmap.ALLOCATIONGRANULARITY
        with self.opened(piece.location) as file:
            view = mmap.mmap(file.fileno(), piece.offset - start + piece.length, access=mmap.ACCESS_READ, offset=start)
        return np.frombuffer(view, dtype=dtype, offset=piece.offset - start, count=math.prod(dims)).reshape(dims)

    def chunks(self, piece: Piece) -> Iterator[bytes]:
        """Yield the bytes of a piece a few MiB at a time.

        Raises:
            OutputError: the file is not the one that it was.

        """
        with self.opened(piece.location) as file:
            file.seek(piece.offset)
            left = piece.length
            while left:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    raise _changed(piece.location)
                left -= len(chunk)
                yield chunk

    def check_unchanged(self) -> None:
        """Make sure that all data files are still those that were read.

        Raises:
            OutputError: one is not.

        """
        for location in self._stamps:
            with self.opened(location):
                pass

    @contextlib.contextmanager
    def opened(self, location: str) -> Iterator[BufferedReader]:
        """Open a data file that was met before, if it is still the same.

        Raises:
            OutputError: it is not.

        """
        try:
            with self._opened(location) as file:
                if Stamp.of(os.fstat(file.fileno())) != self._stamps[location]:
                    raise _changed(location)
                yield file
        except InvalidModel:
            raise _changed(location) from None

    @contextlib.contextmanager
    def _opened(self, location: str) -> Iterator[BufferedReader]:
        """Open a data file after all checks of where it is.

        Raises:
            InvalidModel: it is not where it may be.

        """
        shown = printable(location)
        if not location or "\0" in location:
            raise InvalidModel("no location")
        if Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location:
            raise InvalidModel(f"the location {shown} leaves the model's folder")
        try:
            handle = _open_below(*self._place(location))
        except OSError as error:
            raise InvalidModel(self._why_not_open(shown, error)) from None
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(handle)
            raise InvalidModel(f"{shown} is not a regular file with a single name")
        with os.fdopen(handle, "rb") as file:
            yield file

    def _place(self, location: str) -> tuple[Path, Sequence[str]]:
        """Return the folder that holds a data file, and the way from there; links are resolved in a cache alone."""
        if self.cache is None:
            return self.path, Path(location).parts
        real = (self.path / location).resolve(strict=True)
        if not real.is_relative_to(self.cache):
            raise InvalidModel(f"{printable(location)} leads out of the cache {printable(str(self.cache))}")
        return self.cache, real.relative_to(self.cache).parts

    def _why_not_open(self, shown: str, error: OSError) -> str:
        """Say why a data file could not be opened."""
        if error.errno == errno.ENOENT:
            return f"{shown} is missing beside the model"
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
            hint = "; --hf-cache reads a Hugging Face cache" if cache_of(self.path) else ""
            return f"{shown} is a link or leaves the model's folder{hint}"
        return f"{shown} cannot be opened ({error.strerror})"


def cache_of(folder: Path) -> Path | None:
    """Return the cache folder of a repository (it holds ``blobs`` and ``snapshots``) that a snapshot lies in, if any.

    In a Hugging Face cache, the files of ``snapshots/REVISION`` are links into ``blobs``.
    """
    for parent in folder.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent
    return None


def array(tensor: onnx.TensorProto, folder: Folder | None) -> NDArray[Any]:
    """Return a tensor's values in its own type; external data is mapped, not copied.

    Raises:
        InvalidModel, OutputError: see :meth:`Folder.piece`.

    """
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    assert folder is not None  # a model in memory has no external data
    return folder.array(tensor)


def check_tensors(model: onnx.ModelProto, folder: Folder | None, label: str) -> None:
    """Check every tensor's dims against its data, and every external reference, without reading any data.

    Raises:
        InvalidModel: one is wrong.

    """
    for tensor in tensors(model):
        check_inside(tensor, label)
        if not is_external(tensor):
            continue
        if folder is None:
            why = "the model was given in memory, so there is no folder to look in; give its path instead"
            raise InvalidModel(f"{label}: external data of tensor {described(tensor)}: {why}")
        folder.piece(tensor, label)
    for sparse in sparse_tensors(model):
        check_sparse(sparse, label)


def _check_range(tensor: onnx.TensorProto, offset: int, length: int, size: int) -> None:
    """Check that a tensor's bytes are as many as its dims ask for, and inside a file of ``size`` bytes."""
    if bits(tensor.data_type) is None or length != tensor_bytes(tensor):
        raise InvalidModel(f"{length} bytes for dims {list(tensor.dims)}")
    if offset < 0 or offset + length > size:
        raise InvalidModel(f"bytes {offset} to {offset + length} of a file of {size}")


def _open_below(folder: Path, parts: Sequence[str]) -> int:
    """Return a handle of the file ``parts`` below a folder; no part of the way may be a link."""
    if os.open not in os.supports_dir_fd:
        path = folder.joinpath(*parts)
        if path.resolve() != path:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.open(path, _READ)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts[:-1]:
        try:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    try:
        return os.open(parts[-1], _READ | _NO_LINK, dir_fd=handle)
    finally:
        os.close(handle)


def _changed(location: str) -> OutputError:
    """Return the complaint that a data file is not the one that was read first."""
    return OutputError(f"{printable(location)} changed while the model was worked on; nothing was written")
