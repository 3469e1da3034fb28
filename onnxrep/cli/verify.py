"""``onnxrep verify``: say whether two models are the same function."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxrep.cli.shared import Parser, check_html, checking, common, console, html, options_of, reading, write_html


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add ``verify``."""
    text = "say whether two models are the same function"
    parser = commands.add_parser("verify", help=text, description=text)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="the original model")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the model that should be the same function")
    parser.add_argument("--json", action="store_true", help="print JSON")
    html(parser)
    reading(parser)
    checking(parser)
    common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``verify``."""
    from onnxrep import pipeline
    from onnxrep.report import page, records, text

    check_html(arguments.html, arguments.before, arguments.after)
    found = pipeline.verify(arguments.before, arguments.after, options_of(arguments))
    if arguments.json:
        sys.stdout.write(records.json_text(found.to_dict()))
    else:
        text.show_verification(found, console(), arguments.verbose)
    if arguments.html:
        names = str(arguments.before), str(arguments.after)
        write_html(arguments.html, page.verification(found, *names, pipeline.versions()))
    return 0 if found.verdict == "verified" else 1
