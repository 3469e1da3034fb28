"""A file, or bytes, to a parsed message whose sizes and references are right."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxrep.errors import InvalidModel, MissingInput, OutputError
from onnxrep.files.external import Folder, Stamp, cache_of, check_tensors
from onnxrep.files.message import LARGEST_MESSAGE
from onnxrep.files.tensors import is_external, tensor_bytes, tensors

_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class ModelFile:
    """A model as it was read.

    Attributes:
        path: the file, or None for a model that was handed over in memory.
        data: the bytes of the file (or of the message handed over), never changed.
        model: the parsed message; external tensors stay references.
        folder: where references to external data start, or None where there are none.
        stamp: which file it was, or None for a model in memory.

    """

    path: Path | None
    data: bytes
    model: onnx.ModelProto
    folder: Folder | None
    stamp: Stamp | None = None

    @cached_property
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

    @cached_property
    def external_digests(self) -> dict[str, str]:
        """The SHA-256 of each external data file by its location; reads all of them.

        Raises:
            OutputError: one is no longer the file that it was.

        """
        digests: dict[str, str] = {}
        if self.folder is None:
            return digests
        for location in self.folder.locations:
            with self.folder.opened(location) as file:
                digests[location] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests


def read(path: Path, hf_cache: bool = False) -> ModelFile:
    """Read a model without its external data.

    Args:
        path: the file.
        hf_cache: follow links that stay inside the cache folder of a Hugging Face repository.

    Raises:
        MissingInput: there is no such file, or it is no regular file.
        InvalidModel: it is not an ONNX model, or its sizes or references are wrong.
        OutputError: it changed while it was read.

    """
    try:
        if not path.exists():
            raise MissingInput(f"{path}: no such file")
        if path.is_dir():
            raise MissingInput(f"{path}: is a folder; name one .onnx file")
        if not path.is_file():
            raise MissingInput(f"{path}: is not a regular file")
        with path.open("rb") as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
            if stamp.size > LARGEST_MESSAGE:
                raise InvalidModel(
                    f"{path}: {stamp.size} bytes; an ONNX file ends at 2 GiB; save it with external data"
                )
            data = file.read(stamp.size + 1)
            if len(data) != stamp.size or Stamp.of(os.fstat(file.fileno())) != stamp:
                raise OutputError(f"{path}: changed while it was read; run it again when it is whole")
    except OSError as error:
        if isinstance(error, MissingInput | OutputError):
            raise
        raise MissingInput(f"{path}: cannot be read ({error.strerror})") from None
    return parse(data, path, stamp, hf_cache)


def parse(data: bytes, path: Path | None = None, stamp: Stamp | None = None, hf_cache: bool = False) -> ModelFile:
    """Parse and check the bytes of a model; ``path`` and ``stamp`` say which file they came from.

    Raises:
        InvalidModel: see :func:`read`.

    """
    label = str(path) if path else "the model"
    if not data:
        raise InvalidModel(f"{label}: empty file; the export or download did not finish")
    if data.startswith(_LFS):
        raise InvalidModel(f"{label}: a Git LFS pointer, not the model; run 'git lfs pull' first")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError) as error:
        what = "graphs are nested too deep" if "depth" in str(error) else "not an ONNX file (or a truncated one)"
        raise InvalidModel(f"{label}: {what}") from None
    folder = _folder(path, model, hf_cache) if path else None
    check_tensors(model, folder, label)
    return ModelFile(path, data, model, folder if folder and folder.locations else None, stamp)


def _folder(path: Path, model: onnx.ModelProto, hf_cache: bool) -> Folder:
    """Return where the external data of a model file lies."""
    parent = path.parent.resolve()
    known = cache_of(parent)
    cache = known if hf_cache else None
    if cache is not None and not path.resolve().is_relative_to(cache):
        raise InvalidModel(f"{path}: leads out of the cache {cache}")
    if cache is None and path.is_symlink() and any(map(is_external, tensors(model))):
        remedy = "add --hf-cache" if known else f"give the path of the file itself, {path.resolve()}"
        what = "a symbolic link to a model with external data, which could lie beside either"
        raise InvalidModel(f"{path}: {what}; {remedy}")
    return Folder(parent, cache)
