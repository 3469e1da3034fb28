"""The process that starts children: ``python -m onnxrep.batch.server [--fork]``.

It reads a task (one line of JSON) from standard input, answers with two lines, and reads the next:

    {"pid": 123}                                            the child, leader of a process group of its own
    {"exit": 0, "peak": 123456, "answer": {...} or null}    how it ended (negative: a signal), and what it said

With ``--fork`` every task gets a child that is forked from this process, in which all libraries are loaded already:
about a twentieth of a second for a small model. Without, this process is the child itself, does one task and ends: for
CUDA, which does not survive a fork, and for platforms that have none. The server holds no session and runs no model, so
it cannot die of one; when standard input closes, because the parent is gone, it ends its child and itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any, NoReturn

from onnxrep.batch import child

_STEP = 1 << 16


def main() -> None:
    """Serve tasks until there are no more."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what native code prints must not be taken for an answer
    forks = "--fork" in sys.argv[1:]
    while line := _line():
        task = json.loads(line)
        if not forks:
            _say(answers, {"pid": os.getpid()})
            answer = _done(task)
            _say(answers, {"exit": 0, "peak": _peak(), "answer": answer})
            os._exit(0)
        _say(answers, _in_child(task, answers))


def _line() -> bytes:
    """Return the next line of standard input, unbuffered; empty at its end."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, _STEP)
        if not piece:
            return b""
        line += piece
    return line


def _say(handle: int, answer: dict[str, Any]) -> None:
    """Write one line of JSON."""
    data = json.dumps(answer).encode("ascii") + b"\n"
    while data:
        data = data[os.write(handle, data) :]


def _done(task: dict[str, Any]) -> dict[str, Any]:
    """Do a task in this process."""
    task["lacking"] = child.prepare(task)
    return child.KINDS[task["kind"]](task)


def _in_child(task: dict[str, Any], answers: int) -> dict[str, Any]:
    """Do a task in a forked child; return how that ended."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.close(reader)
        os.close(answers)
        _child(task, writer)
    with contextlib.suppress(OSError):  # the child does so too: whoever comes first
        os.setpgid(process, process)
    os.close(writer)
    _say(answers, {"pid": process})
    answer = _heard(reader, process)
    _, status, usage = os.wait4(process, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"exit": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * unit, "answer": answer}


def _child(task: dict[str, Any], writer: int) -> NoReturn:
    """Do a task and end, whatever happens."""
    code = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        _say(writer, _done(task))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  nothing may return into the server's loop
        traceback.print_exc()
    finally:
        os._exit(code)


def _heard(reader: int, process: int) -> dict[str, Any] | None:
    """Return what a child answers, or None if it ends without; end it if the parent is gone."""
    data = b""
    while True:
        ready, _, _ = select.select([reader, 0], [], [])
        if 0 in ready:  # no task comes while one is being done: this is the end of standard input
            with contextlib.suppress(OSError):
                os.killpg(process, signal.SIGKILL)
            os._exit(0)
        piece = os.read(reader, _STEP)
        if not piece:
            break
        data += piece
    os.close(reader)
    answer: dict[str, Any] | None = json.loads(data) if data.endswith(b"\n") else None
    return answer


def _peak() -> int | None:
    """Return the most memory that this process had, in bytes, where the platform tells."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
