"""Models per second: ``onnxrep batch`` beside a shell loop over another tool, on the same small models.

    python -m benchmarks.batch [--models 1000] [--jobs 2] [--peer onnxslim]

The peer is any command that takes an input and an output file; on a busy machine, compare the CPU time.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import onnx

from models.blocks import seed_blocks


def write(folder: Path, count: int) -> None:
    """Write blocks of the five systems as models of their own, each with its own weights."""
    folder.mkdir()
    for seed, block in zip(range(count), itertools.cycle(seed_blocks()), strict=False):
        onnx.save(block.model(seed=seed), folder / f"{seed:04d}.onnx")


def show(title: str, models: int, command: Sequence[str]) -> None:
    """Run a command and print a row: models, seconds, models per second, seconds of CPU per model.

    Raises:
        SystemExit: it fails.
    """
    start, used = time.perf_counter(), _cpu()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    seconds = time.perf_counter() - start
    cpu = (_cpu() - used) / models
    print(f"| {title} | {models} | {seconds:.0f} | {models / seconds:.1f} | {cpu:.2f} |", flush=True)


def _cpu() -> float:
    """Return the CPU seconds of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Models per second")
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--peer", help="another tool's command, for the shell loop")
    parser.add_argument("--peer-models", type=int, default=0, help="how many of the models it gets (default: all)")
    arguments = parser.parse_args()
    jobs = str(arguments.jobs)
    with tempfile.TemporaryDirectory() as root:
        write(Path(root, "in"), arguments.models)
        batch = [sys.executable, "-m", "onnxrep", "batch", f"{root}/in", "--jobs", jobs, "-o"]
        print("| | models | seconds | models per second | CPU seconds per model |")
        print("|---|---|---|---|---|")
        title = f"`onnxrep batch --jobs {jobs}`"
        show(title, arguments.models, [*batch, f"{root}/checked"])
        show("the same again: all resumed", arguments.models, [*batch, f"{root}/checked"])
        show(f"{title}, `--no-verify`", arguments.models, [*batch, f"{root}/unchecked", "--no-verify"])
        if arguments.peer:
            peer = shutil.which(arguments.peer) or sys.exit(f"{arguments.peer}: no such command")
            count = arguments.peer_models or arguments.models
            Path(root, "peer").mkdir()
            loop = f'cd "{root}/in" && ls | head -n {count} | xargs -P {jobs} -I {{}} "{peer}" {{}} "{root}/peer/{{}}"'
            show(f"shell loop over {Path(peer).name}, {jobs} at a time", count, ["sh", "-c", loop])


if __name__ == "__main__":
    main()
