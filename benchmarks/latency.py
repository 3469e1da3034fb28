"""Latency side by side: export, the framework's deploy form, our output, and what other tools make of the export.

    python -m benchmarks.latency [--peers PYTHON] [PATTERN ...]      measure what is not measured yet
    python -m benchmarks.latency --show                              the tables and the plot

All forms of a model run in the same rounds, in random order, on one thread of the CPU. A ratio is the median of the
rounds' own ratios. Results lie in ``build/latency``, one file per model. The skeletons of an export and of its deploy
form get different random weights, so only times are compared here; denormal numbers are flushed to zero.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks import peers
from benchmarks.latency_tables import show
from models import skeletons
from onnxrep import Options, machine, optimize
from onnxrep.proof.errors import CannotRun
from onnxrep.proof.inputs import Wishes, index_limits, usual_feeds
from onnxrep.proof.sessions import Feeds, Runtime
from onnxrep.timing.rounds import Budget, repeats_for, timed_rounds, warm_up

FOLDER = Path("build/latency")
CONTROLS = ("resnet50", "tf_efficientnet_b0", "vit_tiny_patch16_224")
FORMS = ("export", "deploy", "ours")
_RUNTIME = Runtime(threads=1)
_OPENINGS = 2
_FEWEST = 11


def cases() -> dict[str, str]:
    """Return export -> deploy form (empty for the controls): per model and exporter, the least optimized export."""
    present = skeletons.names()
    found = {}
    for model in sorted({n.partition("/")[0] for n in present}):
        mine = [n for n in present if n.startswith(f"{model}/")]
        for kind in ("legacy", "dynamo", "dynamic"):
            exports = [
                f"{model}/train_{kind}{end}" for end in ("_noopt", "_bn", "") if f"{model}/train_{kind}{end}" in mine
            ]
            deploy = f"{model}/deploy_{kind}"
            if exports and (deploy in mine or (model in CONTROLS and kind == "legacy")):
                found[exports[0]] = deploy if deploy in mine else ""
    return found


def prepare(name: str, deploy: str, python: Path | None) -> tuple[dict[str, Path], dict[str, str]]:
    """Write all forms of a model; return their files, and why some are missing."""
    folder = FOLDER / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    export = folder / "export.onnx"
    found, missing = {"export": export}, {}
    if not export.exists():
        onnx.save(skeletons.fill(name), export)
    if deploy:
        found["deploy"] = folder / "deploy.onnx"
        if not found["deploy"].exists():
            onnx.save(skeletons.fill(deploy), found["deploy"])
    found["ours"] = folder / "ours.onnx"
    optimize(export, found["ours"], Options(verify=False))
    for tool in peers.TOOLS:
        target = folder / f"{tool.replace(' ', '_')}.onnx"
        fault = peers.write(tool, python, export, target) or _fault(target)
        if fault:
            missing[tool] = fault
        else:
            found[tool] = target
    return found, missing


def _fault(path: Path) -> str:
    """Return why ONNX Runtime does not load what a tool wrote, or nothing."""
    try:
        _RUNTIME.session(path, "all")
    except CannotRun as error:
        return f"does not load: {error}"
    return ""


def measure(files: Mapping[str, Path], seconds: float, openvino: bool) -> dict[str, Any]:
    """Return the times of all forms, and of the first three on OpenVINO."""
    rng = np.random.default_rng(0)
    export = onnx.load(files["export"])
    feeds, _ = usual_feeds(_RUNTIME.session(files["export"], "all"), Wishes({}), 0, index_limits(export))
    times: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    budget = Budget(400, seconds).split(_OPENINGS)
    for _ in range(_OPENINGS):
        runs: dict[str, Callable[[], object]] = {}
        for form in rng.permutation(list(files)):
            session = _RUNTIME.session(files[form], "all", flush=True)
            mine = dict(zip((n for n, _, _ in session.inputs), feeds.values(), strict=True))
            results = session.run(mine).values()
            if not all(np.isfinite(r).all() for r in results if r.dtype.kind == "f"):
                notes[str(form)] = "outputs are not finite"
            runs[str(form)] = session.repeatable(mine)
        for form in FORMS if openvino else ():
            if form in files:
                runs[f"OpenVINO {form}"] = _in_openvino(files[form], feeds)
        repeats = repeats_for(warm_up(list(runs.values())))
        found = timed_rounds(list(runs.values()), budget, rng, repeats=repeats, fewest=_FEWEST)
        for form, new in zip(runs, found, strict=True):
            times.setdefault(form, []).extend(new)
        del runs
        gc.collect()
    return {"times": times, "notes": notes, "inputs": {n: list(v.shape) for n, v in feeds.items()}}


def _in_openvino(path: Path, feeds: Feeds) -> Callable[[], object]:
    """Return a call that runs a model once in OpenVINO's CPU plugin: one thread, float32 as in ONNX Runtime."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({p.any_name: list(v.shape) for p, v in zip(model.inputs, feeds.values(), strict=True)})
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    for port, values in zip(model.inputs, feeds.values(), strict=True):
        request.set_tensor(port.any_name, openvino.Tensor(np.ascontiguousarray(values)))
    infer: Callable[[], object] = request.infer
    return infer


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Latency of all forms of the zoo's models")
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="models, as 'repvgg*'")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="an interpreter that has the other tools")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the rounds of one model")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--prepare", action="store_true", help="only write the models to measure")
    parser.add_argument("--show", action="store_true", help="only print the tables, and draw the plot")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a promise does not hold")
    parser.add_argument("--plot", type=Path, help="where to draw the plot (an .svg)")
    arguments = parser.parse_args()
    names = {n: d for n, d in cases().items() if any(fnmatch.fnmatch(n, f"{p}*") for p in arguments.patterns)}
    for name, deploy in () if arguments.show else names.items():
        target = FOLDER / f"{name.replace('/', '-')}.json"
        if target.exists() and not arguments.again:
            continue
        files, missing = prepare(name, deploy, arguments.peers)
        if arguments.prepare:
            continue
        found = measure(files, arguments.seconds, has_openvino())
        about = {"processor": machine.processor(), "onnxruntime": onnxruntime.__version__}
        target.write_text(json.dumps({"name": name, "deploy": deploy, "missing": missing, **about, **found}))
        print(f"measured {name}", file=sys.stderr, flush=True)
    results = [json.loads(p.read_text()) for p in sorted(FOLDER.glob("*.json"))]
    faults = show([r for r in results if r["name"] in names], arguments.plot)
    return int(arguments.strict and faults > 0)


if __name__ == "__main__":
    sys.exit(main())
