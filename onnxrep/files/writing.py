"""A model to a file, whole or not at all: its data first, then the message, then what nothing needs any more goes."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import onnx

from onnxrep.errors import InvalidModel, OutputError
from onnxrep.files.external import Folder, Piece, Stamp, check_tensors
from onnxrep.files.message import MessageTooLarge, serialized
from onnxrep.files.reading import ModelFile
from onnxrep.files.temporary import check_target, not_written, remove_stale, settle, settle_folder, temporary
from onnxrep.files.tensors import is_external, refer, tensor_bytes, tensors

INLINE_LIMIT = 1 << 30
"""Bytes of tensors that may lie inside one file; protobuf itself ends at 2 GiB."""

ALIGNMENT = 4096
"""External tensors start at multiples of this, so that a runtime can map them."""

_SMALL = 1024
_CHUNK = 1 << 20
_DIGITS = (12, 64)
"""How much of its content's hash a data file has in its name: all of it where the short name is taken."""
_HASH = rf"([0-9a-f]{{{_DIGITS[0]}}}|[0-9a-f]{{{_DIGITS[1]}}})"


def write(
    target: Path,
    model: onnx.ModelProto,
    source: ModelFile,
    *,
    changed: bool = True,
    ran: bytes | None = None,
    external: bool = False,
    follow_symlinks: bool = False,
    check: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """Write a model at ``target``, whole or not at all, and return the files written (data first, model last).

    Tensors that lie in the source's external files stay there if ``target`` is in the same folder; otherwise they are
    copied as a stream into one new data file, named by its content. The data file of an older output at ``target`` goes
    if this package wrote it and no model in the folder refers to it.

    Args:
        target: the output path; the source's own path replaces the source.
        model: what to write.
        source: where ``model`` came from.
        changed: whether ``model`` differs from the source; if not, and nothing moves, the source's bytes are written.
        ran: the bytes of ``model`` if they, but for more outputs behind them, were run already.
        external: put every tensor of 1 KiB or more into the data file.
        follow_symlinks: write through a link at ``target`` instead of refusing it.
        check: called with the path of the complete temporary model before it takes the target's place, unless all of it
            is ``ran``; may raise.

    Raises:
        OutputError: the disk is full, the folder not writable, or the source's data changed; what was at ``target`` is
            untouched.

    """
    check_target(target, follow_symlinks)
    target = target.resolve() if follow_symlinks else target
    with not_written(target), contextlib.ExitStack() as undo:
        remove_stale(target.parent)
        older = _own_data(target)
        data_file = None
        if _to_move(model, source, target, external):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            model, changed, ran = copy, True, None
            data_file = _write_data(target, _to_move(model, source, target, external), source.folder, undo)
        data = source.data if not changed else ran or _serialized(model, target)
        with temporary(target.parent) as (file, name):
            file.write(data)
            settle(file)
            _check_source(source, target)
            _check_written(Path(name), data, model, target)
            if data is not ran or any(map(is_external, tensors(model))):
                check(Path(name))
                _check_source(source, target)  # what was checked meanwhile took its time
            os.replace(name, target)
        settle_folder(target.parent)
    _remove_unused(older, target)
    return [data_file, target] if data_file else [target]


def _to_move(model: onnx.ModelProto, source: ModelFile, target: Path, external: bool) -> list[onnx.TensorProto]:
    """Return the tensors of ``model`` that belong into a new data file beside ``target``."""
    every = list(tensors(model))
    inline = [t for t in every if t.HasField("raw_data") and not is_external(t) and tensor_bytes(t) >= _SMALL]
    spill = external or sum(map(tensor_bytes, inline)) > INLINE_LIMIT
    stay = _same_folder(source, target) and not external
    return [t for t in every if is_external(t) and not stay] + (inline if spill else [])


def _same_folder(source: ModelFile, target: Path) -> bool:
    """Whether what the source says of its data is also right beside ``target``: links in a cache are for reading."""
    folder = source.folder
    return folder is not None and folder.cache is None and target.resolve().parent == folder.path


def _serialized(model: onnx.ModelProto, target: Path) -> bytes:
    """Return the bytes of a model."""
    try:
        return serialized(model)
    except MessageTooLarge:
        reason = "the model is larger than 2 GiB; --external-data keeps its weights apart"
        raise OutputError(f"{target}: {reason}") from None


def _check_written(path: Path, data: bytes, model: onnx.ModelProto, target: Path) -> None:
    """Read the complete temporary model back: the same bytes, and every reference leads to data that is there."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        same = size == len(data) and all(file.read(_CHUNK) == data[i : i + _CHUNK] for i in range(0, size, _CHUNK))
    if not same:
        raise OutputError(f"{target}: what was written does not read back the same")
    try:
        check_tensors(model, Folder(target.resolve().parent), str(target))
    except InvalidModel as error:
        raise OutputError(f"{target}: what was written cannot be used ({error}); nothing there was changed") from None


def _check_source(source: ModelFile, target: Path) -> None:
    """Make sure that nothing was changed under the run: the source's data, and the source where it is replaced."""
    if source.folder is not None:
        source.folder.check_unchanged()
    if source.path is None or not source.path.exists() or not target.exists() or not source.path.samefile(target):
        return
    if Stamp.of(target.stat()) != source.stamp:
        raise OutputError(f"{target}: changed while it was folded in place; nothing was written; run it again")


def _write_data(
    target: Path, outside: list[onnx.TensorProto], folder: Folder | None, undo: contextlib.ExitStack
) -> Path:
    """Stream tensors into a data file beside ``target``, point them to it, and return its path.

    ``undo`` removes it again if it is new and the model at ``target`` does not come to refer to it.
    """
    try:
        target.name.encode()
    except UnicodeEncodeError:
        raise OutputError(f"{target}: its name is no UTF-8, so no model can refer to data beside it") from None
    digest = hashlib.sha256()
    places: list[tuple[onnx.TensorProto, int]] = []
    known: dict[Piece, int] = {}
    end = 0
    with temporary(target.parent) as (file, name):
        for tensor in outside:
            piece = folder.piece(tensor) if folder is not None and is_external(tensor) else None
            start = known.get(piece) if piece is not None else None  # tensors may share their bytes
            if start is None:
                start = end + -end % ALIGNMENT
                content = (tensor.raw_data,) if folder is None or piece is None else folder.chunks(piece)
                for chunk in chain((bytes(start - end),), content):
                    file.write(chunk)
                    digest.update(chunk)
                end = start + tensor_bytes(tensor)
            if piece is not None:
                known[piece] = start
            places.append((tensor, start))
        settle(file)
        if os.fstat(file.fileno()).st_size != end:
            raise OutputError(f"{target}: the data file does not have the size that was written")
        final = _named(name, target, digest.hexdigest(), undo)
    for tensor, start in places:
        refer(tensor, final.name, start)
    return final


def _named(temporary_name: str, target: Path, content: str, undo: contextlib.ExitStack) -> Path:
    """Give a data file its name, unless one with the same content has it; return the path."""
    final = target
    for length in _DIGITS:
        final = target.parent / f"{target.stem}.{content[:length]}.data"
        if not os.path.lexists(final):
            undo.callback(_remove_unreferred, final, target)
            os.replace(temporary_name, final)
            settle_folder(target.parent)
            return final
        if _holds(final, content):
            return final
    raise OutputError(f"{final}: is there already, with other content")


def _remove_unreferred(data_file: Path, target: Path) -> None:
    """Remove a new data file unless the model at ``target`` refers to it, which is so once that was replaced.

    To look is safer than to remember: the run may be ended between the replacement and any note of it.
    """
    with contextlib.suppress(OSError):
        if not target.is_file() or not _mentions(target, data_file.name):
            data_file.unlink(missing_ok=True)


def _holds(path: Path, content: str) -> bool:
    """Whether a path is a regular file with a single name, and its SHA-256 starts with ``content``."""
    if path.is_symlink() or not path.is_file() or path.stat().st_nlink != 1:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(content)


def _own_data(target: Path) -> list[Path]:
    """Return the data files that a model at ``target`` refers to and that have a name as :func:`write` gives it."""
    name = re.compile(rf"{re.escape(target.stem)}\.{_HASH}\.data")
    candidates = [path for path in target.parent.iterdir() if name.fullmatch(path.name)]
    with contextlib.suppress(OSError):
        return [path for path in candidates if target.is_file() and _mentions(target, path.name)]
    return []


def _remove_unused(files: list[Path], target: Path) -> None:
    """Remove data files that this package wrote, if no file in their folder mentions them; in doubt leave them.

    A model may have any name, such as that of a copy which somebody put aside.
    """
    data = re.compile(rf".*\.{_HASH}\.data")
    for path in files:
        with contextlib.suppress(OSError):
            others = [other for other in path.parent.iterdir() if other.is_file() and not data.fullmatch(other.name)]
            if _holds(path, path.name.split(".")[-2]) and not any(_mentions(o, path.name) for o in {target, *others}):
                path.unlink()


def _mentions(path: Path, name: str) -> bool:
    """Whether a file's bytes hold a name."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return view.find(name.encode()) >= 0
