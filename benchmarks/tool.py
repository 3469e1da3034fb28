"""The tool itself: wall time and peak memory of the whole process on one file, beside other tools on the same file.

``make bench-tool PEERS=PYTHON`` prints the table; ``PYTHON`` is an interpreter in whose environment the other tools are
installed. Those that are not there are left out. Medians of runs in turn; compare within one model only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import onnx

from benchmarks.external import measure
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


def rounds(tools: dict[str, list[str | Path]], model: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Return the median seconds and the median peak in MiB of each tool on a file, run in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in tools}
    for _ in range(REPEATS):
        for name, command in tools.items():
            output = folder / "out.onnx"
            between = ["-o"] if "onnxrep" in name else []
            found[name].append(measure([*command, model, *between, output]))
            output.unlink()
    return {name: (median(s for s, _ in runs), median(m for _, m in runs)) for name, runs in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, help="names of skeletons")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="the interpreter beside the other tools")
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
                rounds(tools, model, folder)  # compiles code, fills caches
            found = rounds(tools, model, folder)
            write(f"{skeleton:34}seconds   peak MiB\n")
            for tool, (seconds, memory) in found.items():
                write(f"  {tool:32}{seconds:7.2f}{memory:11.0f}\n")
            others = [seconds for tool, (seconds, _) in found.items() if tool not in (UNCHECKED, CHECKED)]
            if others:
                write(f"  not checked / fastest of others {found[UNCHECKED][0] / min(others):7.2f}\n")
            if "onnxsim" in found:
                write(f"  checked / onnxsim without check {found[CHECKED][0] / found['onnxsim'][0]:7.2f}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
