"""Every command and every example in the README and the documents runs, or is at least one that the tool knows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import onnxrep
from models import skeletons
from models.blocks import seed_blocks
from onnxrep import cli
from tests.documents import ROOT, Block, documents, fenced, indented

BLOCKS = [b for path in documents() for b in (*fenced(path), *indented(path))]
SHELL = [b for b in BLOCKS if b.language in ("sh", "console", "bash")]
PYTHON = [b for b in BLOCKS if b.language == "python"]

NOT_RUN = ("pip install", "python -m pip install", "python -m benchmarks", "git ", "playwright ")
"""What would change the machine, or take long."""

ELSEWHERE = ("s3://", "gs://", "hf://", "--dask", "--provider cuda")
"""What needs another machine: it must be a command that the tool understands."""

LANGUAGES = set("sh console bash python make yaml text json toml onnx dockerfile".split()) | {""}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A folder with the files that the documents name."""
    folder = tmp_path_factory.mktemp("documents")
    block = next(iter(seed_blocks())).model()
    model = skeletons.fill("sg_qarepvgg_alpha/train_dynamo")
    (folder / "zoo").mkdir()
    for name in ("zoo/a.onnx", "zoo/b.onnx"):
        onnx.save(block, folder / name)
    for name in ("model.onnx", "before.onnx", "repvgg_a0.onnx"):
        onnx.save(model, folder / name)
    for name in ("after.onnx", "folded.onnx", "model.rep.onnx"):
        onnx.save(onnxrep.optimize(model).model, folder / name)
    (value,) = model.graph.input
    shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    np.savez(folder / "inputs.npz", **{value.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)})
    return folder


def is_usage(command: str) -> bool:
    """Whether a line shows how a command is built, with words in capitals for what the reader puts there."""
    return bool(re.search(r"\b[A-Z]{3,}\b|\.\.\.|\[", command)) or len(shlex.split(command)) < 3


def check_known(command: str) -> None:
    """The tool knows the command and its options."""
    words = shlex.split(command.replace("[", "").replace("]", "").replace("...", ""))
    known = cli.parser()
    actions = next(a for a in known._actions if a.choices and "optimize" in a.choices)
    assert words[1] in (actions.choices or {}), command
    options = actions.choices[words[1]]._option_string_actions
    assert all(w in options for w in words[2:] if w.startswith("-")), command


def check_make(command: str) -> None:
    """The Makefile has the target."""
    for target in [w for w in shlex.split(command)[1:] if "=" not in w]:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def run(command: str, folder: Path) -> None:
    """Run one command in a folder; commands of ours run here, which is faster."""
    words = shlex.split(command)
    if words[0] == "onnxrep" and not set(command) & set("|><;&$`"):
        assert cli.main(words[1:]) == 0, command
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    done = subprocess.run(
        ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", SHELL, ids=lambda b: b.place)
def test_commands(block: Block, zoo, monkeypatch, capsys):
    monkeypatch.chdir(zoo)
    for command in block.commands:
        ours = command.startswith("onnxrep ")
        if command.startswith("make "):
            check_make(command)
        elif ours and (is_usage(command) or any(word in command for word in ELSEWHERE)):
            check_known(command)
        elif not command.startswith(NOT_RUN):
            run(command, zoo)


@pytest.mark.parametrize("path", sorted({b.file for b in PYTHON}))
def test_examples(path, zoo, monkeypatch, capsys):
    """The examples of one document run one after the other, as a reader would type them."""
    monkeypatch.chdir(zoo)
    names = {"onnxrep": onnxrep, "graph": gs.import_onnx(onnx.load("model.onnx")), "__name__": "example"}
    for block in PYTHON:
        if block.file == path:
            exec(compile(block.text, block.place, "exec"), names)


def test_there_are_commands_and_examples():
    assert len(SHELL) > 10
    assert len(PYTHON) > 3
    assert {b.language for b in BLOCKS} <= LANGUAGES


def test_links_between_documents_lead_somewhere():
    for path in [*documents(), ROOT / "benchmarks/README.md", *ROOT.glob("docs/decisions/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text()):
            made = "reference/" in target or "pictures/" in target
            assert made or (path.parent / target).exists(), f"{path.name}: {target}"
