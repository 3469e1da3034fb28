"""The child's work: limits for itself, the key of a model, and the record of what became of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from onnxrep import files, machine, pipeline
from onnxrep.batch.records import FINAL, LARGER, expected
from onnxrep.errors import OnnxrepError, UsageError
from onnxrep.escape import one_line
from onnxrep.options import Options
from onnxrep.proof.check import NO_MEMORY
from onnxrep.proof.original import NEEDS
from onnxrep.proof.sessions import Runtime

Record = dict[str, Any]

_BESIDES = 64 << 20
"""Bytes that a child may write beyond four times its model."""

_LATER = 10
"""Seconds of CPU beyond the time limit: this limit is for a child whose supervisor is gone."""


def prepare(task: Mapping[str, Any]) -> list[str]:
    """Bind the child's life to the supervisor's, and limit what it may use; return the limits that cannot be set.

    The address space may grow by ``task["memory"]`` bytes (0: a share of this machine's) over what the libraries have
    taken already. CUDA reserves far more than it uses, so there the address space has no limit.
    """
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    signal.signal(signal.SIGTERM, _leave)
    seconds = int(task["timeout"] * task["threads"]) + _LATER
    memory = task["memory"] or machine.share()
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": _address_space() + int(memory),
    }
    if task["options"]["provider"] != "cpu":
        del limits["RLIMIT_AS"]
    wanted = ("RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_AS")
    return [name for name in wanted if name not in limits or not _limit(name, limits[name])]


def _end_with_supervisor() -> None:
    """End this process and what it started as soon as the supervisor's end of standard input is closed."""
    os.read(0, 1)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    """End in such a way that temporary files are removed."""
    sys.exit(128 + number)


def _limit(name: str, value: int) -> bool:
    """Set a limit of this process; say whether the platform can."""
    try:
        import resource

        _, most = resource.getrlimit(getattr(resource, name))
        if most != resource.RLIM_INFINITY:
            value = min(value, most)
        resource.setrlimit(getattr(resource, name), (value, most))
    except (ImportError, AttributeError, ValueError, OSError):
        return False
    return True


def _address_space() -> int:
    """Return the bytes of address space that this process has taken so far (1 GiB where that is not known)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 1 << 30


def check(task: Mapping[str, Any]) -> Record:
    """Check what all models of a batch need, and remove what dead runs left in the folders of the results."""
    options = _options(task)
    try:
        if options.input_data is not None and not options.input_data.is_file():
            raise UsageError(f"{options.input_data}: no such file")
        if options.verify:
            Runtime(options.provider, options.threads, custom_ops=tuple(options.custom_ops_lib)).check()
    except OnnxrepError as error:
        return {"status": "error", "reason": str(error), "usage": isinstance(error, UsageError)}
    for folder in task["folders"]:
        files.remove_stale(Path(folder))
    return {"status": "ready", "reason": ""}


def outside(task: Mapping[str, Any]) -> Record:
    """Return the files that a model refers to, unchecked; none if it cannot be read: :func:`run` says why."""
    try:
        model = onnx.load(task["source"], load_external_data=False)
    except (DecodeError, RecursionError):
        return {"status": "ready", "names": []}
    return {"status": "ready", "names": sorted({_location(t) for t in files.tensors(model) if files.is_external(t)})}


def run(task: Mapping[str, Any]) -> Record:
    """Return the record of one model: what became of it, with everything that a report needs."""
    record: Record = {"status": "error", "reason": "", "folds": 0, "key": "", "input_sha256": ""}
    record |= {"output": "", "written": {}}
    record |= {"lacking": task["lacking"], "versions": pipeline.versions(), "options": task["options"], "report": None}
    try:
        _work(task, record)
    except OnnxrepError as error:
        record |= {"status": error.status, "reason": str(error).removeprefix(f"{task['source']}: ")}
    except MemoryError:
        record |= {"status": "oom", "reason": "out of memory"}
    except Exception as error:  # noqa: BLE001  a bug of ours, which must not stop the batch
        record |= {"status": "error", "reason": f"{type(error).__name__}: {error}"}
    record["reason"] = one_line(record["reason"])
    return record


def _work(task: Mapping[str, Any], record: Record) -> None:
    """Fold one model, or find that it was folded before, and fill in its record."""
    path, options = Path(task["source"]), _options(task)
    source = files.read(path, options.hf_cache)
    record["input_sha256"] = source.digest
    record["key"] = _key(source, options)
    if task["previous"] and _stands(task["previous"], record["key"], task):
        record["status"] = "resumed"
        return
    needs = expected(len(source.data) + source.external_size)
    if min(needs, task.get("most", 0)) > task["memory"]:
        record |= {"status": LARGER, "needs": needs}
        return
    if not _limit("RLIMIT_FSIZE", 4 * (len(source.data) + source.external_size) + _BESIDES):
        record["lacking"].append("RLIMIT_FSIZE")
    if task["root"] is None:
        report = pipeline.inspect(source, options)
    else:
        target = Path(task["root"], task["model"])
        target.parent.mkdir(parents=True, exist_ok=True)
        report = pipeline.optimize(source, target, options).report  # the very bytes that the key is of
    record["report"] = report.to_dict()
    if report.written:
        record["output"] = task["model"]
        *data, model = map(Path, report.written)
        record["written"] = {_below(task["root"], path): _hash(path) for path in data} | {task["model"]: _hash(model)}
    why = report.verification.reason if report.verification else ""
    status = "oom" if report.status == "unverified" and why.startswith(NO_MEMORY) else report.status
    folds = len(report.folds) if status in ("folded", "unverified") else 0
    record |= {"status": status, "reason": why, "folds": folds}


def _below(root: str, path: Path) -> str:
    """Return a path as seen from the output folder; behind a link it may lie elsewhere."""
    return Path(os.path.relpath(path.resolve(), Path(root).resolve())).as_posix()


def _options(task: Mapping[str, Any]) -> Options:
    """Return the pipeline's options for a task."""
    given = dict(task["options"])
    given["input_shapes"] = {name: tuple(shape) for name, shape in given["input_shapes"].items()}
    given["input_ranges"] = {name: tuple(limits) for name, limits in given["input_ranges"].items()}
    given |= {name: tuple(given[name]) for name in ("only_nodes", "exclude_nodes", "kinds")}
    given["input_data"] = Path(given["input_data"]) if given["input_data"] else None
    given["custom_ops_lib"] = tuple(map(Path, given["custom_ops_lib"]))
    return Options(**given, threads=task["threads"])


def _location(tensor: Any) -> str:
    """Return the file that an external tensor names."""
    return next((str(e.value) for e in tensor.external_data if e.key == "location"), "")


def _key(source: files.ModelFile, options: Options) -> str:
    """Return the hash of all that the result depends on."""
    given = {name: value for name, value in vars(options).items() if name not in ("threads", "select")}
    if options.input_data is not None:
        given["input_data"] = _hash(options.input_data)
    given["custom_ops_lib"] = [_hash(path) for path in options.custom_ops_lib]
    parts = {
        "model": source.digest,
        "external": source.external_digests,
        "options": given,
        "versions": pipeline.versions(),
        "device": machine.device_name() if options.provider == "cuda" else "",
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stands(previous: Record, key: str, task: Mapping[str, Any]) -> bool:
    """Whether the record of a former run still tells what this one would find."""
    if previous["key"] != key or previous["status"] not in FINAL or NEEDS in previous["reason"]:
        return False
    root, through = Path(task["root"]).resolve(), task["options"]["follow_symlinks"]
    files_ = [(root / name, content) for name, content in previous["written"].items()]
    return all(p.is_file() and (through or not p.is_symlink()) and _hash(p) == content for p, content in files_)


KINDS: Mapping[str, Callable[[Mapping[str, Any]], Record]] = {"check": check, "outside": outside, "run": run}
"""Kind of a task -> what the child does."""
