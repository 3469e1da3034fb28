"""The command line: arguments and exit codes, nothing else."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from onnxrep import __version__
from onnxrep.errors import OnnxrepError, UsageError
from onnxrep.escape import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from onnxrep.pipeline import Options

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 a model failed, 2 usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except OnnxrepError as error:
        if options.debug:
            raise
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output is gone
        return 1
    except MemoryError:
        _complain("out of memory")
        return 1
    except Exception as error:
        if options.debug:
            raise
        _complain(f"internal error, please report it: {type(error).__name__}: {error} (--debug shows where)")
        return 1
    return code


def _complain(text: str) -> None:
    """Print one line to stderr."""
    print(f"onnxrep: {one_line(text)}", file=sys.stderr)  # noqa: T201


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint names the help."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _Parser(
        prog="onnxrep",
        description="Fold the parallel branches of exported ONNX models into single convolutions, and prove that the "
        "function is the same.",
        epilog="exit codes: 0 done (also when nothing folds), 1 a model failed, was rejected or could not be verified, "
        "2 wrong usage, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"onnxrep {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _optimize_command(commands)
    _batch_command(commands)
    _inspect_command(commands)
    _verify_command(commands)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    """Add what every command for single models knows."""
    parser.add_argument("-v", "--verbose", action="store_true", help="show every fold and every refusal")
    _debugging(parser)


def _debugging(parser: argparse.ArgumentParser) -> None:
    """Add what every command knows."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _reading(parser: argparse.ArgumentParser) -> None:
    """Add what commands that read models know."""
    parser.add_argument(
        "--hf-cache",
        action="store_true",
        help="read models in a Hugging Face cache: follow links that stay inside the repository's own cache folder",
    )


def _folding(parser: argparse.ArgumentParser) -> None:
    """Add what commands that fold know."""
    parser.add_argument(
        "--inline-functions",
        action="store_true",
        help="replace calls of the model's local functions by their bodies, so that these can fold too",
    )


def _checking(parser: argparse.ArgumentParser, threads: str = "its own choice") -> None:
    """Add what commands that run models know."""
    parser.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="where both models run for the check (default: cpu)"
    )
    parser.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="NAME:1,3,224,224",
        help="shape of an input with dynamic dimensions; may be repeated",
    )
    parser.add_argument(
        "--input-range",
        action="append",
        default=[],
        metavar="NAME:LOW,HIGH",
        help="values that an input will get, as 0,255; checked besides normal and uniform ones; may be repeated",
    )
    parser.add_argument(
        "--input-data", type=Path, metavar="FILE.npz", help="check on these inputs too (arrays named as the inputs)"
    )
    parser.add_argument(
        "--custom-ops-lib",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="library of custom ops for ONNX Runtime; its code is run, so name only one that you trust",
    )
    parser.add_argument(
        "--threads", type=_count, default=0, metavar="N", help=f"threads for ONNX Runtime (default: {threads})"
    )


def _count(text: str) -> int:
    """Read a number of threads or processes."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _writing(parser: argparse.ArgumentParser) -> None:
    """Add what commands that write models know."""
    parser.add_argument(
        "--allow-unverified", action="store_true", help="write the model also if the check could not decide (exit 0)"
    )
    parser.add_argument(
        "--external-data", action="store_true", help="write the weights into a data file beside the model"
    )
    parser.add_argument(
        "--follow-symlinks", action="store_true", help="write through an output that is a symbolic link"
    )


def _amount(text: str) -> float:
    """Read a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above zero")
    return value


