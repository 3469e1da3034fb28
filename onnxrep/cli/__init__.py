"""The command line: arguments and exit codes, nothing else. One module per command."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from onnxrep import __version__, blas
from onnxrep.cli import batch, bench, inspect, optimize, verify
from onnxrep.cli.shared import Parser, complain
from onnxrep.errors import OnnxrepError

INTERRUPTED = 130

_GARBAGE = 300_000, 20, 100
"""New objects, and rounds, after which Python looks for cycles: models are many objects and hardly any cycle."""


def run() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    code = main()
    gc.freeze()  # the system takes all memory back at once: no need to look for cycles a last time
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 a model failed, 2 usage, 130 interrupted."""
    options = parser().parse_args(arguments)
    blas.set_default()
    gc.set_threshold(*_GARBAGE)
    try:
        code: int = options.run(options)
    except OnnxrepError as error:
        if options.debug:
            raise
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output is gone
        return 1
    except MemoryError:
        complain("out of memory")
        return 1
    except Exception as error:
        if options.debug:
            raise
        complain(f"internal error, please report it: {type(error).__name__}: {error} (--debug shows where)")
        return 1
    return code


def parser() -> Parser:
    """Return the parser of the command line."""
    found = Parser(
        prog="onnxrep",
        description="Fold the parallel branches of exported ONNX models into single convolutions, and prove that the "
        "function is the same.",
        epilog="exit codes: 0 done (also when nothing folds), 1 a model failed, was rejected or could not be verified, "
        "2 wrong usage, 130 interrupted",
    )
    found.add_argument("--version", action="version", version=f"onnxrep {__version__}")
    commands = found.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in (optimize, batch, inspect, verify, bench):
        command.add(commands)
    return found
