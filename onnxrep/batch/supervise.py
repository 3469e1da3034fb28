"""The thin supervisor of one model: it starts the child, waits no longer than allowed, and says how it ended."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxrep
from onnxrep import machine
from onnxrep.batch import remote
from onnxrep.batch.records import EARLIER

INTERRUPTED = "interrupted"
"""Status of a model whose child was ended because the batch ends; it is not recorded."""

WATCH = "resident size"
"""What a record names among the limits that were lacking where the child's memory could not be watched either."""

_LOOK = 0.1
"""Seconds between two looks at the memory of a child whose address space has no limit."""

_GRACE = 2.0
"""Seconds between asking a child to end and ending it."""

_device = threading.Lock()
"""Held while a model runs elsewhere than on the CPU: one at a time."""

_TAIL = 4000
_LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

Record = dict[str, Any]


class Pool:
    """The servers of this process, each lent to one supervisor at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Server] = []
        self._busy: dict[Server, str] = {}
        self._stopped: set[str] = set()

    def run(self, task: Record) -> Record:
        """Do one task in a child and return its record."""
        cpu = task["options"]["provider"] == "cpu"
        forks = cpu and hasattr(os, "fork")
        record: Record = {"status": INTERRUPTED}
        with contextlib.nullcontext() if cpu else _device:
            for _ in range(2):
                with self._lent(forks, task["run"]) as server:
                    if server is None:
                        break
                    record = server.do(task)
                if server.alive or not forks or record["status"] == INTERRUPTED:
                    break  # else the server died, which no model can bring about: the model gets another
        return record

    @contextlib.contextmanager
    def _lent(self, forks: bool, run: str) -> Iterator[Server | None]:
        """Yield a server that nobody else uses, or None if the run was stopped."""
        with self._lock:
            server = None
            if run not in self._stopped:
                server = self._idle.pop() if forks and self._idle else Server(forks)
                self._busy[server] = run
        try:
            yield server
        finally:
            with self._lock:
                if server is not None:
                    del self._busy[server]
                    if server.alive and run not in self._stopped:
                        self._idle.append(server)
                    else:
                        server.close()

    def stop(self, run: str) -> None:
        """End all children of a run now; their models come back as ``interrupted``."""
        with self._lock:
            self._stopped.add(run)
            for server, owner in self._busy.items():
                if owner == run:
                    server.kill()

    def close(self) -> None:
        """End the servers that are idle."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()


@functools.cache
def _pool(process: int) -> Pool:
    """Return the servers of this process; one that was forked must not use those of the process it came from."""
    return Pool()


def run(task: str) -> str:
    """Do one task: what an executor calls, in a thread, in another process or on another machine.

    Task and record are JSON. Besides what the child says, the record holds ``host``, ``seconds``, ``peak`` (bytes),
    ``exit`` and ``signal``.
    """
    given = json.loads(task)
    if given["version"] != onnxrep.__version__:
        reason = f"onnxrep {onnxrep.__version__} is installed here, but {given['version']} where the batch was started"
        record: Record = {"status": "error", "reason": reason}
    else:
        record = _done(given)
    record = _with_earlier(record, given)
    return json.dumps({"model": given["model"], "host": socket.gethostname(), **record})


def _with_earlier(record: Record, task: Record) -> Record:
    """Return a record that says so if something lies at the place of a result that was not written."""
    root = task["root"]
    if task["kind"] != "run" or root is None or remote.is_url(root) or record["status"] in (INTERRUPTED, "resumed"):
        return record
    if record.get("written") or not os.path.lexists(Path(root, task["model"])):
        return record
    return record | {"reason": record.get("reason", "") + EARLIER}


def _done(task: Record) -> Record:
    """Do a task in a child; in a local folder if its files are far away."""
    here = _pool(os.getpid()).run
    if task["kind"] == "run" and any(remote.is_url(task[name] or "") for name in ("source", "root")):
        return remote.staged(task, here)
    return here(task)


def stop(run: str) -> None:
    """End the children of a run that this process started."""
    _pool(os.getpid()).stop(run)


def close(run: str) -> None:
    """End the servers of this process that are idle, now that a run is done: another run starts its own."""
    _pool(os.getpid()).close()


