"""The chain of tools around a folded model: what they make of it agrees with what they make of the original."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxrep
from models import skeletons
from models.blocks import seed_blocks
from tests.documents import ROOT, Block, fenced

MODEL = skeletons.fill("sg_qarepvgg_alpha/train_dynamo")
FOLDED = onnxrep.optimize(MODEL).model
RECIPES = list(fenced(ROOT / "docs/recipes.md"))


def image(seed: int = 0) -> dict[str, np.ndarray]:
    """A random input."""
    (value,) = MODEL.graph.input
    shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


def run(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of a model in ONNX Runtime."""
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    return np.asarray(onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds)[0])


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    """The relative rms difference."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def recipe(language: str, word: str) -> Block:
    """The block of the recipes that holds a word."""
    (found,) = [b for b in RECIPES if b.language == language and word in b.text]
    return found


def test_the_export_folds_completely():
    assert [n.op_type for n in FOLDED.graph.node].count("Conv") < [n.op_type for n in MODEL.graph.node].count("Conv")
    assert off(run(FOLDED, image()), run(MODEL, image())) < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantized_models_stay_close(tmp_path, monkeypatch):
    """The int8 model made of the folded one is as near to the original as the one made of the original."""
    monkeypatch.chdir(tmp_path)
    text = recipe("python", "quantize_static").text
    np.savez("inputs.npz", **image())
    made = {}
    for name, model in (("before", MODEL), ("after", FOLDED)):
        onnx.save(model, "folded.onnx")
        exec(compile(text, "recipe", "exec"), {"__name__": "recipe"})
        made[name] = onnx.load("int8.onnx")
        assert any(n.op_type == "QuantizeLinear" for n in made[name].graph.node)
    wanted = run(MODEL, image())
    errors = {name: off(run(model, image()), wanted) for name, model in made.items()}
    assert errors["before"] < 0.2
    assert errors["after"] < 2 * errors["before"] + 0.02
    assert onnxrep.inspect(made["after"]).folds == ()


def test_openvino_runs_the_result(tmp_path):
    openvino = pytest.importorskip("openvino")
    onnx.save(FOLDED, tmp_path / "folded.onnx")
    compiled = openvino.Core().compile_model(str(tmp_path / "folded.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = next(iter(compiled(list(image().values())).values()))
    assert off(found, run(MODEL, image())) < 1e-4


def test_polygraphy_sees_a_difference_where_there_is_one(tmp_path):
    """The commands of the recipe pass on a right model (``test_docs``); on a wrong one they fail."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(FOLDED)
    weight = max(wrong.graph.initializer, key=lambda t: len(t.raw_data))
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0] *= 3
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(MODEL, tmp_path / "model.onnx")
    onnx.save(wrong, tmp_path / "folded.onnx")
    first, second = recipe("sh", "polygraphy").commands
    assert shell(first, tmp_path).returncode == 0
    done = shell(second, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout + done.stderr


def test_the_rule_of_the_makefile(tmp_path):
    (tmp_path / "zoo").mkdir()
    block = next(iter(seed_blocks())).model()
    for name in ("a", "b"):
        onnx.save(block, tmp_path / f"zoo/{name}.onnx")
    (tmp_path / "Makefile").write_text(recipe("make", "patsubst").text + "\n")
    done = shell("make", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["a.onnx", "b.onnx"]
    assert "onnxrep" not in shell("make", tmp_path).stdout, "what is made is made again"


def test_the_hook_refuses_models_with_branches(tmp_path):
    onnx.save(MODEL, tmp_path / "a model.onnx")
    onnx.save(FOLDED, tmp_path / "folded.onnx")
    entry = re.search(r"entry: (.*)", (ROOT / ".pre-commit-hooks.yaml").read_text())
    assert entry
    assert shell(f"{entry[1]} folded.onnx", tmp_path).returncode == 0
    assert shell(f"{entry[1]} folded.onnx 'a model.onnx' folded.onnx", tmp_path).returncode == 1


def test_the_step_for_github_actions(tmp_path):
    onnx.save(FOLDED, tmp_path / "folded.onnx")
    step = recipe("yaml", "run: |").text.split("run: |")[1]
    commands = [line.strip() for line in step.splitlines() if line.strip() and "pip install" not in line]
    assert commands
    assert all(shell(command, tmp_path).returncode == 0 for command in commands)


def test_the_container_file_installs_this_package():
    text = (ROOT / "Containerfile").read_text()
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    assert re.search(r"pip install .*'/src\[html\]'", text)
    assert 'ENTRYPOINT ["onnxrep"]' in text


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with this package and the tools of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    assert shutil.which(command.split(maxsplit=1)[0], path=path), command
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
