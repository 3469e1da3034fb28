"""``onnxrep bench``: which of two models is faster, by how much, and in which ops."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnxrep.cli.shared import Parser, amount, checking, common, console, count, options_of, reading

if TYPE_CHECKING:
    from onnxrep.timing.rounds import Progress

_QUIET_SECONDS = 1.0


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add ``bench``."""
    text = "time two models side by side, in interleaved rounds"
    parser = commands.add_parser(
        "bench",
        help=text,
        description=text,
        epilog="Both run in ONNX Runtime with all its optimizations, in random order within each round. The ratio is "
        "the median of the rounds' ratios, its interval that of order statistics (95 %); less than 1 % is called no "
        "difference. Dynamic inputs get one usual size, as 1x3x224x224. Exit code 0, whichever is faster.",
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="the original model")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the model that should be faster")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--rounds", type=count, default=200, metavar="N", help="rounds at most (default: 200; at least 7 are made)"
    )
    parser.add_argument(
        "--seconds", type=amount, default=10.0, metavar="S", help="time for the rounds (default: 10 seconds)"
    )
    reading(parser)
    checking(parser)
    common(parser)
    for action in parser._actions:
        if action.dest in _HELP:
            action.help = _HELP[action.dest]
    parser.set_defaults(run=run, threads=1)


_HELP = {
    "provider": "where both models run (default: cpu)",
    "input_range": "values that an input gets, as 0,255; may be repeated",
    "input_data": "run on the first of these inputs (arrays named as the inputs)",
    "threads": "threads for ONNX Runtime (default: 1, the steadiest; 0: its own choice)",
    "verbose": "show the time of every op type",
}


def run(arguments: argparse.Namespace) -> int:
    """Run ``bench``."""
    from onnxrep import pipeline
    from onnxrep.report import latency, records

    with watched("timing") as progress:
        found = pipeline.bench(
            arguments.before,
            arguments.after,
            options_of(arguments),
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            progress=progress,
        )
    if arguments.json:
        sys.stdout.write(records.json_text(found.to_dict()))
    else:
        latency.show(found, console(), arguments.verbose)
    return 0


@contextlib.contextmanager
def watched(what: str) -> Iterator[Progress | None]:
    """Yield what shows progress on stderr, where it is a terminal and the work takes longer than a second."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []

        def show(share: float) -> None:
            if not bars and time.perf_counter() - begin > _QUIET_SECONDS:
                bars.append(stack.enter_context(Bar(console=Console(stderr=True), transient=True)))
                bars[0].add_task(what, total=1.0)
            for bar in bars:
                bar.update(bar.task_ids[0], completed=share)

        yield show