class Server:
    """A process that starts children (see :mod:`onnxrep.batch.server`), and the supervisor's end of its pipes."""

    def __init__(self, forks: bool) -> None:
        self._forks = forks
        self._errors = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  it lives as long as the server
        home = str(Path(onnxrep.__file__).parents[1])
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        # One thread for numpy: sums then have one order, and the same model gives the same bytes everywhere.
        environment = os.environ | dict.fromkeys(_LIBRARIES, "1") | {"PYTHONPATH": path}
        # Python warns of a fork beside threads; the server has one of ONNX Runtime's, which is idle without sessions.
        command = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-m", "onnxrep.batch.server"]
        self._process = subprocess.Popen(  # noqa: S603  our own module
            [*command, "--fork"] if forks else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,
        )
        self._child = 0
        self._killed = False
        self.alive = True

    def do(self, task: Record) -> Record:
        """Do one task, within its time limit."""
        start = time.monotonic()
        self._errors.seek(0)
        self._errors.truncate()
        done, late, large = threading.Event(), threading.Event(), threading.Event()
        ending: Record | None = None
        most, watched = _most(task), True
        self.alive = False  # if an interrupt comes before the answer, this server is of no use any more
        with contextlib.suppress(BrokenPipeError):
            self._send(task)
            self._child = (self._hear() or {}).get("pid", 0)
            clock = threading.Thread(target=self._watch, args=(task["timeout"], done, late), daemon=True)
            clock.start()
            watched = most is None or machine.resident(self._child) is not None
            if most is not None and watched:
                threading.Thread(target=self._weigh, args=(most, done, large), daemon=True).start()
            try:
                ending = self._hear() if self._child else None
            finally:
                done.set()
            clock.join()
        self.alive = ending is not None and self._forks
        if ending is None:  # the server died (or this process was the child): nothing of it may live on
            self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            ending = {"exit": self._process.wait(), "peak": None, "answer": None}
        self._child = 0
        code = ending["exit"]
        record = ending["answer"] or self._ended(code, task["timeout"] if late.is_set() else None)
        if ending["answer"] is None and large.is_set():
            record = {"status": "oom", "reason": f"ended: it took more than the {most or 0:.3g} bytes allowed"}
        if not watched and "lacking" in record:
            record["lacking"] = [*record["lacking"], WATCH]
        if self._killed:
            record = {"status": INTERRUPTED}
        name = _signal_name(code)
        seconds = round(time.monotonic() - start, 3)
        return record | {"seconds": seconds, "peak": ending["peak"], "exit": None if name else code, "signal": name}

    def _send(self, task: Record) -> None:
        """Write a task to the server."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task).encode("ascii") + b"\n")
        self._process.stdin.flush()

    def _hear(self) -> Record | None:
        """Read a line of the server, or None if it is gone."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: Record | None = json.loads(line) if line.endswith(b"\n") else None
        return answer

    def _watch(self, limit: float, done: threading.Event, late: threading.Event) -> None:
        """End the child if it is not done in time: politely, then not."""
        if done.wait(limit):
            return
        late.set()
        self._signal(signal.SIGTERM)
        if not done.wait(_GRACE):
            self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _weigh(self, most: float, done: threading.Event, large: threading.Event) -> None:
        """End the child once it holds more memory than ``most``, what the libraries took at its start aside."""
        base = machine.resident(self._child) or 0
        while not done.wait(_LOOK):
            if (machine.resident(self._child) or 0) > base + most:
                large.set()
                self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
                return

    def _signal(self, number: int) -> None:
        """Send a signal to the child and to all that it started."""
        if not self._child:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._child, number)
            else:
                os.kill(self._child, number)

    def _ended(self, code: int, limit: float | None) -> Record:
        """Return the record of a child that gave no answer."""
        self._errors.seek(max(self._errors.seek(0, os.SEEK_END) - _TAIL, 0))
        tail = self._errors.read()
        lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
        last = f": {lines[-1][:300]}" if lines else ""
        name = _signal_name(code)
        if limit is not None:
            return {"status": "timeout", "reason": f"ended after {limit:g} seconds"}
        if name == "SIGXCPU":
            return {"status": "timeout", "reason": "its CPU time is used up"}
        if name == "SIGKILL" or b"bad_alloc" in tail or b"MemoryError" in tail:
            return {"status": "oom", "reason": f"ended by {name or 'itself'}, most likely for want of memory{last}"}
        return {"status": "crashed", "reason": f"{name or f'exit code {code}'}{last}"}

    def kill(self) -> None:
        """End the child and the server at once."""
        self._killed = True
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self._process.kill()

    def close(self) -> None:
        """End the server, and wait for that.

        It would end by itself at the end of its input, but a process forked from this one may hold that open.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()


def _most(task: Record) -> float | None:
    """Return the bytes of memory that a child may hold, or None where the limit of its address space sees to that."""
    if task["options"]["provider"] == "cpu" and sys.platform == "linux":
        return None
    return float(task["memory"] or machine.share())


def _signal_name(code: int) -> str:
    """Return the name of the signal that an exit code stands for, or an empty text."""
    if code >= 0:
        return ""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
