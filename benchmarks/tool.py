"""The tool itself: wall time, CPU time and peak memory of whole processes, beside other tools on the same file.

``make bench-tool PEERS=PYTHON`` prints the table; ``PYTHON`` is an interpreter in whose environment the other tools are
installed. Those that are not there are left out. Medians of runs in turn; compare within one model only, and where the
machine has other work, the CPU time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnx

from models import skeletons

MODELS = (
    "repvgg_a0/train_legacy_bn",
    "mobileone_s0/train_legacy_bn",
    "yolov9t/train_legacy_bn",
    "fastvit_t8/train_legacy_bn",
    "resnet50/train_legacy_bn",
)
UNCHECKED, CHECKED = "onnxrep --no-verify", "onnxrep"
COMMANDS = ("onnxsim", "onnxslim")
SCRIPTS = {
    "onnxscript": "import onnxscript.optimizer as o; onnx.save(o.optimize(onnx.load(sys.argv[1])), sys.argv[2])",
    "onnxoptimizer": "import onnxoptimizer as o; onnx.save(o.optimize(onnx.load(sys.argv[1])), sys.argv[2])",
}
REPEATS = 3


def commands(peers: Path | None) -> dict[str, list[str | Path]]:
    """Return each tool's command line, to which input and output are appended."""
    ours: list[str | Path] = [sys.executable, "-m", "onnxrep", "optimize"]
    found: dict[str, list[str | Path]] = {UNCHECKED: [*ours, "--no-verify"], CHECKED: ours}
    if peers is None:
        return found
    found |= {name: [peers.parent / name] for name in COMMANDS if (peers.parent / name).exists()}
    libraries = peers.parent.parent / "lib"
    for name, code in SCRIPTS.items():
        if any(libraries.glob(f"python*/site-packages/{name}")):
            found[name] = [peers, "-c", f"import sys, onnx; {code}"]
    return found


@dataclass(frozen=True)
class Cost:
    """What a run of a tool costs."""

    seconds: float
    busy: float
    """Seconds of CPU, of all threads."""
    peak: float
    """MiB of memory."""


def measured(command: Sequence[str | Path]) -> Cost:
    """Run a command and return what it costs."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "r = resource.getrusage(resource.RUSAGE_CHILDREN); print(r.ru_utime + r.ru_stime, r.ru_maxrss)"
    )
    start = time.perf_counter()
    child = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    busy, peak = map(float, child.stdout.split())
    return Cost(seconds, busy, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def rounds(tools: dict[str, list[str | Path]], model: Path, folder: Path, repeats: int) -> dict[str, Cost]:
    """Return the medians of each tool's costs on a file, run in turn."""
    found: dict[str, list[Cost]] = {name: [] for name in tools}
    for _ in range(repeats):
        for name, command in tools.items():
            output = folder / "out.onnx"
            between = ["-o"] if "onnxrep" in name else []
            found[name].append(measured([*command, model, *between, output]))
            output.unlink()
    return {
        name: Cost(median(r.seconds for r in runs), median(r.busy for r in runs), median(r.peak for r in runs))
        for name, runs in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, help="names of skeletons")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="the interpreter beside the other tools")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"rounds (default: {REPEATS})")
    options = parser.parse_args(arguments)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed tools have their code compiled
    write = sys.stdout.write
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        tools = commands(options.peers)
        for index, skeleton in enumerate(options.models):
            model = folder / "model.onnx"
            onnx.save(skeletons.fill(skeleton), model)
            if not index:
                rounds(tools, model, folder, 1)  # compiles code, fills caches
            found = rounds(tools, model, folder, options.repeats)
            write(f"{skeleton:38}seconds   CPU seconds   peak MiB\n")
            for tool, cost in found.items():
                write(f"  {tool:36}{cost.seconds:7.2f}{cost.busy:14.2f}{cost.peak:11.0f}\n")
            others = [cost for tool, cost in found.items() if tool not in (UNCHECKED, CHECKED)]
            if others:
                mine = found[UNCHECKED]
                wall, busy = mine.seconds / min(c.seconds for c in others), mine.busy / min(c.busy for c in others)
                write(f"  not checked / least of others       {wall:7.2f}{busy:14.2f}\n")
            if "onnxsim" in found:
                mine, peer = found[CHECKED], found["onnxsim"]
                wall, busy = mine.seconds / peer.seconds, mine.busy / peer.busy
                write(f"  checked / onnxsim, no check         {wall:7.2f}{busy:14.2f}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
