"""Latency side by side: export, the framework's deploy form, our output, and what other tools make of the export.

    python -m benchmarks.latency [--peers PYTHON] [PATTERN ...]      measure what is not measured yet
    python -m benchmarks.latency --show                              the tables and the plot
    python -m benchmarks.latency --provider cuda [--tf32 | --half] [--batch 32] ...

All forms of a model run in the same rounds, in random order, on one thread of the CPU or on the GPU. A ratio is the
median of the rounds' own ratios. Results lie in ``build/latency``, one file per model, or in a folder beside it that is
named after provider, type and batch. The skeletons of an export and of its deploy form get different random weights, so
only times are compared here; denormal numbers are flushed to zero.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks import peers
from benchmarks.latency_tables import show
from models import skeletons
from models.half import half, tamed
from onnxrep import Options, machine, optimize
from onnxrep.proof.errors import CannotRun
from onnxrep.proof.inputs import Wishes, index_limits, usual_feeds
from onnxrep.proof.sessions import PROVIDERS, Feeds, Runtime, Session
from onnxrep.timing.rounds import Budget, repeats_for, timed_rounds, warm_up

CONTROLS = ("resnet50", "tf_efficientnet_b0", "vit_tiny_patch16_224")
FORMS = ("export", "deploy", "ours")
_OPENINGS = 2
_FEWEST = 11


@dataclass(frozen=True)
class Setting:
    """Where and as what the models run: execution provider, whether it may use TF32, float16, images at once."""

    provider: str = "cpu"
    tf32: bool = False
    narrow: bool = False
    batch: int = 0

    @property
    def title(self) -> str:
        """How the setting is named; empty for the usual one."""
        batch = f"batch {self.batch}" if self.batch else ""
        provider = "" if self.provider == "cpu" else self.provider
        parts = (provider, "TF32" if self.tf32 else "", "float16" if self.narrow else "", batch)
        return ", ".join(filter(None, parts))

    @property
    def folder(self) -> Path:
        """Where models and results lie."""
        return Path("build") / "-".join(["latency", *self.title.lower().replace(",", "").split()])

    @property
    def runtime(self) -> Runtime:
        """What runs the models."""
        return Runtime(self.provider, threads=1, tf32=self.tf32)

    @property
    def is_usual(self) -> bool:
        """Whether this is what all tools and OpenVINO are compared at."""
        return not self.title

    def made(self, name: str) -> onnx.ModelProto:
        """Return a model of the zoo in this setting."""
        model = half(tamed(skeletons.fill(name))) if self.narrow else skeletons.fill(name)
        if self.batch:
            weights = {t.name for t in model.graph.initializer}
            del model.graph.value_info[:]
            for value in (*model.graph.input, *model.graph.output):
                if value.name not in weights and value.type.tensor_type.shape.dim:
                    value.type.tensor_type.shape.dim[0].dim_value = self.batch
        return model


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


def prepare(name: str, deploy: str, python: Path | None, setting: Setting) -> tuple[dict[str, Path], dict[str, str]]:
    """Write all forms of a model; return their files, and why some are missing.

    Raises:
        CannotRun: ONNX Runtime does not run the export, whose batch may be fixed.

    """
    folder = setting.folder / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    export = folder / "export.onnx"
    found, missing = {"export": export}, {}
    if not export.exists():
        onnx.save(setting.made(name), export)
    session = setting.runtime.session(export, "all")
    session.run(_feeds(export, session))
    if deploy:
        found["deploy"] = folder / "deploy.onnx"
        if not found["deploy"].exists():
            onnx.save(setting.made(deploy), found["deploy"])
    found["ours"] = folder / "ours.onnx"
    optimize(export, found["ours"], Options(verify=False, provider=setting.provider))
    for tool in peers.TOOLS:
        target = folder / f"{tool.replace(' ', '_')}.onnx"
        fault = peers.write(tool, python, export, target, setting.provider) or _fault(target, setting.runtime)
        if fault:
            missing[tool] = fault
        else:
            found[tool] = target
    return found, missing


def _feeds(path: Path, session: Session) -> Feeds:
    """Return inputs of a model."""
    feeds, _ = usual_feeds(session, Wishes({}), 0, index_limits(onnx.load(path)))
    return feeds


def _fault(path: Path, runtime: Runtime) -> str:
    """Return why ONNX Runtime does not load what a tool wrote, or nothing."""
    try:
        runtime.session(path, "all")
    except CannotRun as error:
        return f"does not load: {error}"
    return ""


def measure(files: Mapping[str, Path], seconds: float, runtime: Runtime, *, openvino: bool) -> dict[str, Any]:
    """Return the times of all forms, and of the first three on OpenVINO."""
    rng = np.random.default_rng(0)
    feeds = _feeds(files["export"], runtime.session(files["export"], "all"))
    times: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    budget = Budget(400, seconds).split(_OPENINGS)
    for _ in range(_OPENINGS):
        runs: dict[str, Callable[[], object]] = {}
        for form in rng.permutation(list(files)):
            session = runtime.session(files[form], "all", flush=True)
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
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu")
    parser.add_argument("--tf32", action="store_true", help="let CUDA round operands of convolutions to TF32")
    parser.add_argument("--half", action="store_true", help="the models in float16")
    parser.add_argument("--batch", type=int, default=0, help="so many images at once")
    arguments = parser.parse_args()
    setting = Setting(arguments.provider, arguments.tf32, arguments.half, arguments.batch)
    if not arguments.show:
        setting.runtime.check()
    setting.folder.mkdir(parents=True, exist_ok=True)
    names = {n: d for n, d in cases().items() if any(fnmatch.fnmatch(n, f"{p}*") for p in arguments.patterns)}
    for name, deploy in () if arguments.show else names.items():
        target = setting.folder / f"{name.replace('/', '-')}.json"
        if target.exists() and not arguments.again:
            continue
        try:
            files, missing = prepare(name, deploy, arguments.peers, setting)
        except CannotRun as error:
            print(f"left out {name}: {error}", file=sys.stderr, flush=True)
            continue
        if arguments.prepare:
            continue
        found = measure(files, arguments.seconds, setting.runtime, openvino=setting.is_usual and has_openvino())
        about = {"processor": machine.processor(), "onnxruntime": onnxruntime.__version__, "setting": setting.title}
        target.write_text(json.dumps({"name": name, "deploy": deploy, "missing": missing, **about, **found}))
        print(f"measured {name}", file=sys.stderr, flush=True)
    results = [json.loads(p.read_text()) for p in sorted(setting.folder.glob("*.json"))]
    faults = show([r for r in results if r["name"] in names], arguments.plot, setting.title)
    return int(arguments.strict and faults > 0)


if __name__ == "__main__":
    sys.exit(main())
