"""What other tools make of a model, each run by an interpreter in which it is installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import onnxruntime as ort

SCRIPTS = {
    "onnxsim": "m, _ = __import__('onnxsim').simplify(onnx.load(source)); onnx.save(m, target)",
    "onnxslim": "import onnxslim; onnxslim.slim(source, target)",
    "onnxscript": "from onnxscript import optimizer, rewriter; m = optimizer.optimize(onnx.load(source)); "
    "onnx.save(rewriter.rewrite(m), target)",
    "onnxoptimizer": "import onnxoptimizer as o; "
    "onnx.save(o.optimize(onnx.load(source), o.get_fuse_and_elimination_passes()), target)",
}
"""Tool -> what writes its output with its own defaults."""

TOOLS = (*SCRIPTS, "ORT offline")
_SECONDS = 180


def write(tool: str, python: Path | None, source: Path, target: Path, provider: str = "cpu") -> str:
    """Write what a tool makes of ``source`` to ``target``; return what went wrong, or nothing."""
    if target.exists():
        return ""
    if tool == "ORT offline":
        if provider != "cpu":
            return "it writes models for the CPU"
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return ""
    if python is None:
        return "no --peers"
    script = f"import sys, onnx; source, target = sys.argv[1:]; {SCRIPTS[tool]}"
    try:
        done = subprocess.run(
            [python, "-c", script, source, target], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done in {_SECONDS} s"
    lines = done.stderr.strip().splitlines()
    return "" if target.exists() else (lines or ["wrote nothing"])[-1][:120]