def _optimize_command(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add ``optimize``."""
    text = "fold one model, verify it, write it"
    parser = commands.add_parser("optimize", help=text, description=text)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .onnx file to read")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="the file to write (default: MODEL.rep.onnx beside it)"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare the models end to end")
    _writing(parser)
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write everything about the run as JSON")
    _reading(parser)
    _folding(parser)
    _checking(parser)
    _common(parser)
    parser.set_defaults(run=_optimize)


def _batch_command(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add ``batch``."""
    text = "fold, verify and write many models, each in a process of its own; what was done before is not done again"
    parser = commands.add_parser(
        "batch",
        help=text,
        description=text,
        epilog="OUT mirrors the folders, and holds onnxrep-batch.jsonl: one record per model and run. Run the same "
        "command again to go on after an interruption. Exit code 1: some models failed; all others are done.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FOLDER",
        help="a folder (searched for *.onnx), a file, a pattern such as 'a/**/*.onnx', or a URL such as s3://bucket/zoo",
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="the folder for the results (must be given), or its URL")
    parser.add_argument(
        "--jobs",
        type=_count,
        default=0,
        metavar="N",
        help="models at a time (default: one per core, which share the cores)",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler, which must see the same files; --memory is then per model",
    )
    parser.add_argument(
        "--memory",
        type=_amount,
        default=0.0,
        metavar="GIB",
        help="for all models together (default: half of the machine's)",
    )
    parser.add_argument(
        "--timeout", type=_amount, default=600.0, metavar="S", help="seconds that one model may take (default: 600)"
    )
    for option, what in (("--include", "work only on models"), ("--exclude", "leave out models")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"{what} whose path below FOLDER matches ('*' matches slashes too); may be repeated",
        )
    parser.add_argument("--dry-run", action="store_true", help="say what would fold; write nothing, no record either")
    parser.add_argument(
        "--retry-failed", action="store_true", help="try again what failed before, even if nothing changed since"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare the models end to end")
    _writing(parser)
    _reading(parser)
    _folding(parser)
    _checking(parser, threads="an equal share of the cores")
    _debugging(parser)
    parser.set_defaults(run=_batch)


def _inspect_command(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add ``inspect``."""
    text = "say what would fold, what would not, and why; write nothing"
    parser = commands.add_parser("inspect", help=text, description=text)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .onnx file to read")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write everything as JSON")
    _reading(parser)
    _folding(parser)
    _common(parser)
    parser.set_defaults(run=_inspect)


def _verify_command(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add ``verify``."""
    text = "say whether two models are the same function"
    parser = commands.add_parser("verify", help=text, description=text)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="the original model")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the model that should be the same function")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _reading(parser)
    _checking(parser)
    _common(parser)
    parser.set_defaults(run=_verify)


def _console() -> Console:
    """Return the console for results; wide lines are not broken where nobody looks."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160, no_color=True)


def _options(arguments: argparse.Namespace) -> Options:
    """Return the pipeline's options."""
    from onnxrep.pipeline import Options

    return Options(
        verify=not getattr(arguments, "no_verify", False),
        provider=arguments.provider,
        input_shapes=dict(_shape(text) for text in arguments.input_shape),
        input_ranges=dict(_range(text) for text in arguments.input_range),
        input_data=arguments.input_data,
        allow_unverified=getattr(arguments, "allow_unverified", False),
        inline_functions=getattr(arguments, "inline_functions", False),
        external_data=getattr(arguments, "external_data", False),
        follow_symlinks=getattr(arguments, "follow_symlinks", False),
        hf_cache=arguments.hf_cache,
        custom_ops_lib=tuple(arguments.custom_ops_lib),
        threads=arguments.threads,
    )


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return name and shape of an ``--input-shape``."""
    name, _, dims = text.rpartition(":")
    try:
        shape = tuple(int(d) for d in dims.replace("x", ",").split(",") if d)
    except ValueError:
        shape = (-1,)
    if not name or any(d < 0 for d in shape):
        raise UsageError(f"--input-shape {text}: expected NAME:1,3,224,224")
    return name, shape


def _range(text: str) -> tuple[str, tuple[float, float]]:
    """Return name and range of an ``--input-range``."""
    name, _, limits = text.rpartition(":")
    try:
        low, high = (float(number) for number in limits.split(","))
    except ValueError:
        low = high = 0.0
    if not name or not -math.inf < low < high < math.inf:
        raise UsageError(f"--input-range {text}: expected NAME:LOW,HIGH, as images:0,255")
    return name, (low, high)


def _optimize(arguments: argparse.Namespace) -> int:
    """Run ``optimize``."""
    from onnxrep import files, pipeline
    from onnxrep.report import text

    if not arguments.model.name:
        raise UsageError(f"{arguments.model}: is a folder; name one .onnx file")
    output = arguments.output or arguments.model.with_suffix(".rep.onnx")
    if arguments.report:
        files.check_target(arguments.report, arguments.follow_symlinks)
        _check_apart(arguments.report, arguments.model, output)
    options = _options(arguments)
    result = pipeline.optimize(arguments.model, output, options, keep_unchanged=bool(arguments.output))
    if arguments.report:
        files.write_bytes(arguments.report, result.report.to_json().encode())
    text.show(result.report, _console(), arguments.verbose)
    good = result.ok or (result.status == "unverified" and options.allow_unverified)
    return 0 if good else 1


def _check_apart(report: Path, *models: Path) -> None:
    """Check that a report does not take the place of a model."""
    if report.resolve() in [m.resolve() for m in models]:
        raise UsageError(f"--report {report}: is a model of this run")


def _batch(arguments: argparse.Namespace) -> int:
    """Run ``batch``."""
    from rich.console import Console

    from onnxrep.batch import BatchOptions, display, run_batch
    from onnxrep.batch.cluster import Cluster

    if arguments.output is None and not arguments.dry_run:
        raise UsageError("name the folder for the results with -o, or use --dry-run")
    if arguments.dask and arguments.jobs:
        raise UsageError("--jobs is for this machine; with --dask, the workers' threads are the models at a time")
    options = BatchOptions(
        verify=not arguments.no_verify,
        provider=arguments.provider,
        input_shapes=dict(_shape(text) for text in arguments.input_shape),
        input_ranges=dict(_range(text) for text in arguments.input_range),
        input_data=arguments.input_data,
        allow_unverified=arguments.allow_unverified,
        inline_functions=arguments.inline_functions,
        external_data=arguments.external_data,
        follow_symlinks=arguments.follow_symlinks,
        hf_cache=arguments.hf_cache,
        custom_ops_lib=tuple(arguments.custom_ops_lib),
        include=tuple(arguments.include),
        exclude=tuple(arguments.exclude),
        jobs=arguments.jobs,
        threads=arguments.threads,
        memory=arguments.memory * 2**30,
        timeout=arguments.timeout,
        dry_run=arguments.dry_run,
        retry_failed=arguments.retry_failed,
    )
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(Cluster(arguments.dask)) if arguments.dask else None
        watch = stack.enter_context(display.Watch(Console(stderr=True)))
        summary = run_batch(arguments.inputs, arguments.output, options, executor=executor, progress=watch.show)
    display.show(summary, _console(), dry=arguments.dry_run)
    return 0 if summary.ok else 1


def _inspect(arguments: argparse.Namespace) -> int:
    """Run ``inspect``."""
    from onnxrep import files, pipeline
    from onnxrep.report import text

    if arguments.report:
        files.check_target(arguments.report)
        _check_apart(arguments.report, arguments.model)
    report = pipeline.inspect(arguments.model, inline_functions=arguments.inline_functions, hf_cache=arguments.hf_cache)
    if arguments.report:
        files.write_bytes(arguments.report, report.to_json().encode())
    if arguments.json:
        sys.stdout.write(report.to_json())
    else:
        text.show_plan(report, _console(), arguments.verbose)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    """Run ``verify``."""
    from onnxrep import pipeline
    from onnxrep.report import records, text

    found = pipeline.verify(arguments.before, arguments.after, _options(arguments))
    if arguments.json:
        sys.stdout.write(records.json_text(found.to_dict()))
    else:
        text.show_verification(found, _console(), arguments.verbose)
    return 0 if found.verdict == "verified" else 1
