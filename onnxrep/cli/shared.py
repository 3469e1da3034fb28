"""What several commands share: their options, and how these become the pipeline's."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnxrep.errors import UsageError
from onnxrep.escape import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from onnxrep.options import Options


_ENDLESS = 1 << 16
"""Columns of an output that is no terminal."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaint names the help."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")


def common(parser: argparse.ArgumentParser) -> None:
    """Add what every command for single models knows."""
    parser.add_argument("-v", "--verbose", action="store_true", help="show every fold and every refusal")
    debugging(parser)


def debugging(parser: argparse.ArgumentParser) -> None:
    """Add what every command knows."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def reading(parser: argparse.ArgumentParser) -> None:
    """Add what commands that read models know."""
    parser.add_argument(
        "--hf-cache",
        action="store_true",
        help="read models in a Hugging Face cache: follow links that stay inside the repository's own cache folder",
    )


def folding(parser: argparse.ArgumentParser) -> None:
    """Add what commands that fold know."""
    parser.add_argument(
        "--inline-functions",
        action="store_true",
        help="replace calls of the model's local functions by their bodies, so that these can fold too",
    )
    names = "whose name, or the name of whose output, matches PATTERN (as '/backbone/*'); may be repeated"
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help=f"fold only where there is a node {names}"
    )
    parser.add_argument(
        "--except", action="append", default=[], metavar="PATTERN", dest="spared", help=f"leave alone the nodes {names}"
    )
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        choices=("merge", "fuse", "move"),
        help="fold only parallel branches (merge), only nodes in sequence (fuse), or only exchange neighbours (move)",
    )


def shaping(parser: argparse.ArgumentParser) -> None:
    """Add what commands that need sizes know."""
    parser.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="NAME:1,3,224,224",
        help="shape of an input with dynamic dimensions; may be repeated",
    )


def checking(parser: argparse.ArgumentParser, threads: str = "its own choice") -> None:
    """Add what commands that run models know."""
    parser.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="where both models run for the check (default: cpu)"
    )
    shaping(parser)
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
        "--threads", type=count, default=0, metavar="N", help=f"threads for ONNX Runtime (default: {threads})"
    )


def count(text: str) -> int:
    """Read a number of threads or processes."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def writing(parser: argparse.ArgumentParser) -> None:
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


def amount(text: str) -> float:
    """Read a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above zero")
    return value


def console() -> Console:
    """Return the console for results; lines are neither broken nor cut where nobody looks.

    rich itself honours NO_COLOR, FORCE_COLOR and TERM=dumb.
    """
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_ENDLESS)


def complain(text: str) -> None:
    """Print one line to stderr."""
    print(f"onnxrep: {one_line(text)}", file=sys.stderr)  # noqa: T201


def warn_of_unmatched(patterns: Sequence[str]) -> None:
    """Say which patterns match nothing: a slip of the pen must not pass for a choice."""
    for pattern in patterns:
        complain(f"warning: no node has a name or an output that matches {pattern!r}; names are as Netron shows them")


def selection(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that choose regions."""
    return {
        "only_nodes": tuple(getattr(arguments, "only", ())),
        "exclude_nodes": tuple(getattr(arguments, "spared", ())),
        "kinds": tuple(getattr(arguments, "kind", ())),
    }


def options_of(arguments: argparse.Namespace) -> Options:
    """Return the pipeline's options."""
    from onnxrep.options import Options

    return Options(
        verify=not getattr(arguments, "no_verify", False),
        provider=arguments.provider,
        input_shapes=dict(shape(text) for text in arguments.input_shape),
        input_ranges=dict(value_range(text) for text in arguments.input_range),
        input_data=arguments.input_data,
        allow_unverified=getattr(arguments, "allow_unverified", False),
        inline_functions=getattr(arguments, "inline_functions", False),
        external_data=getattr(arguments, "external_data", False),
        follow_symlinks=getattr(arguments, "follow_symlinks", False),
        hf_cache=arguments.hf_cache,
        custom_ops_lib=tuple(arguments.custom_ops_lib),
        **selection(arguments),
        threads=arguments.threads,
        bench=getattr(arguments, "bench", False),
        tune=getattr(arguments, "tune", False),
        tune_cache=getattr(arguments, "tune_cache", None),
    )


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return name and shape of an ``--input-shape``."""
    name, _, dims = text.rpartition(":")
    try:
        shape = tuple(int(d) for d in dims.replace("x", ",").split(",") if d)
    except ValueError:
        shape = (-1,)
    if not name or any(d < 0 for d in shape):
        raise UsageError(f"--input-shape {text}: expected NAME:1,3,224,224")
    return name, shape


def value_range(text: str) -> tuple[str, tuple[float, float]]:
    """Return name and range of an ``--input-range``."""
    name, _, limits = text.rpartition(":")
    try:
        low, high = (float(number) for number in limits.split(","))
    except ValueError:
        low = high = 0.0
    if not name or not -math.inf < low < high < math.inf:
        raise UsageError(f"--input-range {text}: expected NAME:LOW,HIGH, as images:0,255")
    return name, (low, high)


def html(parser: argparse.ArgumentParser) -> None:
    """Add what commands that can write a page know."""
    text = "write everything as a page for a browser: one file (needs onnxrep[html])"
    parser.add_argument("--html", type=Path, metavar="FILE.html", help=text)


def check_html(page: Path | None, *others: Path | None) -> None:
    """Check, before any work is done, that a page can be made and written where it is wanted."""
    from onnxrep import files
    from onnxrep.report import page as pages

    if page is not None:
        pages.check()
        files.check_target(page)
        check_apart(page, *(path for path in others if path is not None), option="--html")


def write_html(page: Path, text: str) -> None:
    """Write a page, and say where it is."""
    from onnxrep import files
    from onnxrep.escape import printable

    files.write_bytes(page, text.encode("utf-8", "backslashreplace"))
    print(f"page written to {printable(str(page))}", file=sys.stderr)  # noqa: T201


def check_apart(report: Path, *models: Path, option: str = "--report") -> None:
    """Check that a report takes the place of nothing but an older one: not of a model, its data, or its inputs."""
    if report.resolve() in [m.resolve() for m in models]:
        raise UsageError(f"{option} {report}: is a model of this run, or its report; choose another name")
    start = b"{" if option == "--report" else b"<"
    if report.is_file():
        with report.open("rb") as file:
            if file.read(1) not in (b"", start):
                raise UsageError(f"{option} {report}: is a file of another kind, which stays; choose another name")
