"""``onnxrep inspect``: what would fold, what would not, and why."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxrep.cli.shared import Parser, check_apart, common, console, folding, reading


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add ``inspect``."""
    text = "say what would fold, what would not, and why; write nothing"
    parser = commands.add_parser("inspect", help=text, description=text)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .onnx file to read")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write everything as JSON")
    reading(parser)
    folding(parser)
    common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``inspect``."""
    from onnxrep import files, pipeline
    from onnxrep.report import text

    if arguments.report:
        files.check_target(arguments.report)
        check_apart(arguments.report, arguments.model)
    report = pipeline.inspect(arguments.model, inline_functions=arguments.inline_functions, hf_cache=arguments.hf_cache)
    if arguments.report:
        files.write_bytes(arguments.report, report.to_json().encode())
    if arguments.json:
        sys.stdout.write(report.to_json())
    else:
        text.show_plan(report, console(), arguments.verbose)
    return 0
