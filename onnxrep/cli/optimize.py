"""``onnxrep optimize``: fold one model, verify it, write it."""

from __future__ import annotations

import argparse
from pathlib import Path

from onnxrep.cli.progress import stages
from onnxrep.cli.shared import (
    Parser,
    check_apart,
    check_html,
    checking,
    common,
    console,
    folding,
    html,
    options_of,
    reading,
    warn_of_unmatched,
    write_html,
    writing,
)
from onnxrep.errors import UsageError


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add ``optimize``."""
    text = "fold one model, verify it, write it"
    parser = commands.add_parser("optimize", help=text, description=text)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .onnx file to read")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="the file to write (default: MODEL.rep.onnx beside it)"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare the models end to end")
    parser.add_argument(
        "--bench",
        action="store_true",
        help="time the result beside the original (one thread unless --threads is given)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="time regions where the price may be wrong, as they were and folded, and take what is faster; then "
        "the whole, and give up all folds if it is slower (for one model at a time: batch has no such option)",
    )
    parser.add_argument(
        "--tune-cache", type=Path, metavar="DIR", help="folder that keeps these times (default: that of your system)"
    )
    writing(parser)
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write everything about the run as JSON")
    html(parser)
    reading(parser)
    folding(parser)
    checking(parser)
    common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``optimize``."""
    from onnxrep import files, pipeline
    from onnxrep.report import page, text

    if not arguments.model.name:
        raise UsageError(f"{arguments.model}: is a folder; name one .onnx file")
    if arguments.tune_cache and not arguments.tune:
        raise UsageError("--tune-cache is where --tune keeps its times; give --tune too")
    output = arguments.output or arguments.model.with_suffix(".rep.onnx")
    if arguments.report:
        files.check_target(arguments.report, arguments.follow_symlinks)
        check_apart(arguments.report, arguments.model, output)
    check_html(arguments.html, arguments.model, output, arguments.report)
    options = options_of(arguments)
    with stages() as progress:
        result = pipeline.optimize(
            arguments.model, output, options, keep_unchanged=bool(arguments.output), progress=progress
        )
    if arguments.report:
        files.write_bytes(arguments.report, result.report.to_json().encode())
    text.show(result.report, console(), arguments.verbose)
    warn_of_unmatched(result.report.unmatched)
    if arguments.html:
        write_html(arguments.html, page.model(result.report))
    good = result.ok or (result.status == "unverified" and options.allow_unverified)
    return 0 if good else 1
