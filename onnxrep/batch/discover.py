"""Which files a batch works on, and where each result goes."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxrep.batch import remote
from onnxrep.errors import UsageError
from onnxrep.escape import printable

SUFFIX = ".onnx"
TEMPORARY = ".onnxrep-"
"""How the names of files begin that a run is still writing, or did not live to remove."""


@dataclass(frozen=True, order=True)
class Job:
    """One model of a batch.

    Attributes:
        model: where the result goes below the output folder, with forward slashes; the model's name in all records.
        source: absolute path, or URL, of the file to read.
        size: bytes of it and of what seems to be its external data.
        fault: why there is nothing to read: ``source`` is a folder that cannot be searched, and ``model`` ends in "/".

    """

    model: str
    source: str
    size: int = field(default=0, compare=False)
    fault: str = field(default="", compare=False)

    @property
    def group(self) -> str:
        """What models have in common whose results may share a file: folder and stem, without regard to case."""
        return unicodedata.normalize("NFC", self.model.removesuffix(Path(self.model).suffix)).casefold()


def find(
    inputs: Sequence[str], output: str | Path | None, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Job]:
    """Return the jobs of a batch in a fixed order, each input's tree mirrored.

    Args:
        inputs: folders (searched for ``*.onnx``, links to folders not followed), files, and patterns with ``*``, ``?``,
            ``[`` and ``**`` (what lies in front of the first wildcard is not mirrored), and URLs of folders or objects.
        output: the folder for the results, or its URL, which is not searched; None if nothing is written.
        include: patterns of which a model's relative path must match one, if there are any; ``*`` matches slashes too.
        exclude: patterns of which it may match none.

    Raises:
        UsageError: an input is missing, a result would replace an input, or two inputs have one result.

    """
    output = None if output is None else str(output)
    found: dict[str, Job] = {}
    faults: dict[str, Job] = {}
    for given in inputs:
        for job in _objects(given, output) if remote.is_url(given) else _local(given, output):
            if job.fault and _wanted(job.model, (), exclude):
                faults[job.source] = job
            if job.fault or not _wanted(job.model, include, exclude):
                continue
            stays = remote.contained(job.model) if remote.is_url(job.source) else ".." not in job.model.split("/")
            if not stays:
                raise UsageError(
                    f"{printable(job.source)}: has no place in the output folder; leave it out (--exclude)"
                )
            if found.setdefault(job.model, job) != job:
                both = f"{printable(found[job.model].source)} and {printable(job.source)}"
                raise UsageError(f"{both} have the same place in the output folder; run them apart")
    jobs = sorted(found.values())
    if output is not None:
        _check_apart(jobs, output)
    return [*sorted(faults.values()), *jobs]


def _objects(given: str, output: str | None) -> Iterator[Job]:
    """Yield what the URL of a folder or of an object stands for."""
    base, sizes, named = remote.listing(given)
    place = remote.place(base)
    results = "" if output is None else f"{_place(output)}/"
    for model in sizes:
        source = f"{base}/{model}"
        name = model.rpartition("/")[2]
        below = results.startswith(f"{place}/") and results != f"{place}/" and f"{place}/{model}".startswith(results)
        if named or (name.lower().endswith(SUFFIX) and not _ours(name) and not below):
            folder = model.removesuffix(name)
            yield Job(model, source, sum(sizes.get(folder + one, 0) for one in _with_data(name)))


def _local(given: str, output: str | None) -> Iterator[Job]:
    """Yield what the path of a folder or of a file, or a pattern, stands for."""
    results = None if output is None else _folder(output)
    for path, base in _files(given, results):
        if isinstance(path, OSError):
            folder = Path(path.filename)
            name = folder.relative_to(base).as_posix() if folder != base else folder.absolute().name
            yield Job(f"{name}/", str(folder.absolute()), fault=f"cannot be searched ({path.strerror})")
            continue
        size = 0
        for name in _with_data(path.name):
            with contextlib.suppress(OSError):
                size += path.with_name(name).stat().st_size
        yield Job(path.relative_to(base).as_posix(), str(path.absolute()), size)


def _with_data(name: str) -> tuple[str, ...]:
    """Return the name of a model and the usual names of its external data."""
    stem = Path(name).stem
    return name, f"{name}.data", f"{name}_data", f"{stem}.data", f"{stem}.bin"


def _folder(output: str) -> Path | None:
    """Return the folder for results if it is one of this machine."""
    place = _place(output)
    return None if remote.is_url(place) else Path(place)


def _files(given: str, output: Path | None) -> Iterator[tuple[Path | OSError, Path]]:
    """Yield the files that an argument stands for, each with the folder that its relative path starts from.

    A folder that cannot be searched stands there as the error that says so.
    """
    path = Path(given)
    if path.is_dir():
        yield from ((file, path) for file in _walk(path, _below(output, path)))
    elif path.is_file():
        yield path, path.parent
    elif glob.has_magic(given):
        base = _fixed(path)
        results = _below(output, base)
        matches = sorted(base.glob(str(path.relative_to(base))))
        for match in matches:
            if match.is_dir():
                yield from ((file, base) for file in _walk(match, results))
            elif not _ours(match.name) and not _inside(match, results):
                yield match, base
        if not matches:
            raise UsageError(f"{printable(given)}: matches no file")
    else:
        raise UsageError(f"{printable(given)}: no such file or folder")


def _walk(folder: Path, results: Path | None) -> Iterator[Path | OSError]:
    """Yield the models in a folder and those below it, without what lies in the folder of results; last what fails."""
    errors: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=errors.append):
        if _inside(Path(place), results):
            folders.clear()
            continue
        folders.sort()
        yield from (Path(place, n) for n in sorted(names) if n.lower().endswith(SUFFIX) and not _ours(n))
    yield from errors


def _ours(name: str) -> bool:
    """Whether a file is a temporary one of this or another run."""
    return name.startswith(TEMPORARY)


def _below(output: Path | None, base: Path) -> Path | None:
    """Return the output folder if it lies below ``base``, where its files are results of former runs."""
    if output is None:
        return None
    results = output.resolve()
    return results if base.resolve() in results.parents else None


def _inside(path: Path, results: Path | None) -> bool:
    """Whether a path lies in the folder of results (or is it)."""
    return results is not None and path.resolve().is_relative_to(results)


def _fixed(pattern: Path) -> Path:
    """Return the part of a pattern in front of its first wildcard."""
    parts = pattern.parts[:-1]
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:first])


def _wanted(model: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a relative path passes the filters."""

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in patterns)

    return (not include or matches(include)) and not matches(exclude)


def _check_apart(jobs: Sequence[Job], output: str) -> None:
    """Check that no result takes the place of an input, and none needs a folder where another is a file."""
    sources = {_place(job.source) for job in jobs}
    results = {job.model for job in jobs}
    for job in jobs:
        if _place(f"{output}/{job.model}") in sources:
            raise UsageError(f"{printable(f'{output}/{job.model}')}: is an input; choose another output folder")
        above = next((p.as_posix() for p in Path(job.model).parents if p.as_posix() in results), None)
        if above:
            raise UsageError(f"{printable(job.model)}: needs a folder where {printable(above)} is a model")


def _place(name: str) -> str:
    """Return the one spelling of a path or URL by which two of them can be compared."""
    return remote.place(name) if remote.is_url(name) else os.path.realpath(name)
