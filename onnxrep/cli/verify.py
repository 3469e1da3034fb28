"""``onnxrep verify``: say whether two models are the same function."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxrep.cli.shared import Parser, checking, common, console, options_of, reading


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add ``verify``."""
    text = "say whether two models are the same function"
    parser = commands.add_parser("verify", help=text, description=text)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="the original model")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the model that should be the same function")
    parser.add_argument("--json", action="store_true", help="print JSON")
    reading(parser)
    checking(parser)
    common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``verify``."""
    from onnxrep import pipeline
    from onnxrep.report import records, text

    found = pipeline.verify(arguments.before, arguments.after, options_of(arguments))
    if arguments.json:
        sys.stdout.write(records.json_text(found.to_dict()))
    else:
        text.show_verification(found, console(), arguments.verbose)
    return 0 if found.verdict == "verified" else 1
