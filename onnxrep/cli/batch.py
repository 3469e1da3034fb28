"""``onnxrep batch``: many models, each in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from onnxrep.cli.shared import (
    Parser,
    amount,
    checking,
    console,
    count,
    debugging,
    folding,
    reading,
    selection,
    shape,
    value_range,
    writing,
)
from onnxrep.errors import UsageError
from onnxrep.escape import printable


def add(commands: argparse._SubParsersAction[Parser]) -> None:
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
        type=count,
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
        type=amount,
        default=0.0,
        metavar="GIB",
        help="for all models together (default: half of the machine's)",
    )
    parser.add_argument(
        "--timeout", type=amount, default=600.0, metavar="S", help="seconds that one model may take (default: 600)"
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
    parser.add_argument(
        "--html",
        action="store_true",
        help="write OUT/onnxrep-batch.html over all models, and a page for each (needs onnxrep[html])",
    )
    writing(parser)
    reading(parser)
    folding(parser)
    checking(parser, threads="an equal share of the cores")
    debugging(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``batch``."""
    from rich.console import Console

    from onnxrep.batch import BatchOptions, display, run_batch
    from onnxrep.batch.cluster import Cluster

    if arguments.output is None and not arguments.dry_run:
        raise UsageError("name the folder for the results with -o, or use --dry-run")
    if arguments.dask and arguments.jobs:
        raise UsageError("--jobs is for this machine; with --dask, the workers' threads are the models at a time")
    if arguments.html:
        _check_pages(arguments.output, dry=arguments.dry_run)
    options = BatchOptions(
        verify=not arguments.no_verify,
        provider=arguments.provider,
        input_shapes=dict(shape(text) for text in arguments.input_shape),
        input_ranges=dict(value_range(text) for text in arguments.input_range),
        input_data=arguments.input_data,
        allow_unverified=arguments.allow_unverified,
        inline_functions=arguments.inline_functions,
        external_data=arguments.external_data,
        follow_symlinks=arguments.follow_symlinks,
        hf_cache=arguments.hf_cache,
        custom_ops_lib=tuple(arguments.custom_ops_lib),
        **selection(arguments),
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
    display.show(summary, console(), dry=arguments.dry_run)
    if arguments.html:
        from onnxrep.batch import pages

        found = pages.write(Path(arguments.output), [o.model for o in summary.outcomes])
        print(f"page written to {printable(str(found))}", file=sys.stderr)  # noqa: T201
    return 0 if summary.ok else 1


def _check_pages(output: str | None, *, dry: bool) -> None:
    """Check that the pages of a batch can be made: of records, which a dry run does not write, in a local folder."""
    from onnxrep.batch import remote
    from onnxrep.report import page

    page.check()
    if dry or output is None:
        raise UsageError("--html is made of the records of a run, which --dry-run does not write")
    if remote.is_url(output):
        raise UsageError("--html writes to local folders only; leave it out where OUT is a URL")
