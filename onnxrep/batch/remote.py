"""Models and results in object storage. Needs the extra ``onnxrep[remote]``, and fsspec's package for the storage.

Models are worked on in a local folder: what a model needs is downloaded, and what came of it is uploaded as whole
objects, data first and the model last. Records are objects too, one per model, because such storage cannot append.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from onnxrep import machine
from onnxrep.batch import journal
from onnxrep.batch.records import EARLIER, FINAL
from onnxrep.errors import MissingInput, OnnxrepError, OutputError, UsageError
from onnxrep.escape import one_line, printable

Record = dict[str, Any]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FOLDER = ".onnxrep"
"""Where the records lie below the output's URL."""

_READERS = 16
"""Records that are read at a time."""


def is_url(text: str) -> bool:
    """Whether an argument is the URL of an object or of a folder of objects."""
    return bool(_URL.match(text))


def _opened(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it, without what it remembers of former listings.

    Raises:
        UsageError: a package is missing, or the URL has no meaning.

    """
    try:
        import fsspec
    except ImportError:
        raise UsageError(f"{printable(url)}: needs the extra: pip install 'onnxrep[remote]'") from None
    local = {"auto_mkdir": True} if url.startswith(("file://", "local://")) else {}
    try:
        system, path = fsspec.url_to_fs(url, **local)
    except Exception as error:  # noqa: BLE001  each storage has its own
        raise UsageError(one_line(f"{printable(url)}: {error}")) from None
    system.invalidate_cache()
    return system, path.rstrip("/")


def place(url: str) -> str:
    """Return the one spelling of a URL by which two of them can be compared; a local path for ``file://``."""
    system, path = _opened(url)
    return os.path.realpath(path) if _is_local(system) else str(system.unstrip_protocol(path))


def _is_local(system: Any) -> bool:
    """Whether a file system is that of this machine."""
    return "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)


def listing(url: str) -> tuple[str, dict[str, int], bool]:
    """Return a folder's URL, relative path -> size of the objects below it, and whether the one of them was named.

    Raises:
        UsageError: nothing is there, or it cannot be listed.

    """
    system, path = _opened(url)
    try:
        found = system.find(path, detail=True)
    except Exception as error:  # noqa: BLE001  each storage has its own
        raise UsageError(one_line(f"{printable(url)}: cannot be listed ({type(error).__name__}: {error})")) from None
    if not found:
        raise UsageError(f"{printable(url)}: no such object or folder (--include takes patterns, a URL does not)")
    named = path in found
    base = path.rpartition("/")[0] if named else path
    sizes = {name.removeprefix(f"{base}/"): int(info.get("size") or 0) for name, info in found.items()}
    return str(system.unstrip_protocol(base)), sizes, named


def contained(name: str) -> bool:
    """Whether a relative path, which may come from anywhere, stays in its folder."""
    return not {"", ".", ".."} & set(name.split("/")) and "\\" not in name and "\0" not in name


class Records:
    """The records below an output's URL: one object per model, replaced whole, so the newest record counts."""

    def __init__(self, url: str) -> None:
        """``url`` is that of the output.

        Raises:
            UsageError: a package is missing, or the URL has no meaning.

        """
        self._url = url
        self._system, path = _opened(url)
        self._folder = f"{path}/{_FOLDER}"

    def newest(self) -> dict[str, Record]:
        """Return the newest record of each model, without the details of its folds; torn ones are left out.

        Raises:
            OutputError: they cannot be read.

        """
        try:
            paths = self._system.find(self._folder)
            with ThreadPoolExecutor(_READERS) as readers:
                found = [journal.parsed(data) for data in readers.map(self._system.cat_file, paths)]
        except FileNotFoundError:
            return {}
        except Exception as error:  # noqa: BLE001  each storage has its own
            raise self._failed("records cannot be read", error) from None
        return {record["model"]: {**record, "report": None} for record in found if record}

    def append(self, record: Mapping[str, Any]) -> None:
        """Put a record in the place of the model's last one.

        Raises:
            OutputError: it cannot be written.

        """
        name = hashlib.sha256(record["model"].encode("utf-8", "surrogatepass")).hexdigest()
        try:
            self._system.pipe_file(f"{self._folder}/{name}.json", journal.line(record))
        except Exception as error:  # noqa: BLE001  each storage has its own
            raise self._failed("a record was not written", error) from None

    def _failed(self, what: str, error: Exception) -> OutputError:
        """Return what to raise."""
        return OutputError(one_line(f"{printable(self._url)}: {what} ({type(error).__name__}: {error})"))


def staged(task: Record, do: Callable[[Record], Record]) -> Record:
    """Do a task, whose model or output folder may be URLs, in a local folder; return its record.

    Args:
        task: what a child is told; see :mod:`onnxrep.batch.child`.
        do: has a child do a task whose files are local.

    """
    start = time.monotonic()
    try:
        with machine.scratch() as folder:
            record = _on_stage(task, do, folder)
    except OnnxrepError as error:
        record = {"status": "error", "reason": str(error)}
    except Exception as error:  # noqa: BLE001  each storage has its own
        record = {"status": "error", "reason": one_line(f"object storage: {type(error).__name__}: {error}")}
    return record | {"seconds": round(time.monotonic() - start, 3)}


def _on_stage(task: Record, do: Callable[[Record], Record], folder: Path) -> Record:
    """Download, do, upload."""
    source, root = task["source"], task["root"]
    local = dict(task)
    if is_url(source):

        def names(model: Path) -> list[str]:
            answer = do({**task, "kind": "outside", "source": str(model)})
            return list(answer.get("names", []))

        local["source"] = str(_fetched(source, folder / "in", names))
    if root is None or not is_url(root):
        record = do(local)
    else:
        local["root"] = str(folder / "out")
        (folder / "out").mkdir()
        _fetch_results(root, task["previous"], folder / "out")
        record = do(local)
        _upload(root, record, task["model"], folder / "out")
    return _as_told(record, {local["source"]: source, local["root"]: root})


def _fetched(url: str, folder: Path, names: Callable[[Path], list[str]]) -> Path:
    """Download a model and the files that it refers to; return its path.

    What cannot be downloaded is left out: whoever opens the model says what is missing.

    Args:
        url: of the model.
        folder: where to.
        names: finds in a model the relative paths of the files that it refers to.

    Raises:
        MissingInput: an object was replaced meanwhile.

    """
    system, path = _opened(url)
    base, _, name = path.rpartition("/")
    target = folder / name
    stamps = {path: system.ukey(path)}
    folder.mkdir()
    system.get_file(path, str(target))
    for location in names(target):
        found = _beside(system, base, location)
        if found is not None and found != path:
            beside = folder / location
            beside.parent.mkdir(parents=True, exist_ok=True)
            stamps[found] = system.ukey(found)
            system.get_file(found, str(beside))
    system.invalidate_cache()
    if any(system.ukey(found) != stamp for found, stamp in stamps.items()):
        raise MissingInput("the model was replaced while it was read; the result is not trusted")
    return target


def _beside(system: Any, base: str, location: str) -> str | None:
    """Return the path of an object that a model in the folder ``base`` names, if it may be read.

    The name comes from the model, which is hostile input: it must not leave the folder, also not by a link, and what
    the storage takes it for must be an object of that very name (some read versions or queries out of names).
    """
    name = str(PurePosixPath(location))
    if not contained(name):
        return None
    try:
        found = [
            system.info(f"{base}/{part}") for part in itertools.accumulate(PurePosixPath(name).parts, "{}/{}".format)
        ]
    except FileNotFoundError:
        return None
    last = found[-1]
    if any(info.get("islink") for info in found) or last.get("nlink", 1) != 1:
        return None
    same = last["type"] == "file" and str(last["name"]).endswith(f"/{name}")
    return f"{base}/{name}" if same else None


def _fetch_results(root: str, previous: Record | None, folder: Path) -> None:
    """Download what a former run made of a model, so that it can be compared with what was recorded."""
    if previous is None or previous["status"] not in FINAL:
        return
    system, path = _opened(root)
    for name in previous["written"]:
        if contained(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                system.get_file(f"{path}/{name}", str(folder / name))


def _upload(root: str, record: Record, model: str, folder: Path) -> None:
    """Upload what was written, the model last, or say that an older result lies at its place.

    Raises:
        OutputError: what arrived has another size.

    """
    system, path = _opened(root)
    if record["status"] == "resumed":
        return
    written = record.get("written", {})
    for name in sorted(written, key=lambda name: (name == model, name)):
        target = f"{path}/{name}"
        system.put_file(str(folder / name), target)
        system.invalidate_cache()
        if system.info(target)["size"] != (folder / name).stat().st_size:
            raise OutputError(f"{printable(name)}: did not arrive whole")
    if not written and not record.get("reason", "").endswith(EARLIER) and system.exists(f"{path}/{model}"):
        record["reason"] = record.get("reason", "") + EARLIER


def _as_told(record: Record, names: Mapping[str | None, str | None]) -> Record:
    """Return a record with the places in it that the batch was told, instead of the local ones that stood in."""

    def told(text: str) -> str:
        for local, place in names.items():
            if local and place and local != place:
                text = text.replace(local, place)
        return text

    report = record.get("report")
    if report:
        report = report | {"input": told(report["input"]), "output": told(report["output"])}
        report["written"] = [told(name) for name in report["written"]]
        record = record | {"report": report}
    return record | {"reason": told(record.get("reason", ""))}
