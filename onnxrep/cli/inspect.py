"""``onnxrep inspect``: what would fold, what would not, and why."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxrep.cli.progress import stages
from onnxrep.cli.shared import (
    Parser,
    check_apart,
    check_html,
    common,
    complain,
    console,
    folding,
    html,
    reading,
    selection,
    shape,
    shaping,
    warn_of_unmatched,
    write_html,
)


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add ``inspect``."""
    text = "say what would fold, what it would gain, what would not fold, and why; write nothing"
    parser = commands.add_parser("inspect", help=text, description=text)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .onnx file to read")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write everything as JSON")
    html(parser)
    parser.add_argument(
        "--fail-if-foldable", action="store_true", help="exit with 1 if anything would fold: a gate for CI pipelines"
    )
    reading(parser)
    folding(parser)
    shaping(parser)
    common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``inspect``."""
    from onnxrep import files, pipeline
    from onnxrep.options import Options
    from onnxrep.report import page, plan

    if arguments.report:
        files.check_target(arguments.report)
        check_apart(arguments.report, arguments.model)
    check_html(arguments.html, arguments.model, arguments.report)
    options = Options(
        inline_functions=arguments.inline_functions,
        hf_cache=arguments.hf_cache,
        input_shapes=dict(shape(text) for text in arguments.input_shape),
        **selection(arguments),
    )
    with stages() as progress:
        report = pipeline.inspect(arguments.model, options, progress=progress)
    if arguments.report:
        files.write_bytes(arguments.report, report.to_json().encode())
    if arguments.json:
        sys.stdout.write(report.to_json())
    else:
        plan.show(report, console(), arguments.verbose)
    warn_of_unmatched(report.unmatched)
    if arguments.html:
        write_html(arguments.html, page.model(report, planned=True))
    if arguments.fail_if_foldable and report.folds:
        name, count = arguments.model, len(report.folds)
        regions = "1 region" if count == 1 else f"{count} regions"
        complain(f"{name}: {regions} would fold; run 'onnxrep optimize {name}' and ship its result instead")
        return 1
    return 0
